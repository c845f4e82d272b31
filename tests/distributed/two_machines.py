"""Two machines on one: network namespaces joined by a cable (a veth pair), each with a disk and a host name of its own.

Both see their own disk under the same path, as machines do that are installed alike; they have no file in common there.
As on Debian, a machine's name leads to 127.0.1.1, where the other machine finds nobody. Needs root.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ADDRESSES = "10.77.0.1", "10.77.0.2"
# its name, its disk and its hosts file are seen by the command alone
ENTER = 'hostname "$1" && mount --bind "$2" "$3" && mount --bind "$2/hosts" /etc/hosts && shift 3 && exec "$@"'


class TwoMachines:
    """Two machines that are up until `close`.

    Attributes:
        place: where each machine sees its disk.
        disks: the two disks, from outside.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="two"))  # short: Ray's sockets lie there
        self.place = self.root / "d"
        self.disks = self.root / "disk0", self.root / "disk1"
        self.names = f"machine0-{os.getpid()}", f"machine1-{os.getpid()}"
        self.place.mkdir()
        for disk, name in zip(self.disks, self.names, strict=True):
            disk.mkdir()
            (disk / "home").mkdir()
            (disk / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        try:
            for name in self.names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            first, second = self.names
            ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            self.mend()
        except BaseException:
            self.close()
            raise

    def start(self, number: int, words: Sequence[str | Path], **environment: str) -> subprocess.Popen:
        """Start a command on a machine, in its disk; stderr comes with stdout."""
        name = self.names[number]
        shell = ["sh", "-c", ENTER, "sh", name, str(self.disks[number]), str(self.place)]
        return subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", *shell, *map(str, words)],
            env=os.environ | {"HOME": str(self.place / "home")} | environment,
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_for_port(self, number: int, port: int) -> None:
        """Wait until something on a machine listens at a port."""
        address = f"{ADDRESSES[number]}/{port}"
        loop = f"until (: < /dev/tcp/{address}) 2> /dev/null; do sleep 0.1; done"
        subprocess.run(["ip", "netns", "exec", self.names[number], "bash", "-c", loop], check=True, timeout=240)

    def cut(self) -> None:
        """Cut the cable: packets vanish, and nobody is told."""
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def mend(self) -> None:
        """Join the cable."""
        for name in self.names:
            ip("-n", name, "link", "set", "cable", "up")

    def stop(self) -> None:
        """Kill whatever still runs on the machines."""
        for name in self.names:
            running = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for process in running.stdout.split():
                os.kill(int(process), signal.SIGKILL)

    def close(self) -> None:
        """Stop both machines and remove their disks."""
        self.stop()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        shutil.rmtree(self.root, ignore_errors=True)


def ip(*words: str) -> None:
    """Run `ip`, and fail if it does."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def skip_without_namespaces() -> None:
    """Skip the test where this user, or this system, cannot make network namespaces; for no other reason."""
    name = f"probe-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "unshare", "--uts", "--mount", "true")
    except FileNotFoundError:
        pytest.skip("network namespaces need the command ip (iproute2)")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here (root is needed): {error.stderr.strip()}")
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
