"""An Accelerate `Accelerator` that is really the engine that was asked for, and its trackers."""

from __future__ import annotations

import collections
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import filter_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed

from distill.runtime.errors import UserError

# what tells a process that it is one of several: torchrun's, and the usual MPI launchers'
WORLD = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def accelerator(
    accumulation: int = 1,
    precision: str = "no",
    seed: int = 0,
    clip: float | None = None,
    tracker: str = "none",
    logs: Path | None = None,
) -> Accelerator:
    """An Accelerator that is really what was asked for.

    Args:
        accumulation: batches of a process an optimiser step; overrides the launcher's.
        precision: "no", "bf16" or "fp16".
        seed: of Python's, NumPy's and torch's generators.
        clip: largest gradient norm, which DeepSpeed must know beforehand.
        tracker: where curves go: "none", "tensorboard", or another that Accelerate knows; begun by `start_tracker`.
        logs: the folder of the trackers that write files.

    Raises:
        UserError: several processes were asked for, or DeepSpeed or FSDP, and each would train alone; a tracker that
            is not installed.
    """
    _check_launch()
    on_cpus = not torch.cuda.is_available()
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if on_cpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for others, and warns
    if on_cpus and deepspeed:
        _deepspeed_on_cpus()
    # Accelerate reads it in place of the argument, and `accelerate config` writes it into every DeepSpeed config
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(accumulation)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    made = Accelerator(
        cpu=on_cpus and not deepspeed,
        gradient_accumulation_steps=accumulation,
        mixed_precision=precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpus and (several or deepspeed) else [],
        log_with=_known(tracker),
        project_config=ProjectConfiguration(logging_dir=str(logs)) if logs else None,
    )
    check_engine(made)
    if made.state.deepspeed_plugin is not None:
        settings = made.state.deepspeed_plugin.deepspeed_config
        # batches are made by token budget, so DeepSpeed cannot count them; the number is only for its own bookkeeping
        settings["train_micro_batch_size_per_gpu"] = 1
        settings["gradient_clipping"] = clip or 0.0
    set_seed(seed)
    return made


def _check_launch() -> None:
    """Refuse a process that a launcher started alone where several were asked for."""
    # `accelerate launch` says where the first process is only if there are several; on CPUs it leaves it to mpirun to
    # start them, and starts one where there is no mpirun
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if by_accelerate and not any(name in os.environ for name in WORLD):
        raise UserError(
            "Several processes were asked for, and one was started: on CPUs `accelerate launch` needs mpirun. Use\n"
            f"    torchrun --nproc_per_node N -- {os.path.relpath(sys.argv[0])} ...\n"
            "or unset MASTER_PORT if one process is meant; see configs/accelerate."
        )


def check_engine(made: Accelerator) -> None:
    """Refuse another engine, or fewer processes, than the launcher asked for.

    Raises:
        UserError: each process would train alone, or whole where it should be sharded.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    for engine in ("DEEPSPEED", "FSDP"):
        asked = os.environ.get(f"ACCELERATE_USE_{engine}") == "true"
        if asked and made.distributed_type.value != engine:
            raise UserError(
                f"{engine} was asked for, but {made.distributed_type.value} runs, with all weights on each of "
                f"{launched} processes"
                + (" (FSDP needs GPUs)" if engine == "FSDP" else "")
                + "; see configs/accelerate."
            )
    if made.num_processes != launched:
        raise UserError(f"{launched} processes were launched, but each would train alone; see configs/accelerate.")


def _deepspeed_on_cpus() -> None:
    """Settle what DeepSpeed would otherwise probe, and compile on first use."""
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "DeepSpeed was asked for and is not installed: pip install 'lohrec-distill[deepspeed]'."
        ) from None
    vars(deepspeed.ops).setdefault(
        "__compatible_ops__", collections.defaultdict(bool)
    )  # none; gloo and torch do it all


def share(batches: list, made: Accelerator) -> list:
    """This process's batches, in order.

    Optimiser step k takes the k-th `num_processes · gradient_accumulation_steps` batches, whoever computes them: two
    processes train as one that accumulates twice as many. The last ones are left out where they do not fill a step.
    """
    step = made.num_processes * made.gradient_accumulation_steps
    even = len(batches) // step * step
    return batches[made.process_index : even : made.num_processes]


def _known(tracker: str) -> str | None:
    if tracker == "none":
        return None
    try:
        found = filter_trackers([tracker], logging_dir=".")
    except ValueError as error:
        raise UserError(f"--tracker {tracker}: {error}.") from None
    if not found:
        raise UserError(f"--tracker {tracker}: it is not installed; pip install {tracker}, or --tracker none.")
    return tracker


def start_tracker(made: Accelerator, name: str, config: dict) -> None:
    """Begin to track; `made.log(values, step)` then adds to the curves, and `made.end_training()` closes them.

    Args:
        made: from `accelerator`.
        name: of the run; the folder in `logs`.
        config: its settings; what is no number, text or truth value is written as text.
    """
    plain = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in config.items()}
    made.init_trackers(name, plain)
