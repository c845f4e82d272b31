"""A run broken off anywhere ends as an unbroken one, bit by bit; and what stops or restarts a run."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from breaking_off import BrokenOffError, break_at
from safetensors.torch import load_file
from test_tasks import TITLES, make_shop

from distill.runtime import artifacts, checksums
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from teacher import trainer
from teacher.base_model import from_scratch
from teacher.config import TASKS, Config
from teacher.tokenizer import train_tokenizer

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
CONFIG = Config(
    sizes=SIZES,
    vocab_size=300,
    tasks=dict.fromkeys(TASKS, 0.7),
    epochs=3,
    batch_tokens=600,
    lr=0.01,
    attention_dropout=0.2,
    lora_dropout=0.2,
    token_dropout=0.2,
    crop=0.5,
    max_history=4,
    valid_users=10,
    patience=5,
    checkpoint_every=1,
    keep_checkpoints=2,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    make_shop(folder, users=30)
    tokenizer = train_tokenizer(TITLES, 300)
    from_scratch(tokenizer, SIZES, 256).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


def run(root, output, **changes):
    """Tune in this process; returns the artifact."""
    base = str(root / "base") if changes.get("mode") == "qlora" else None
    config = dataclasses.replace(CONFIG, **{"base": base, "precision": "no"} | changes)
    inputs = [artifacts.read(root / kind, kind) for kind in ("dataset", "semantic_ids")]
    stage = ArtifactJob("teacher", config, output, inputs)
    trainer.tune(config, inputs[0].folder, inputs[1].folder, stage)
    return artifacts.read(output, "teacher")


def steps_of(folder):
    return [int(path.name.removeprefix("step-")) for path in sorted((folder / "checkpoints").glob("step-*"))]


@pytest.fixture(scope="module")
def unbroken(root, tmp_path_factory):
    """Runs that nobody broke off: settings -> artifact."""
    folder, made = tmp_path_factory.mktemp("unbroken"), {}

    def get(**changes):
        key = str(changes)
        if key not in made:
            made[key] = run(root, folder / f"{len(made)}", **changes)
        return made[key]

    return get


@pytest.mark.parametrize(
    "changes", [{}, {"mode": "lora"}, {"mode": "qlora"}, {"accumulation": 2}, {"packing": True}], ids=str
)
@pytest.mark.parametrize("step", [5, 19])
def test_ends_as_an_unbroken_run(root, unbroken, tmp_path, monkeypatch, capsys, changes, step):
    output = tmp_path / "teacher"
    with monkeypatch.context() as patch:
        break_at(patch, step)
        with pytest.raises(BrokenOffError):
            run(root, output, **changes)
    assert not output.exists()
    assert steps_of(tmp_path / "teacher.partial") == [step - 1, step]  # the last two are kept
    last = tmp_path / f"teacher.partial/checkpoints/step-{step:08d}"
    state = json.loads((last / "state.json").read_text())
    assert state["batch"] > 0 and (state["epoch"] > 0) == (step == 19)  # in the middle of the first and a later epoch
    assert (last / "best.safetensors").is_file() == (step == 19)
    found = run(root, output, **changes)
    assert f"goes on from step {step} " in capsys.readouterr().err
    assert found.fingerprint == unbroken(**changes).fingerprint  # weights, curve, tokenizer: every byte
    assert not (output / "checkpoints").exists()
    curve = json.loads((output / "curve.json").read_text())
    assert [row["epoch"] for row in curve] == [1, 2, 3]


def test_the_best_epoch_lies_before_the_break(root, tmp_path, monkeypatch):
    values = iter([0.9, 0.1, 0.2] * 2)  # of the unbroken run, then of the two parts of the other
    monkeypatch.setattr(trainer, "validate", lambda *_: {"valid_ndcg@10": next(values)})
    whole = run(root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        break_at(patch, 19)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "broken")
    assert run(root, tmp_path / "broken").fingerprint == whole.fingerprint
    assert json.loads((tmp_path / "broken/teacher.json").read_text())["valid_ndcg@10"] == 0.9


def test_a_half_written_checkpoint_does_not_count(root, unbroken, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        break_at(patch, 4, half=True)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "teacher")
    found = run(root, tmp_path / "teacher")
    assert "goes on from step 3 " in capsys.readouterr().err
    assert found.fingerprint == unbroken().fingerprint


def test_checkpoints_change_nothing(root, unbroken, tmp_path):
    assert run(root, tmp_path / "teacher", checkpoint_every=0).fingerprint == unbroken().fingerprint


def test_another_config_starts_afresh(root, unbroken, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        break_at(patch, 4)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "teacher", lr=0.02, clip=0.5)
    found = run(root, tmp_path / "teacher")
    said = capsys.readouterr().err
    assert "had another lr (0.02 -> 0.01), clip (0.5 -> 1.0)" in said and "goes on" not in said
    assert found.fingerprint == unbroken().fingerprint


def test_another_number_of_processes_starts_afresh(root, unbroken, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        break_at(patch, 4)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "teacher")
    for path in (tmp_path / "teacher.partial/checkpoints").glob("step-*/state.json"):
        path.write_text(json.dumps(checksums.seal(json.loads(path.read_text()) | {"processes": 2})))
    found = run(root, tmp_path / "teacher")
    assert "starting afresh: step-00000004 has processes 2, this run 1" in capsys.readouterr().err
    assert found.fingerprint == unbroken().fingerprint


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_no_number_stops_the_run(root, tmp_path, monkeypatch, what):
    norms = iter([1.0, 1.0] + [float("nan") if what == "gradient norm" else 1.0] * 100)
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
    with pytest.raises(UserError, match=rf"The {what} is (nan|inf) in epoch 1") as error:
        run(root, tmp_path / "teacher", lr=1e36 if what == "loss" else 0.01)
    assert not (tmp_path / "teacher").exists()
    last = sorted((tmp_path / "teacher.partial/checkpoints").glob("step-*"))[-1]
    assert str(last) in str(error.value)
    if what == "gradient norm":  # seen before the step, so that no checkpoint holds what it does to the weights
        assert all(value.isfinite().all() for value in load_file(last / "model.safetensors").values())


def test_more_processes_than_batches(root, tmp_path):
    with pytest.raises(UserError, match="too few for 1 processes and --accumulation 99"):
        run(root, tmp_path / "teacher", accumulation=99)
    assert not (tmp_path / "teacher.partial").exists()
