"""Listen on an address."""

from __future__ import annotations

import socket

from distill.runtime.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; from now on connections wait instead of being refused.

    Args:
        host: an IPv4 or IPv6 address, or a name.
        port: 0: any free port.

    Raises:
        UserError: the address cannot be listened on.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        raise UserError(f"Cannot listen on {host}:{port} ({error}); choose another --port.") from None
    return listener
