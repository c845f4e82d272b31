"""Artifacts: folders with a manifest, written whole or not at all.

Every job reads artifacts and writes one. `ArtifactJob` answers "is this work already done?" and makes sure that a
killed run leaves the old artifact, or none, never half of one. A folder without `manifest.json` is unfinished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.runtime.errors import UserError
from distill.runtime.logs import log

SCHEMA = 2


MANIFEST = "manifest.json"


IDENTITY = "identity.json"  # inside a working folder: whose work is it?


COMMANDS = {
    "dataset": "python scripts/prepare_data.py",
    "embeddings": "python scripts/embed_items.py",
    "semantic_ids": "python scripts/build_semantic_ids.py",
    "teacher": "accelerate launch teacher/finetune.py",
    "soft_labels": "python distill/export_soft_labels.py",
    "student": "accelerate launch student/train.py --variant tiger",
    "baseline": "python student/baseline.py --network sasrec",
    "audit": "python scripts/audit.py",
    "evaluation": "python scripts/evaluate.py",
    "report": "python scripts/report.py",
}


@dataclass(frozen=True)
class Artifact:
    """A finished folder and what its manifest says.

    `inputs` maps the name of every ancestor, not only the direct ones, to its fingerprint at the time. `role` tells a
    second artifact of one kind from the first (labels whose order alone is used).
    """

    folder: Path
    kind: str
    fingerprint: str
    inputs: dict[str, str]
    config: dict[str, Any]
    manifest: dict[str, Any]
    role: str = ""

    @property
    def name(self) -> str:
        """Its kind; of students, baselines and folds' teachers, which stand side by side, also the folder's name; of a
        second artifact of a kind, also its role."""
        if self.role:
            return f"{self.kind}/{self.role}"
        several = self.kind in ("student", "baseline") or (self.kind == "teacher" and self.config.get("folds"))
        return f"{self.kind}/{self.folder.name}" if several else self.kind


def fingerprint(folder: Path) -> str:
    """Content hash of all files below `folder` but the manifest: names and bytes, never times."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in (MANIFEST, IDENTITY):
            continue
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def command_for(kind: str, folder: Path) -> str:
    """The command that makes such a folder."""
    if kind == "student" and folder.name.endswith("+memory"):
        return f"python scripts/add_memory.py --student {folder.with_name(folder.name.removesuffix('+memory'))}"
    return COMMANDS[kind]


def read(folder: Path, kind: str, make: str | None = None) -> Artifact:
    """Open a finished artifact of the given kind.

    Args:
        folder: where it is.
        kind: a key of `COMMANDS`.
        make: the command to name in place of `command_for`.

    Raises:
        UserError: missing, unfinished, of another kind or schema; the message names the command that makes it.
    """
    folder = Path(folder)
    manifest = _manifest(folder, kind, make)
    again = f"Make it with: {make or command_for(kind, folder)} --overwrite"
    if manifest["schema"] != SCHEMA:
        raise UserError(f"{folder} has schema {manifest['schema']}, this version reads {SCHEMA}. {again}")
    for key in ("fingerprint", "inputs", "config", "identity"):
        if key not in manifest:
            raise UserError(f"{folder / MANIFEST} is damaged (no {key!r}). {again}")
    return Artifact(folder, kind, manifest["fingerprint"], manifest["inputs"], manifest["config"], manifest)


def _manifest(folder: Path, kind: str, make: str | None = None) -> dict[str, Any]:
    """The manifest of a folder that is, in some schema, an artifact of that kind: `--overwrite` may replace it."""
    make = f"Make it with: {make or command_for(kind, folder)}"
    if not folder.is_dir():
        raise UserError(f"No {kind} at {folder}. {make}")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a finished {kind}: it has no {MANIFEST}. {make}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found, _ = manifest["kind"], manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:  # whose folder it is cannot be said, so nobody replaces it
        raise UserError(f"{folder / MANIFEST} is damaged ({error!r}). Remove {folder} yourself. {make}") from None
    if found != kind:
        raise UserError(f"Expected a {kind} at {folder}, found a {found}. {make}")
    return manifest


def check_agreement(*artifacts: Artifact) -> None:
    """Refuse artifacts that were made from different versions of the same thing (labels of another codebook).

    Raises:
        UserError: two of them name different fingerprints for one kind.
    """
    seen: dict[str, tuple[str, Artifact]] = {}
    for artifact in artifacts:
        for kind, found in (artifact.inputs | {artifact.name: artifact.fingerprint}).items():
            expected, other = seen.setdefault(kind, (found, artifact))
            if expected != found:
                raise UserError(
                    f"{other.folder} and {artifact.folder} do not belong together: the first goes with {kind} "
                    f"{expected}, the second with {kind} {found}. Make again the one that is out of date: "
                    + " or ".join(sorted({command_for(one.kind, one.folder) for one in (other, artifact)}))
                )


class ArtifactJob:
    """One unit of work: config and inputs in, one artifact out.

    Args:
        kind: what is made, a key of `COMMANDS`.
        config: a dataclass. Fields of type Path and those with `metadata={"identity": False}` say where and how,
            not what: changing them does not make finished work stale. With `check` (`config.JobSettings`) the job is
            only asked whether it is finished.
        output: the folder to write.
        inputs: the artifacts read; checked for agreement.
        extra: further facts that decide the result (say, sizes and times of raw files).
        overwrite: repeat finished work.

    Attributes:
        facts: numbers about the result, for the manifest; no part of its fingerprint.
    """

    def __init__(
        self,
        kind: str,
        config: Any,
        output: Path,
        inputs: list[Artifact] | tuple[Artifact, ...] = (),
        extra: dict[str, Any] | None = None,
        overwrite: bool = False,
    ):
        check_agreement(*inputs)
        self.kind, self.output, self.overwrite = kind, Path(output), overwrite
        self.check_only = getattr(config, "check", False)
        self.partial = self.output.with_name(self.output.name + ".partial")
        self.config = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        self.inputs: dict[str, str] = {}
        for artifact in inputs:
            self.inputs |= artifact.inputs
        direct = {artifact.name: artifact.fingerprint for artifact in inputs}
        self.inputs |= direct
        placement = {
            field.name
            for field in dataclasses.fields(config)
            if "Path" in str(field.type) or field.name == "overwrite" or not field.metadata.get("identity", True)
        }
        what = {key: value for key, value in self.config.items() if key not in placement}
        self.identity = json.loads(json.dumps({"config": what, "inputs": direct, "extra": extra or {}}, default=str))
        self.facts: dict[str, Any] = {}
        self.started = time.time()

    def is_finished(self) -> bool:
        """True, and says so, if the output exists and was made by this config from these inputs.

        Raises:
            UserError: the output folder holds something that is not an artifact of this kind.
            SystemExit: with `--check`, if the work is not finished.
        """
        finished = self._is_finished()
        if self.check_only and not finished:
            sys.exit(1)
        return finished

    def _is_finished(self) -> bool:
        if not self.output.exists():
            return False
        if self.output.is_dir() and not any(self.output.iterdir()):
            return False
        if not (self.output / MANIFEST).is_file():
            raise UserError(f"{self.output} exists and is no {self.kind}; name another output or remove it yourself.")
        if self.overwrite:
            _manifest(self.output, self.kind)
            return False
        artifact = read(self.output, self.kind)
        difference = _difference(artifact.manifest["identity"], self.identity)
        if not difference:
            log.info(f"{self.kind}: finished, at {self.output} (--overwrite repeats it)")
            return True
        log.info(f"{self.kind}: made again, because {difference} changed")
        return False

    def refuse_change(self) -> None:
        """For work too dear to be thrown away unasked: what stands there, finished or not, must be of this identity.

        Raises:
            UserError: it is not; the message names what differs.
        """
        found = {self.partial: self._left_behind()}
        with contextlib.suppress(OSError, ValueError, KeyError):  # damaged: whoever reads it says so
            found[self.output] = json.loads((self.output / MANIFEST).read_text())["identity"]
        for folder, identity in found.items():
            difference = _difference(identity, self.identity) if identity is not None else ""
            if difference:
                raise UserError(
                    f"{folder} holds {self.kind} of other settings: {difference} changed. Set these back to go on, "
                    "name another --output, or replace it with --overwrite."
                )

    @contextlib.contextmanager
    def write(self, resume: bool = False) -> Iterator[Path]:
        """A working folder that becomes the artifact when the block ends without an exception.

        With `resume`, a working folder left by a killed run of the same identity is kept and handed over again.
        """
        self.begin(resume and not self.overwrite)
        yield self.partial
        self.finish()

    def begin(self, resume: bool = False) -> None:
        """Make the working folder, the first half of `write`."""
        same = self._left_behind() == self.identity
        if self.partial.exists() and not (resume and same):
            shutil.rmtree(self.partial)
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot write to {self.output.parent}: {error.strerror}.") from None
        if not (self.partial / IDENTITY).is_file():
            self.sign(self.partial)

    def sign(self, folder: Path) -> None:
        """Say in a working folder whose work it is."""
        _write_whole(folder / IDENTITY, json.dumps(self.identity, sort_keys=True))

    def _left_behind(self) -> dict | None:
        """Identity of the working folder that a killed run has left."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.partial / IDENTITY).read_text())
        with contextlib.suppress(OSError, ValueError, KeyError):  # killed in its last moment
            return json.loads((self.partial / MANIFEST).read_text())["identity"]
        return None

    def finish(self) -> None:
        """Make the working folder the artifact, the second half of `write`; killed anywhere, it can be done again."""
        manifest = {
            "kind": self.kind,
            "schema": SCHEMA,
            "fingerprint": fingerprint(self.partial),
            "inputs": self.inputs,
            "identity": self.identity,
            "config": self.config,
            "facts": self.facts,
            "command": command(),
            "commit": commit(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - self.started, 1),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        write_json(self.partial / MANIFEST, manifest)
        (self.partial / IDENTITY).unlink()
        old = self.output.with_name(self.output.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.output.exists():
            os.replace(self.output, old)
        os.replace(self.partial, self.output)
        shutil.rmtree(old, ignore_errors=True)
        log.info(f"{self.kind}: wrote {self.output} in {manifest['seconds']:.0f} s")


def command() -> str:
    """The command that runs, as one would type it from the current folder."""
    launcher = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
    return shlex.join([*launcher.split(), os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def commit() -> str | None:
    """The version of the code, with -dirty after it where files differ from it; None where that is not known."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary name, so that readers see the old file or the new one."""
    _write_whole(path, json.dumps(value, indent=2) + "\n")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    parts = []
    for section, word in (("config", ""), ("inputs", "input "), ("extra", "")):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                detail = f" ({before.get(key)} -> {after.get(key)})" if section == "config" else ""
                parts.append(f"{word}{key}{detail}")
    return ", ".join(parts)
