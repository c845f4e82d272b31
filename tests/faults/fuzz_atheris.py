"""Coverage-guided fuzzing of one target by atheris, which sees the branches that an input takes in the code.

An input of atheris is a byte that chooses the file of the target's seed, and the content that replaces it: best for
text and JSON. It stops at the first fault.
"""

import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from .fuzz_contract import Files, judge


def explore(name: str, inputs: int, seed: int, kept: Path | None) -> NoReturn:
    """Fuzz a target; ends the process, with an exit code other than 0 where there was a fault.

    Args:
        name: of the target.
        inputs: how many.
        seed: of libFuzzer.
        kept: folder for the input that is a fault, in the form of corpus/; None: it is only printed.
    """
    import atheris

    with atheris.instrument_imports(include=["distill", "student", "teacher"]):
        from .fuzz_targets import TARGETS
    from .fuzz import corpus, keep

    target = TARGETS[name]
    valid = target.seed()
    names = sorted(valid)

    def check(data: bytes) -> None:
        files: Files = valid | ({names[data[0] % len(names)]: data[1:]} if data else {})
        outcome = judge(target, files)
        if outcome.verdict == "fault":
            if kept:
                keep(kept, target, f"atheris-{seed}", files)
            raise RuntimeError(outcome.detail)

    with tempfile.TemporaryDirectory(prefix="fuzz-atheris-") as folder:
        starts = [("seed", valid), *corpus(target)]
        for number, (_, files) in enumerate(starts):
            for place, file in enumerate(names):
                (Path(folder) / f"{number}-{place}").write_bytes(bytes([place]) + files[file])
        atheris.Setup([sys.argv[0], folder, f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=4096"], check)
        atheris.Fuzz()
    sys.exit(0)
