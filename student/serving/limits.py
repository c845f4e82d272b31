"""What is refused before a request is read: foreign host names, bodies that are too large, callers without the key."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
OPEN_PATHS = {"/healthz", "/readyz", "/"}  # asked by load balancers; the page asks its user for the key


class RequestGuard:
    """ASGI middleware that checks the host name and the API key and reads a whole body, at most `max_body` bytes.

    Browsers are kept from asking in the name of a foreign page whose host name was pointed at this machine (DNS
    rebinding): the header Host must name the server.

    Args:
        app: the application.
        api_key: expected in `Authorization: Bearer KEY`; None: everybody may ask.
        max_body: bytes.
        host: address that the server listens on; where it listens on all, every IP address is its name.
        allowed_hosts: further names of the server.
    """

    def __init__(
        self,
        app: Any,
        api_key: str | None = None,
        max_body: int = 1 << 20,
        host: str = "127.0.0.1",
        allowed_hosts: Sequence[str] = (),
    ):
        self.app, self.max_body = app, max_body
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()
        self._names = {"localhost", host.lower(), *map(host_name, allowed_hosts)}
        bound = _address(host)
        self._any_address = bound is not None and bound.is_unspecified

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        name = host_name(headers.get(b"host", b"").decode("latin-1"))
        if not self._is_known(name):
            message = f"Expected the header Host to name this server, got {name[:100]!r}; allow it by --allowed_hosts."
            return await _refuse(send, 421, message)
        given = headers.get(b"authorization", b"")
        must_show_key = self._expected is not None and scope["path"] not in OPEN_PATHS
        if must_show_key and not hmac.compare_digest(given, self._expected):
            return await _refuse(send, 401, "Expected the header Authorization: Bearer KEY with the server's key.")
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_body:
                return await _refuse(send, 413, f"Expected a body of at most {self.max_body} bytes.")
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_whole() -> dict[str, Any]:
            return whole.pop() if whole else await receive()

        return await self.app(scope, receive_whole, send)

    def _is_known(self, name: str) -> bool:
        address = _address(name)
        if address is not None and (self._any_address or address.is_loopback):
            return True
        return name in self._names


def host_name(header: str) -> str:
    """Return the name in a Host header, lower case, without port, brackets and the root's dot."""
    header = header.strip().lower()
    name = header[1:].split("]", 1)[0] if header.startswith("[") else header.split(":", 1)[0]
    return name.rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


async def _refuse(send: Send, status: int, message: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": message}).encode()})
