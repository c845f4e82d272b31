"""Launches over several machines: they agree before the work, and the launch ends where one of them falls silent.

torchrun and `accelerate launch` run an agent on every machine, and the first machine's agent holds a store (TCPStore).
Through it machines tell each other what no process group can: that the work is finished, and that they are alive. Gloo
and NCCL would wait half an hour for a machine whose network is cut, because nothing closes its connections.

Machines may share the disk of the run or have disks of their own, with the same inputs on each. On disks of their own
the first process of every machine writes checkpoints, and the first machine gets the result.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
import shlex
import socket
import struct
import sys
import threading
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.runtime.artifacts import ArtifactJob, identity_difference
from distill.runtime.checksums import code_fingerprint
from distill.runtime.errors import UserError
from distill.runtime.folders import discard
from distill.runtime.launch import is_first_of_machine
from distill.runtime.logs import log

if TYPE_CHECKING:
    from torch.distributed import TCPStore

BEAT_SECONDS = 5.0  # at most, between two signs of life
START_SECONDS = 1800.0  # for the last machine to start; as a process group waits
SIOCGIFADDR = 0x8915  # Linux: address of a network interface
PACKAGES = ("accelerate", "torch", "transformers")

_jobs = itertools.count()  # numbers the jobs of this process; all processes come to them in the same order


def count() -> int:
    """Count the machines of this launch; 1 under launchers without agents, such as mpirun."""
    has_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return int(os.environ.get("GROUP_WORLD_SIZE", "1")) if has_agents else 1


def number() -> int:
    """Return the number of this machine, from 0."""
    return int(os.environ.get("GROUP_RANK", "0"))


def is_finished(job: ArtifactJob, silence: float) -> bool:
    """Tell whether the work is finished, on the first machine; as `ArtifactJob.is_finished`.

    Where it is not, the job then knows whether this process writes its files, and where the result stays.

    Args:
        job: the same on all machines.
        silence: seconds without a sign of life from another machine after which this process ends.

    Raises:
        UserError: as there; machines have other settings, inputs or versions; one does not start.
    """
    finished = job.is_finished()
    if count() == 1 or job.check_only:
        return finished
    watch(silence)
    finished_here, (finished, shares_disk) = finished, _agree(job, finished)
    if finished:
        if not finished_here and is_first_of_machine():
            discard(job.partial)  # the last launch was cut off when the first machine had the result
        return True
    if not shares_disk:
        job.separate_disks, job.keeps_result = True, number() == 0
        job.is_writer = job.lock.is_holder = is_first_of_machine()
        job.lock.acquire()
        log.info(f"{job.kind}: {count()} machines without a common disk; each keeps checkpoints, the first the result")
    return False


def _agree(job: ArtifactJob, finished: bool) -> tuple[bool, bool]:
    """Compare what the machines would do.

    Returns:
        Whether the work is finished on the first machine, and whether all machines see its disk.

    Raises:
        UserError: as `is_finished`.
    """
    store, prefix = connect(START_SECONDS), f"{_prefix()}/job{next(_jobs)}"
    facts = {"host": socket.gethostname(), "finished": finished, "identity": _identity(job)}
    if is_first_of_machine():
        if number() > 0:
            _read(store, prefix, 0)  # the first machine has its lock by then
        facts["lock"] = _read_lock(job)
        store.set(f"{prefix}/{number()}", json.dumps(facts))
    first, *others = (_read(store, prefix, machine) for machine in range(count()))
    for other in others:
        difference = identity_difference(first["identity"], other["identity"])
        if difference:
            raise UserError(
                f"{other['host']} would not do the work of {first['host']}: {difference} differs. Copy the run's "
                "folder from there or share it, install the same code, and give all machines the same settings."
            )
    return first["finished"], all(machine["lock"] == first["lock"] for machine in others)


def _read_lock(job: ArtifactJob) -> str | None:
    """Read the lock of a job's output, which names host and process, so that the same lock is on the same disk."""
    try:
        return job.lock.path.read_text()
    except OSError:
        return None


def _identity(job: ArtifactJob) -> dict[str, Any]:
    """Return a job's identity, with the versions that all machines must have."""
    versions = {name: version(name).partition("+")[0] for name in PACKAGES}
    versions["python"] = ".".join(map(str, sys.version_info[:2]))
    extra = {f"the version of {name}": value for name, value in versions.items()}
    extra["the code of lohrec-distill"] = code_fingerprint()
    return job.identity | {"extra": job.identity["extra"] | extra}


def _read(store: TCPStore, prefix: str, machine: int) -> dict[str, Any]:
    """Read what a machine has written about its job.

    Raises:
        UserError: it has not within `START_SECONDS`.
    """
    try:
        return json.loads(store.get(f"{prefix}/{machine}"))
    except RuntimeError:  # of which torch's DistStoreError and DistNetworkError are kinds
        raise UserError(
            f"Machine {machine} of {count()} has not begun within {START_SECONDS / 60:g} minutes, or has ended. Start "
            "the same command there, with --node_rank (torchrun) or --machine_rank (accelerate launch) "
            f"{machine} and the address of the first machine."
        ) from None


def connect(seconds: float) -> TCPStore:
    """Connect to the store of the launch.

    Args:
        seconds: that its operations may take.
    """
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def _prefix() -> str:
    """Return the beginning of this project's keys; the store outlives processes that the agents start again."""
    return f"lohrec/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@functools.cache
def watch(silence: float) -> None:
    """Watch the other machines of the launch from now on; once for a process, in the first one of each machine.

    Two threads: what talks to the store may hang when the network is cut, so another one looks at the clock.

    Args:
        silence: seconds without a sign of life from a machine after which this process ends, and its launch with it.
    """
    if count() == 1 or not is_first_of_machine():
        return
    last_signs: dict[int, float] = {}  # machine to the time of its last sign; from its first one on
    interval = min(BEAT_SECONDS, silence / 4)
    threading.Thread(target=_exchange_signs, args=(last_signs, interval), daemon=True).start()
    threading.Thread(target=_end_after, args=(silence, last_signs, interval), daemon=True).start()


def _exchange_signs(last_signs: dict[int, float], interval: float) -> None:
    """Give signs of life, and note when the others gave theirs; for ever."""
    store, seen = None, dict[int, bytes | None]()
    others = [machine for machine in range(count()) if machine != number()]
    for beat in itertools.count():
        try:
            store = store or connect(interval)
            store.set(f"{_prefix()}/alive{number()}", f"{socket.gethostname()} {beat}")
            for machine in others:
                key = f"{_prefix()}/alive{machine}"
                sign = store.get(key) if store.check([key]) else None
                if sign != seen.get(machine):
                    seen[machine], last_signs[machine] = sign, time.monotonic()
        except RuntimeError:  # the first machine does not answer; it may again
            store = None
        time.sleep(interval)


def _end_after(silence: float, last_signs: dict[int, float], interval: float) -> None:
    """End this process when a machine has been silent for too long."""
    while True:
        time.sleep(interval)
        silent = [machine for machine, then in list(last_signs.items()) if time.monotonic() - then > silence]
        if silent:
            machines = f"machine{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
            message = (
                f"error: no sign of life from {machines} of {count()} for {silence:g} s: the network between the "
                "machines is cut, or the launch there has ended. Start the same command again on every machine; it "
                f"goes on from the last checkpoint. Here:\n    {launch_command()}"
            )
            print(message, file=sys.stderr, flush=True)
            os._exit(2)  # the main thread may wait for that machine inside gloo or NCCL


def launch_command() -> str:
    """Return the command of the launcher that started this process, where the system tells it."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:
        words = [os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    if len(words) > 1 and "python" in Path(words[0]).name:  # that runs the launcher's script
        words = [Path(words[1]).name, *words[2:]]
    return shlex.join(words)


def use_reachable_interface() -> None:
    """Let gloo use the network interface that leads to the launch's first machine, unless the user names another.

    By itself gloo takes the address of the machine's name, which on Debian and Ubuntu is 127.0.1.1.
    """
    if count() == 1 or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    name = interface_towards(os.environ["MASTER_ADDR"])
    if name is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_towards(address: str) -> str | None:
    """Name the network interface whose address packets to `address` (IPv4) bear; None if that is none, or loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing
        except OSError:
            return None
        source = probe.getsockname()[0]
        if source.startswith("127."):
            return None
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == source:
                return name
    return None
