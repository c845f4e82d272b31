"""Build an Accelerate `Accelerator`, refuse one that runs another engine than was asked for, and start its trackers."""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed

from distill.runtime.errors import UserError
from distill.runtime.launch import has_count, process_count
from distill.runtime.machines import use_reachable_interface


def accelerator(
    accumulation: int = 1,
    precision: str = "no",
    seed: int = 0,
    clip: float | None = None,
    tracker: str = "none",
    logs: Path | None = None,
    separate_disks: bool = False,
) -> Accelerator:
    """Build the Accelerator that the launcher and the arguments ask for, and seed all generators.

    Args:
        accumulation: batches per process and optimiser step; overrides the launcher's.
        precision: "no", "bf16" or "fp16".
        seed: of Python's, NumPy's and torch's generators.
        clip: largest gradient norm, which DeepSpeed must know beforehand.
        tracker: where curves go: "none", "tensorboard", or another that Accelerate knows; see `start_tracker`.
        logs: the folder of trackers that write files.
        separate_disks: machines have disks of their own, where each keeps its shards of a checkpoint.

    Raises:
        UserError: the launcher asked for several processes, DeepSpeed or FSDP, and each process would train alone; a
            tracker that is not installed; FSDP on machines with disks of their own.
    """
    _check_launch()
    use_reachable_interface()
    on_cpu = not torch.cuda.is_available()
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for other devices, and warn
    if on_cpu and deepspeed:
        _prepare_deepspeed_on_cpu()
    # Accelerate prefers the variable to the argument, and `accelerate config` writes it into every DeepSpeed config
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(accumulation)
    several = process_count() > 1
    acc = Accelerator(
        cpu=on_cpu and not deepspeed,
        gradient_accumulation_steps=accumulation,
        mixed_precision=precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu and (several or deepspeed) else [],
        log_with=_tracker(tracker),
        project_config=ProjectConfiguration(logging_dir=str(logs)) if logs else None,
    )
    check_engine(acc)
    if acc.state.deepspeed_plugin is not None:
        settings = acc.state.deepspeed_plugin.deepspeed_config
        # DeepSpeed cannot count batches of a token budget; it uses the number for its own bookkeeping only
        settings["train_micro_batch_size_per_gpu"] = 1
        settings["gradient_clipping"] = clip or 0.0
        settings.setdefault("checkpoint", {})["use_node_local_storage"] = separate_disks
    elif separate_disks and acc.distributed_type.value == "FSDP":
        raise UserError(
            "FSDP's checkpoints need a disk that all machines share: share the run's folder, or use ZeRO-3."
        )
    set_seed(seed)
    return acc


def _check_launch() -> None:
    """Refuse a single process where `accelerate launch` was asked for several.

    On CPUs it leaves it to mpirun to start them, and starts one process where there is no mpirun. It sets MASTER_PORT
    only if several were asked for.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if by_accelerate and not has_count():
        raise UserError(
            "Several processes were asked for, and one was started: on CPUs `accelerate launch` needs mpirun. Use\n"
            f"    torchrun --nproc_per_node N -- {os.path.relpath(sys.argv[0])} ...\n"
            "or unset MASTER_PORT if one process is meant; see configs/accelerate."
        )


def check_engine(acc: Accelerator) -> None:
    """Refuse an Accelerator of another engine, or of fewer processes, than the launcher asked for.

    Raises:
        UserError: each process would train alone, or hold all weights where they should be sharded.
    """
    launched = process_count()
    actual = acc.distributed_type.value
    for engine in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{engine}") == "true" and actual != engine:
            reason = " (FSDP needs GPUs)" if engine == "FSDP" else ""
            raise UserError(
                f"{engine} was asked for, but {actual} runs, with all weights on each of {launched} processes"
                f"{reason}; see configs/accelerate."
            )
    if acc.num_processes != launched:
        raise UserError(f"{launched} processes were launched, but each would train alone; see configs/accelerate.")


def _prepare_deepspeed_on_cpu() -> None:
    """Tell DeepSpeed that it has no compiled operators, which it would otherwise probe and build on first use."""
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "DeepSpeed was asked for and is not installed: pip install 'lohrec-distill[deepspeed]'."
        ) from None
    vars(deepspeed.ops).setdefault("__compatible_ops__", collections.defaultdict(bool))  # gloo and torch suffice


def share(batches: Sequence, acc: Accelerator) -> Sequence:
    """Select this process's batches, in order.

    Optimiser step k takes the k-th `num_processes · gradient_accumulation_steps` batches, whichever process computes
    them: two processes train as one that accumulates twice as many. The last batches are dropped where they do not
    fill a step.
    """
    step = acc.num_processes * acc.gradient_accumulation_steps
    even = len(batches) // step * step
    return batches[acc.process_index : even : acc.num_processes]


def _tracker(name: str) -> str | None:
    """Return the tracker in the form that Accelerate takes.

    Raises:
        UserError: unknown or not installed.
    """
    if name == "none":
        return None
    # not by accelerate's filter_trackers: where a tracker is missing it logs, which fails before an Accelerator exists
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"--tracker is {name!r}; expected none or one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
    if name not in map(str, get_available_trackers()):
        raise UserError(f"--tracker {name}: it is not installed; pip install {name}, or --tracker none.")
    return name


def start_tracker(acc: Accelerator, name: str, config: dict) -> None:
    """Start the tracker; `acc.log(values, step)` then adds to the curves, and `acc.end_training()` closes them.

    Args:
        acc: from `accelerator`.
        name: of the run; the folder in `logs`.
        config: its settings; values that are no number, text or truth value are written as text.
    """
    plain = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in config.items()}
    acc.init_trackers(name, plain)
