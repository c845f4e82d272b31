"""Settings of commands that can share their work out on a Ray cluster.

Annotations are evaluated here: jsonargparse looks names of types up in the modules of a config's first bases alone.
"""

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat

from distill.runtime.errors import UserError
from distill.runtime.launch import process_count


@dataclass(frozen=True)
class ClusterSettings:
    """Which Ray cluster, and how long to wait for it."""

    ray_address: str | None = field(default=None, metadata={"identity": False})
    """HOST:PORT of the cluster's head, or auto on one of its machines (default: RAY_ADDRESS, else this machine)."""
    ray_timeout: PositiveFloat = field(default=1800.0, metadata={"identity": False})
    """Seconds in which no shard or task of the cluster is finished, after which the command gives up; loading a model
    counts."""


@dataclass(frozen=True)
class RaySettings(ClusterSettings):
    """Work on a Ray cluster."""

    launcher: Literal["local", "ray"] = field(default="local", metadata={"identity": False})
    """Who works: this process (and those started beside it), or actors on a Ray cluster."""
    ray_actors: str | None = field(default=None, metadata={"identity": False})
    """Actors, each with a model: N, or MIN:MAX to grow with the cluster (default: as many as fit into it now)."""
    ray_gpus: NonNegativeFloat | None = field(default=None, metadata={"identity": False})
    """GPUs of an actor (default: 1 where there are any; for labels by vllm: tensor_parallel_size)."""
    ray_cpus: NonNegativeFloat = field(default=1.0, metadata={"identity": False})
    """Processor cores of an actor, a fraction too; also its threads."""
    ray_labels: dict[str, str] = field(default_factory=dict, metadata={"identity": False})
    """Only use nodes with these Ray labels, such as ray.io/market-type=spot."""


def check_ray(settings: RaySettings) -> None:
    """Refuse settings of Ray without `--launcher ray`, and Ray in a launch of several processes.

    Raises:
        UserError: as above; unreadable actors.
    """
    parse_actors(settings.ray_actors)
    if settings.launcher == "ray":
        if process_count() > 1:
            raise UserError("--launcher ray divides the work itself: start one process with python.")
        return
    refuse_changed(settings, RaySettings, "--launcher ray")


def refuse_changed(settings: ClusterSettings, group: type[ClusterSettings], needed: str) -> None:
    """Refuse settings of a group that are not their defaults.

    Args:
        settings: of a command.
        group: the settings that are looked at.
        needed: the option that they belong to, such as `--launcher ray`.

    Raises:
        UserError: names the first.
    """
    changed = [item.name for item in fields(group) if getattr(settings, item.name) != default_of(item)]
    if changed:
        raise UserError(f"--{changed[0]} is for {needed}; add it, or leave --{changed[0]} out.")


def default_of(item: Field) -> object:
    """Return the default of a dataclass's field."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def parse_actors(text: str | None) -> tuple[int, int] | None:
    """Read N or MIN:MAX, the fewest and the most actors; None: as many as fit."""
    if text is None:
        return None
    first, _, last = text.rpartition(":")
    try:
        fewest, most = int(first or last), int(last)
    except ValueError:
        fewest, most = 0, 0
    if not 1 <= fewest <= most:
        raise UserError(f"--ray_actors {text}: expected N or MIN:MAX, from 1, such as 4 or 1:16.")
    return fewest, most
