"""Fuzz every reader: give it mutated valid inputs, and report what it neither reads rightly nor refuses kindly.

    python -m tests.faults.fuzz --inputs 50000 --seed 0 --output results.json
    python -m tests.faults.fuzz --target lcrec --inputs 1000 --keep new-faults
    python -m tests.faults.fuzz --target lcrec --inputs 100000 --atheris     # coverage-guided: pip install atheris

Input N of a target depends on the seed and N alone. Every target runs in a process of its own, so that a crash of a
library is a fault like others. Exit code 1 where there are faults.
"""

import argparse
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, as under pytest

from tqdm import tqdm

from .fuzz_contract import Files, Outcome, Target, judge
from .fuzz_mutations import mutate

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CORPUS = Path(__file__).with_name("corpus")


def input_of(target: Target, seed: int, number: int) -> Files:
    """Make input `number` of a target."""
    return mutate(target.seed(), Random(f"{seed} {target.name} {number}"))


def corpus(target: Target) -> Iterator[tuple[str, Files]]:
    """Yield (name, input) of what was found before: the seed, with the files of a folder in place of its own."""
    for folder in sorted((CORPUS / target.name).glob("*/")):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        yield folder.name, target.seed() | files


def keep(folder: Path, target: Target, name: str, files: Files) -> None:
    """Write the files of an input that are not the seed's, in the form that `corpus` reads."""
    seed = target.seed()
    for file, content in files.items():
        if content != seed.get(file):
            path = folder / target.name / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def work(target: Target, seed: int, first: int, last: int, report: "Connection") -> None:
    """Judge inputs and report each: the body of a process."""
    for number in range(first, last):
        report.send(("begins", number))
        report.send(("ends", number, judge(target, input_of(target, seed, number))))
    report.send(("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def run_target(target: Target, seed: int, inputs: int) -> Iterator[tuple[int, Outcome] | int]:
    """Judge all inputs of a target; yields (number, outcome), and at the end the process's peak memory in MiB."""
    from multiprocessing import Pipe

    first = 0
    while first < inputs:
        receive, send = Pipe(duplex=False)
        child = os.fork()
        if child == 0:
            receive.close()
            try:
                work(target, seed, first, inputs, send)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        send.close()
        running, peak = None, None
        while True:
            try:
                message = receive.recv()
            except EOFError:
                break
            if message[0] == "begins":
                running = message[1]
            elif message[0] == "ends":
                running = None
                first = message[1] + 1
                yield message[1], message[2]
            else:
                peak = message[1]
        status = os.waitpid(child, 0)[1]
        if peak is not None:
            yield peak
        elif running is not None:
            word = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit status {status}"
            yield running, Outcome("fault", f"the process ended with {word}", 0.0)
            first = running + 1
        else:
            raise RuntimeError(f"{target.name}: the process ended between two inputs")


def fuzz(targets: list[Target], seed: int, inputs: int, kept: Path | None) -> list[dict[str, Any]]:
    """Fuzz targets in turn; returns a row of figures each, with every distinct fault."""
    total = sum(target.share for target in targets)
    counts = {target.name: max(1, round(inputs * target.share / total)) for target in targets}
    rows = []
    with tqdm(total=sum(counts.values()), unit="input", mininterval=2) as bar:
        for target in targets:
            bar.set_description(target.name)
            verdicts: Counter[str] = Counter()
            faults: dict[str, dict[str, Any]] = {}
            slowest, peak, started = 0.0, 0, time.monotonic()
            for result in run_target(target, seed, counts[target.name]):
                if isinstance(result, int):
                    peak = max(peak, result)
                    continue
                number, outcome = result
                bar.update()
                verdicts[outcome.verdict] += 1
                slowest = max(slowest, outcome.seconds)
                if outcome.verdict == "fault":
                    place = signature(outcome.detail)
                    fault = faults.setdefault(place, {"first": number, "inputs": 0, "detail": outcome.detail})
                    fault["inputs"] += 1
                    if kept and fault["inputs"] <= 3:
                        keep(kept, target, f"{seed}-{number}", input_of(target, seed, number))
            rows.append(
                {"target": target.name, "inputs": counts[target.name]}
                | {word: verdicts[word] for word in ("refused", "accepted", "fault")}
                | {"slowest_s": round(slowest, 2), "peak_mib": peak, "seconds": round(time.monotonic() - started, 1)}
                | {"faults": list(faults.values())}
            )
    return rows


def signature(detail: str) -> str:
    """Shorten a fault to its last place and its error, so that the same fault is reported once."""
    *places, error = detail.strip().splitlines()
    return f"{places[-1] if places else ''} {error[:60]}"


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the figures as a table, and each distinct fault."""
    columns = ("target", "inputs", "refused", "accepted", "fault", "slowest_s", "peak_mib", "seconds")
    sums = {name: sum(row[name] for row in rows) for name in ("inputs", "refused", "accepted", "fault", "seconds")}
    most = {name: max(row[name] for row in rows) for name in ("slowest_s", "peak_mib")}
    for row in [dict(zip(columns, columns, strict=True)), *rows, {"target": "all"} | sums | most]:
        print(f"{row['target']:26}" + "".join(f"{row[name]:>10}" for name in columns[1:]))
    for row in rows:
        for fault in row["faults"]:
            print(f"\n{row['target']}: input {fault['first']} and {fault['inputs'] - 1} more\n{fault['detail']}")


def main() -> None:
    """Parse the command line, fuzz, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000, help="inputs in all, shared among the targets")
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    parser.add_argument("--keep", type=Path, help="folder for inputs that are faults, in the form of corpus/")
    parser.add_argument("--atheris", action="store_true", help="coverage-guided, one target, until the first fault")
    options = parser.parse_args()
    if options.atheris:
        from .fuzz_atheris import explore

        explore((options.target or ["lcrec"])[0], options.inputs, options.seed, options.keep)
    from .fuzz_targets import TARGETS

    unknown = set(options.target or []) - TARGETS.keys()
    if unknown:
        parser.error(f"unknown target {min(unknown)}; there are {', '.join(TARGETS)}")
    targets = [TARGETS[name] for name in options.target or TARGETS]
    rows = fuzz(targets, options.seed, options.inputs, options.keep)
    print_rows(rows)
    if options.output:
        options.output.write_text(json.dumps({"seed": options.seed, "targets": rows}, indent=1) + "\n")
    sys.exit(any(row["fault"] for row in rows))


if __name__ == "__main__":
    main()
