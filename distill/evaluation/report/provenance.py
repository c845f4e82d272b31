"""Cost and origin of the artifacts of a run, from their manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from distill.runtime.artifacts import Artifact


class Cost(NamedTuple):
    """Time and memory of the command that wrote an artifact; `share` (percent of all) is None for the sum."""

    name: str
    time: str
    share: float | None
    memory: str
    created: str


class Parent(NamedTuple):
    """An input of an artifact; `is_current` is false if the run now holds another version of it."""

    name: str
    fingerprint: str
    is_current: bool


class Origin(NamedTuple):
    """How an artifact was made."""

    name: str
    fingerprint: str
    parents: list[Parent]
    command: str
    commit: str


def list_costs(artifacts: Mapping[str, Artifact]) -> list[Cost]:
    """List time and memory of each artifact's command, and the sum of the times."""
    total = sum(artifact.manifest["seconds"] for artifact in artifacts.values())
    costs = []
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        share = 100 * manifest["seconds"] / total if total else 0
        memory = f"{manifest['peak_mib']:,} MiB"
        costs.append(Cost(name, format_duration(manifest["seconds"]), round(share, 1), memory, manifest["created"]))
    return [*costs, Cost("all", format_duration(total), None, "", "")]


def format_duration(seconds: float) -> str:
    """Format as seconds, minutes or hours, whichever fits."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def list_origins(artifacts: Mapping[str, Artifact]) -> list[Origin]:
    """List which artifact was made from which."""
    current = {(artifact.name, artifact.fingerprint): name for name, artifact in artifacts.items()}
    origins = []
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        parents = [
            Parent(current.get((parent, fingerprint), parent), fingerprint, (parent, fingerprint) in current)
            for parent, fingerprint in manifest["identity"]["inputs"].items()
        ]
        commit = manifest.get("commit") or "–"
        origins.append(Origin(name, artifact.fingerprint, parents, manifest["command"], commit))
    return origins
