"""Artifacts: folders with a manifest, written whole or not at all.

Every job reads artifacts and writes one. `ArtifactJob` tells whether the work is already done and makes sure that a
killed run leaves the old artifact, or none, never half of one. A folder without `manifest.json` is unfinished.
docs/guarantees.md lists what is promised.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.runtime import checksums
from distill.runtime.checksums import IDENTITY, MANIFEST, fingerprint
from distill.runtime.commands import command, command_for, commit
from distill.runtime.config import IF_CHANGED
from distill.runtime.disk import full_disk_reason, report_full_disk
from distill.runtime.errors import UserError
from distill.runtime.folders import check_apart, discard, hidden, sweep
from distill.runtime.launch import is_first_of_machine, is_main_process
from distill.runtime.locks import OutputLock
from distill.runtime.logs import log

SCHEMA = 2
CHECKED_BY_INDEX = ("data/",)  # shards of labels: their index has checksums, which are compared on reading


@dataclass(frozen=True)
class Artifact:
    """A finished folder and what its manifest says.

    Attributes:
        folder: where it is.
        kind: a key of `COMMANDS`.
        fingerprint: hash of its content.
        inputs: name to fingerprint of every ancestor, not only the direct ones, at the time it was written.
        config: the config that made it.
        manifest: all of the manifest.
        role: tells a second artifact of a kind from the first (labels whose ranking alone is used).
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
        """Its kind, followed by its role, or by the folder's name for kinds of which a run has several."""
        if self.role:
            return f"{self.kind}/{self.role}"
        several = self.kind in ("student", "baseline") or (self.kind == "teacher" and self.config.get("folds"))
        return f"{self.kind}/{self.folder.name}" if several else self.kind


def read(folder: Path, kind: str, make: str | None = None) -> Artifact:
    """Open a finished artifact of the given kind.

    Args:
        folder: where it is.
        kind: a key of `COMMANDS`.
        make: the command to name in messages (default: `command_for`).

    Raises:
        UserError: missing, unfinished, of another kind or schema; the message names the command that makes it.
    """
    folder = Path(folder)
    make = f"Make it with: {make or command_for(kind, folder)}"
    manifest = _read_manifest(folder, kind, make)
    if manifest["schema"] != SCHEMA:
        raise UserError(f"{folder} has schema {manifest['schema']}, this version reads {SCHEMA}. {make} --overwrite")
    for key in ("fingerprint", "inputs", "config", "identity"):
        if key not in manifest:
            raise UserError(f"{folder / MANIFEST} is damaged (no {key!r}). {make} --overwrite")
    if not checksums.is_switched_off() and not checksums.is_seal_intact(manifest):
        raise UserError(
            f"{folder / MANIFEST} is damaged: its checksum is not the one that was written. {make} --overwrite"
        )
    return Artifact(folder, kind, manifest["fingerprint"], manifest["inputs"], manifest["config"], manifest)


def read_any(folder: Path, kinds: Sequence[str]) -> Artifact:
    """Open a finished artifact of one of several kinds; where it is of none, the first is expected.

    Raises:
        UserError: as `read`.
    """
    try:
        kind = json.loads((Path(folder) / MANIFEST).read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    return read(folder, kind if kind in kinds else kinds[0])


def _read_manifest(folder: Path, kind: str, make: str) -> dict[str, Any]:
    """Read the manifest of an artifact of that kind, of any schema.

    Raises:
        UserError: there is none, or it is damaged or of another kind. `make` ends the message.
    """
    if not folder.is_dir():
        raise UserError(f"No {kind} at {folder}. {make}")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a finished {kind}: it has no {MANIFEST}. {make}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        actual_kind, _ = manifest["kind"], manifest["schema"]
        if checksums.is_switched_off() or checksums.is_seal_intact(manifest):  # otherwise `read` says what is wrong
            _check_types(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # its kind is unknown, so --overwrite must not replace it
        raise UserError(f"{folder / MANIFEST} is damaged ({error!r}). Remove {folder} yourself. {make}") from None
    if actual_kind != kind:
        raise UserError(f"Expected a {kind} at {folder}, found a {actual_kind}. {make}")
    return manifest


def _check_types(manifest: dict[str, Any]) -> None:
    """Raise TypeError where a field of a manifest is of another type than it is written with."""
    kinds = {"kind": str, "schema": int, "fingerprint": str, "inputs": dict, "config": dict, "identity": dict}
    for name, kind in (kinds | {"command": str, "files": dict}).items():
        if not isinstance(manifest.get(name, kind()), kind):
            raise TypeError(f"{name} is {str(manifest[name])[:60]}")
    for name, record in manifest.get("files", {}).items():
        is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not is_inside or [type(value) for value in record] != [int, str]:
            raise TypeError(f"the file {name!r} has the record {str(record)[:60]}")


def verify(*artifacts: Artifact) -> None:
    """Compare the files of artifacts with the checksums in their manifests; older manifests have none.

    Nothing is compared with `--no_verify` or where the environment sets LOHREC_NO_VERIFY.

    Raises:
        UserError: a file is missing, cut or altered; the message names it and the command that makes the artifact.
    """
    if checksums.is_switched_off():
        return
    for artifact in artifacts:
        damage = checksums.find_damage(artifact.folder, artifact.manifest.get("files", {}))
        if damage:
            make = command_for(artifact.kind, artifact.folder, "--overwrite")
            raise UserError(f"{damage}. Make the {artifact.kind} again with: {make}")


def is_finished_folder(folder: Path) -> bool:
    """Tell whether a folder holds a finished artifact, and is none that a killed run has left."""
    is_leftover = folder.name.startswith(".") or folder.suffix == ".partial"
    return not is_leftover and (folder / MANIFEST).is_file()


def check_agreement(*artifacts: Artifact) -> None:
    """Refuse artifacts that were made from different versions of the same input (labels of another codebook).

    Raises:
        UserError: two of them name different fingerprints for one input.
    """
    seen: dict[str, tuple[str, Artifact]] = {}
    for artifact in artifacts:
        for name, actual in (artifact.inputs | {artifact.name: artifact.fingerprint}).items():
            expected, first = seen.setdefault(name, (actual, artifact))
            if expected != actual:
                remedies = sorted({command_for(each.kind, each.folder) for each in (first, artifact)})
                raise UserError(
                    f"{first.folder} and {artifact.folder} do not belong together: the first was made from {name} "
                    f"{expected}, the second from {name} {actual}. Make again the one that is out of date: "
                    + " or ".join(remedies)
                )


class ArtifactJob:
    """One unit of work: config and inputs in, one artifact out.

    Args:
        kind: of the artifact, a key of `COMMANDS`.
        config: a dataclass. Fields of type Path and those with `metadata={"identity": False}` do not decide the
            result: changing them does not make finished work stale. Those with `metadata=IF_CHANGED` decide it where
            they are not the default. With `check` (`config.JobSettings`) the job only tells whether it is finished.
        output: the folder to write; of a symbolic link, the folder that it names, so that the link stays.
        inputs: the artifacts read; checked for agreement.
        extra: further facts that decide the result (sizes and times of raw files).
        overwrite: repeat finished work.
        reads: further files and folders that are read (a base model), which the output must not touch.
        shared: several processes write the output together and lock parts of it themselves (`ShardQueue`).

    Attributes:
        partial: the working folder.
        identity: config, direct inputs and extra facts; work of the same identity is the same work.
        facts: numbers about the result, for the manifest; not part of its fingerprint.
        is_writer: whether this process of a launch writes into the working folder: the first, or the first of each
            machine where `machines.is_finished` found that they have disks of their own (`separate_disks`).
        keeps_result: whether that folder becomes the artifact, as on the first machine, or is removed in the end.
    """

    def __init__(
        self,
        kind: str,
        config: Any,
        output: Path,
        inputs: Sequence[Artifact] = (),
        extra: dict[str, Any] | None = None,
        overwrite: bool = False,
        reads: Iterable[Path | str | None] = (),
        shared: bool = False,
    ):
        check_agreement(*inputs)
        check_apart(output, [artifact.folder for artifact in inputs] + [path for path in reads if path])
        self.kind, self.overwrite, self.shared, self.sources = kind, overwrite, shared, inputs
        is_named = Path(output).name not in ("", "..") and not Path(output).is_symlink()
        self.output = Path(output) if is_named else Path(output).resolve()
        if not self.output.name:
            raise UserError(f"--output {output} is the root of the file system; name a folder of its own.")
        self.lock = OutputLock(self.output)
        self.check_only = getattr(config, "check", False)
        self.partial = self.output.with_name(self.output.name + ".partial")
        self.config = _jsonable(dataclasses.asdict(config))
        direct_inputs = {artifact.name: artifact.fingerprint for artifact in inputs}
        self.inputs: dict[str, str] = {}
        for artifact in inputs:
            self.inputs |= artifact.inputs
        self.inputs |= direct_inputs
        deciding = {key: value for key, value in self.config.items() if key not in _placement_fields(config)}
        all_extra = (extra or {}) | _changed_fields(config)
        self.identity = _jsonable({"config": deciding, "inputs": direct_inputs, "extra": all_extra})
        self.facts: dict[str, Any] = {}
        self.is_writer, self.separate_disks, self.keeps_result = is_main_process(), False, True
        self.started = time.time()

    def is_finished(self) -> bool:
        """Tell whether the output exists and was made by this config from these inputs; logs it, or what changed.

        If it is not, the work begins: the lock of the output is taken, and the inputs are verified.

        Raises:
            UserError: the output folder, or the working folder, holds something else; another process writes the
                output; an input is damaged.
            SystemExit: with `--check`, if the work is not finished.
        """
        finished = self._is_finished()
        if self.check_only and not finished:
            sys.exit(1)
        if not finished:
            self._refuse_foreign_folder()
            if not self.shared:
                self.lock.acquire()
            if is_first_of_machine():  # which may have a disk of its own
                verify(*self.sources)
        else:
            self.remove_leftovers()
        return finished

    def remove_leftovers(self) -> None:
        """Remove what a run left that was killed after its artifact was in place, unless another process works here."""
        if self.lock.path.exists() or self._leftovers():
            with contextlib.suppress(UserError):  # another process holds the lock
                self.lock.acquire()
                self._recover()
                self.lock.release()

    def _is_finished(self) -> bool:
        if not self.output.exists():
            return False
        if self.output.is_dir() and not any(self.output.iterdir()):
            return False
        if not (self.output / MANIFEST).is_file():
            raise UserError(f"{self.output} exists and is no {self.kind}; name another output or remove it yourself.")
        if self.overwrite:
            _read_manifest(self.output, self.kind, f"Make it with: {command_for(self.kind, self.output)}")
            return False
        artifact = read(self.output, self.kind)
        difference = identity_difference(artifact.manifest["identity"], self.identity)
        if not difference:
            log.info(f"{self.kind}: finished, at {self.output} (--overwrite repeats it)")
            return True
        log.info(f"{self.kind}: made again, because {difference} changed")
        return False

    def _refuse_foreign_folder(self) -> None:
        """Refuse a working folder that no job has made.

        Raises:
            UserError: it would have to be deleted.
        """
        marks = (IDENTITY, f"{IDENTITY}.tmp", MANIFEST)
        if not self.partial.exists() and not self.partial.is_symlink():
            return
        is_ours = self.partial.is_dir() and not self.partial.is_symlink()
        if is_ours and any(self.partial.iterdir()):
            is_ours = any((self.partial / name).is_file() for name in marks)
        if not is_ours:
            raise UserError(
                f"{self.partial} is needed as a working folder, and no command of this project has made it. Move it "
                "away, or name another --output."
            )

    def refuse_change(self) -> None:
        """Refuse to replace output or unfinished work of another identity: for work too expensive to lose unasked.

        With `overwrite` the output may be of another identity: it is what unfinished work will replace.

        Raises:
            UserError: there is such work; the message names what differs.
        """
        identities = {self.partial: self.unfinished_identity()}
        if not self.overwrite:
            with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged manifest is reported by `read`
                identities[self.output] = json.loads((self.output / MANIFEST).read_text())["identity"]
        for folder, identity in identities.items():
            difference = identity_difference(identity, self.identity) if identity is not None else ""
            if difference:
                raise UserError(
                    f"{folder} holds {self.kind} of other settings: {difference} changed. Set these back to go on, "
                    "name another --output, or replace it with --overwrite."
                )

    @contextlib.contextmanager
    def write(self, resume: bool = False) -> Iterator[Path]:
        """Give a working folder that becomes the artifact when the block ends without an exception.

        With `resume`, a working folder left by a killed run of the same identity is kept and given again. After an
        error it is deleted where a later run could not go on from it.

        Raises:
            UserError: the disk is full.
        """
        self.lock.acquire()
        try:
            with report_full_disk(self.output):
                self.begin(resume and not self.overwrite)  # not deleted where this refuses a folder that is not ours
                with self._deleted_on_error(resume):
                    yield self.partial
                    if self.keeps_result:
                        self.finish()
                    else:
                        discard(self.partial)
        finally:
            self.lock.release()

    @contextlib.contextmanager
    def _deleted_on_error(self, resume: bool) -> Iterator[None]:
        """Delete the working folder after an error, unless a later run goes on from what it holds."""
        try:
            yield
        except (Exception, KeyboardInterrupt):
            if not resume or {path.name for path in self.partial.glob("*")} <= {IDENTITY, f"{IDENTITY}.tmp"}:
                discard(self.partial)
            raise

    def begin(self, resume: bool = False) -> None:
        """Create the working folder, the first half of `write`."""
        self._refuse_foreign_folder()
        self._recover()
        is_same = self.unfinished_identity() == self.identity
        if not (resume and is_same):
            discard(self.partial)
        elif not self.shared:  # others may be writing; `ShardQueue` removes these itself
            self._remove_temporary_files()
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if full_disk_reason(error) is not None:
                raise
            raise UserError(f"Cannot write to {self.output.parent}: {error.strerror}.") from None
        if not (self.partial / IDENTITY).is_file():
            self.sign(self.partial)

    def _remove_temporary_files(self) -> None:
        """Remove the files under temporary names that a killed run left: those of safetensors begin with `.tmp`."""
        for pattern in ("*.tmp", ".tmp*"):
            for path in self.partial.rglob(pattern):
                path.unlink()

    def _leftovers(self) -> list[Path]:
        """List the hidden folders that a killed `finish` or `discard` left."""
        old = hidden(self.output, "old")
        return [path for path in (old, hidden(old, "removed"), hidden(self.partial, "removed")) if path.exists()]

    def _recover(self) -> None:
        """Repair what a killed `finish` or `discard` left."""
        sweep(self.partial)
        old = hidden(self.output, "old")
        if old.exists() and not self.output.exists():  # killed between the two renames of `finish`
            os.replace(old, self.output)
        discard(old)

    def sign(self, folder: Path) -> None:
        """Write this job's identity into a working folder."""
        _write_text(folder / IDENTITY, json.dumps(self.identity, sort_keys=True))

    def unfinished_identity(self) -> dict[str, Any] | None:
        """Read the identity of the working folder that a killed run left; None where there is none."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.partial / IDENTITY).read_text())
        with contextlib.suppress(OSError, ValueError, KeyError):  # killed between the last two steps of `finish`
            return json.loads((self.partial / MANIFEST).read_text())["identity"]
        return None

    def finish(self) -> None:
        """Turn the working folder into the artifact, the second half of `write`; safe to repeat after a kill."""
        manifest = {
            "kind": self.kind,
            "schema": SCHEMA,
            "fingerprint": fingerprint(self.partial),
            "files": checksums.checksums(self.partial, leave_out=CHECKED_BY_INDEX),
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
        write_json(self.partial / MANIFEST, checksums.seal(_jsonable(manifest)))
        (self.partial / IDENTITY).unlink()
        old = hidden(self.output, "old")
        discard(old)
        if self.output.exists():
            os.replace(self.output, old)
        os.replace(self.partial, self.output)
        discard(old)
        log.info(f"{self.kind}: wrote {self.output} in {manifest['seconds']:.0f} s")


def identity_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name what differs between two identities: "lr (0.1 -> 0.2), input dataset"; empty where nothing does."""
    parts = []
    for section, word in (("config", ""), ("inputs", "input "), ("extra", "")):
        before, after = old.get(section, {}), new.get(section, {})
        for key in [*after, *sorted(before.keys() - after.keys())]:
            if before.get(key) != after.get(key):
                detail = f" ({before.get(key)} -> {after.get(key)})" if section == "config" else ""
                parts.append(f"{word}{key}{detail}")
    return ", ".join(parts)


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary name, so that readers see the old file or the new one."""
    _write_text(path, json.dumps(value, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _placement_fields(config: Any) -> set[str]:
    """List the fields that do not change the result: paths, devices, batch sizes of inference."""
    return {
        field.name
        for field in dataclasses.fields(config)
        if "Path" in str(field.type) or field.name == "overwrite" or field.metadata.get("identity", True) is not True
    }


def _changed_fields(config: Any) -> dict[str, Any]:
    """List the fields of `IF_CHANGED` that are not their defaults, by name."""
    values = {}
    for field in dataclasses.fields(config):
        if field.metadata.get("identity", True) == IF_CHANGED["identity"]:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if getattr(config, field.name) != default:
                values[field.name] = getattr(config, field.name)
    return values


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
