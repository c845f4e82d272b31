"""Launches: the configs ask for what their names say, and what would train otherwise is refused."""

import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from hypothesis import given
from hypothesis import strategies as st

from distill.runtime import accelerator, memory
from distill.runtime.config import parse
from distill.runtime.errors import UserError
from teacher.finetune import Config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
ENGINE = {
    "cpu": "NO",
    "ddp": "MULTI_GPU",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "zero3-offload": "DEEPSPEED",
    "fsdp": "FSDP",
    "multinode": "DEEPSPEED",
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No traces of another launch, and none left."""
    monkeypatch.setattr(
        os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MAST"))}
    )


def environment_of(path):
    """(arguments, environment of the processes) as `accelerate launch --config_file` makes them."""
    words = launch_command_parser().parse_args(["--config_file", str(path), "teacher/finetune.py"])
    words, defaults, mixed = _validate_launch_command(words)
    if words.use_deepspeed:
        fields = list(defaults.deepspeed_config) + ["mixed_precision"] * mixed
        words.deepspeed_fields_from_accelerate_config = ",".join(fields)
        return words, prepare_deepspeed_cmd_env(words)[1]
    if words.multi_gpu or words.use_fsdp:
        return words, prepare_multi_gpu_env(words)
    return words, prepare_simple_launcher_cmd_env(words)[1]


def test_every_engine_has_a_config():
    assert {path.stem for path in CONFIGS} == ENGINE.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_begin_with_their_command(path, monkeypatch):
    first = path.read_text().splitlines()[0]
    command = shlex.split(first.removeprefix("# "))
    assert first.startswith(f"# accelerate launch --config_file configs/accelerate/{path.name} ")
    monkeypatch.chdir(ROOT)
    words = launch_command_parser().parse_args(command[2:])
    assert words.training_script == "teacher/finetune.py"
    parse(Config, "demo/teacher.yaml", words.training_script_args)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_ask_for_their_engine(path, monkeypatch):
    words, environment = environment_of(path)
    stage = {"zero2": "2", "zero3": "3", "zero3-offload": "3", "multinode": "3"}.get(path.stem)
    assert environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == stage
    offloaded = "cpu" if "offload" in path.stem else "none" if stage else None
    assert environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE") == offloaded
    assert environment.get("FSDP_VERSION") == ("2" if path.stem == "fsdp" else None)
    assert words.num_machines == (2 if path.stem == "multinode" else 1)
    assert words.multi_gpu == (path.stem == "ddp")

    # what `check_engine` demands of the processes that start in this environment
    monkeypatch.setattr(os, "environ", environment)
    for kind in ("NO", "MULTI_CPU", "DEEPSPEED", "FSDP"):
        made = SimpleNamespace(distributed_type=DistributedType(kind), num_processes=1)
        if ENGINE[path.stem] in ("DEEPSPEED", "FSDP") and kind != ENGINE[path.stem]:
            with pytest.raises(UserError, match=f"{ENGINE[path.stem]} was asked for, but {kind} runs"):
                accelerator.check_engine(made)
        else:
            accelerator.check_engine(made)


def test_processes_that_know_nothing_of_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but each would train alone"):
        accelerator.check_engine(SimpleNamespace(distributed_type=DistributedType.NO, num_processes=1))


def test_the_launchers_accumulation_does_not_count(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    assert accelerator.accelerator(accumulation=3).gradient_accumulation_steps == 3


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 4))
def test_shares(n, processes, accumulation):
    """Step by step the processes take the batches in order; no process has more than another."""
    makers = [
        SimpleNamespace(num_processes=processes, gradient_accumulation_steps=accumulation, process_index=index)
        for index in range(processes)
    ]
    shares = [accelerator.share(list(range(n)), made) for made in makers]
    assert {len(share) for share in shares} == {n // (processes * accumulation) * accumulation}
    together = [batch for batches in zip(*shares, strict=True) for batch in batches]
    assert together == list(range(n // (processes * accumulation) * processes * accumulation))


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore."),
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
            MemoryError(),
        ],
    )
    def test_says_which_knob_to_turn(self, error):
        with pytest.raises(UserError, match=r"^Out of memory \(.+\); lower --batch_size\.$") as found:  # noqa: SIM117
            with memory.out_of_memory("lower --batch_size"):
                raise error
        assert not found.value.on_all_processes and "More" not in str(found.value)

    def test_for_real(self):
        with pytest.raises(UserError, match="Out of memory"), memory.out_of_memory("lower it"):
            torch.empty(2**60)

    def test_other_errors_pass(self):
        with pytest.raises(RuntimeError, match="shapes"), memory.out_of_memory("lower --batch_size"):
            raise RuntimeError("shapes do not match")


class TestTrackers:
    def test_writes_curves(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        made = accelerator.accelerator(tracker="tensorboard", logs=tmp_path)
        accelerator.start_tracker(made, "teacher", {"lr": 0.1, "tasks": {"stream": 1.0}, "base": None})
        made.log({"loss": 2.0}, 1)
        made.log({"loss": 1.5}, 2)
        made.end_training()
        events = EventAccumulator(str(tmp_path / "teacher")).Reload()
        assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.5)]

    def test_none(self, tmp_path):
        made = accelerator.accelerator(tracker="none", logs=tmp_path)
        accelerator.start_tracker(made, "teacher", {"lr": 0.1})
        made.log({"loss": 2.0}, 1)
        made.end_training()
        assert not list(tmp_path.iterdir())

    def test_unknown(self):
        with pytest.raises(UserError, match=r"--tracker is 'tensorbord'; expected none or one of aim, .*wandb"):
            accelerator.accelerator(tracker="tensorbord")

    def test_not_installed(self, monkeypatch):
        """Before any Accelerator exists too, where its library cannot log."""
        monkeypatch.setattr(accelerator, "get_available_trackers", list)
        PartialState._reset_state()
        with pytest.raises(UserError, match="--tracker wandb: it is not installed; pip install wandb"):
            accelerator.accelerator(tracker="wandb")
