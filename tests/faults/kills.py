"""Kills at every change to a file and at random moments, over nothing and over an older result; two runs at once."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

from distill.runtime.checksums import MANIFEST, find_damage, seal
from distill.runtime.locks import lock_path

from .processes import Forked
from .snapshot import differences, snapshot
from .trials import Trials

OLD_SEED = -1  # no command takes it, so a result that names it is of other settings


def try_kills(trials: Trials, every: int = 1, random: int = 0) -> None:
    """Kill the command at its changes to files and at random moments; where it replaces an older result, do so too.

    Args:
        trials: of a stage.
        every: kill at every Nth change.
        random: how many kills at uniformly random moments of the command's time.
    """
    outcome, _ = trials.whole
    for number in trials.choose(range(1, len(outcome.changes) + 1, every)):
        trials.start_over()
        kill_and_compare(trials, "kill", kill_at=number)
    for moment in trials.rng.uniform(0, outcome.seconds, random).tolist():
        trials.start_over()
        kill_and_compare(trials, "random", kill_after=moment)
    if trials.stage.is_artifact and not trials.stage.refuses_existing:
        kill_while_replacing(trials, every, random)


def kill_while_replacing(trials: Trials, every: int, random: int) -> None:
    """Do as `try_kills` where an older result is replaced: mostly at the changes from the manifest on."""
    whole = trials.whole
    trials.words = [*trials.words, "--overwrite"] if trials.stage.is_shared else trials.words
    put_older_result(trials)
    replacing = trials.run_to_end()
    assert replacing.code == 0, replacing.text
    trials.whole = replacing, snapshot(trials.shop.work)  # the manifest names the command
    others = [each for each in differences(trials.whole[1], whole[1]) if MANIFEST not in each]
    assert not others, others
    manifest = next(number for number, (_, path) in enumerate(replacing.changes, 1) if MANIFEST in path)
    numbers = [*range(1, manifest, every * 4), *range(manifest, len(replacing.changes) + 1, every)]
    for number in trials.choose(numbers):
        put_older_result(trials)
        kill_and_compare(trials, "replaced", kill_at=number)
    for moment in trials.rng.uniform(0, replacing.seconds, random).tolist():
        put_older_result(trials)
        kill_and_compare(trials, "replaced", kill_after=moment)
    trials.words, trials.whole = trials.stage.words(trials.shop), whole


def kill_and_compare(trials: Trials, kind: str, **options) -> None:
    """Kill the command, look whether a whole result is left where there was one, run it again and compare."""
    started = trials.run_to_end(**options)
    description = f"{options}, after {started.seconds:.2f} s"
    if started.code not in (-9, 0):
        trials.results.add(kind, "unkind", f"{description}: exit code {started.code}: {started.text[-500:]}")
        return
    if kind == "replaced" and not whole_results(trials):
        trials.results.add(kind, "lost", description)
        return
    trials.compare(kind, description)


def put_older_result(trials: Trials) -> None:
    """Start over with a whole result of other settings at the output's place."""
    trials.start_over()
    shutil.copytree(trials.shop.run / trials.stage.output, trials.output)
    path = trials.output / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["identity"]["config"]["seed"] = OLD_SEED
    path.write_text(json.dumps(seal(manifest)))


def whole_results(trials: Trials) -> list[Path]:
    """List the whole results below the working folder, old or new, under whatever name."""
    folders = []
    for path in trials.shop.work.rglob(MANIFEST):
        manifest = json.loads(path.read_text())
        if find_damage(path.parent, manifest["files"]) is None:
            folders.append(path.parent)
    return folders


def try_two_runs(trials: Trials) -> None:
    """Start the command twice, the second as soon as the first holds the output.

    The second ends with exit code 2 and names the first, or both share the work; the result is the same.
    """
    if not trials.stage.is_artifact:
        return
    expected, output, is_shared = trials.whole[1], trials.output, trials.stage.is_shared
    trials.start_over()
    first = Forked(trials.words, trials.shop.log, trials.shop.work)
    while not (is_joined(output) if is_shared else is_held(output)) and not first.has_ended():
        time.sleep(0.001)
    if not is_shared:
        os.kill(first.pid, signal.SIGSTOP)  # it may be faster than the second
    second = Forked(trials.words, trials.shop.log.with_suffix(".second"), trials.shop.work).wait()
    if not is_shared:
        os.kill(first.pid, signal.SIGCONT)
    end = first.wait()
    difference = differences(snapshot(trials.shop.work), expected)
    is_kind = second.code == 0 if is_shared else second.code == 2 and f"process {first.pid}" in second.text
    if not is_kind or end.code:
        trials.results.add("two_runs", "unkind", f"{second.code}, {end.code}: {second.text[-300:]}{end.text[-300:]}")
    else:
        trials.results.add("two_runs", "differing" if difference else "equal", ", ".join(difference[:5]))


def is_held(output: Path) -> bool:
    """Tell whether a process holds the lock of the output and has said so in it."""
    return lock_path(output).is_file() and lock_path(output).stat().st_size > 0


def is_joined(output: Path) -> bool:
    """Tell whether a process has joined an export."""
    return (output.with_name(f"{output.name}.partial") / "parts").is_dir()
