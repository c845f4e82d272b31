from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt

from distill.runtime import config as configs
from distill.runtime.config import CONFIGS, JobSettings, parse, run, suggest
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """Of a network."""

    layers: list[int] = field(default_factory=lambda: [3])
    """Sizes."""


@dataclass(frozen=True)
class OptimiserSettings:
    """The optimiser.

    Not part of the title.
    """

    steps: PositiveInt = 10
    """Optimiser steps."""
    limit: PositiveInt | None = None
    """Examples."""
    decay: NonNegativeFloat = 0.0
    """Weight decay."""
    dropout: ClosedUnitInterval = 0.1
    """Share of units."""
    weights: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Weights by name."""


@dataclass(frozen=True)
class TrainConfig(OptimiserSettings, JobSettings):
    """Train something."""

    steps: PositiveInt = 30
    """Steps, more of them."""
    dry_run: bool = False
    """Write nothing."""
    exclude_bought: bool | None = None
    """Leave out the history."""


@dataclass(frozen=True)
class Config:
    """Do something."""

    run: Path = Path("runs/demo")
    """Folder of the run."""
    output: Path | None = None
    """Where it goes."""
    epochs: int = 20
    """Passes over the data."""
    lr: float = 1e-3
    """Learning rate."""
    mode: Literal["full", "lora"] = "full"
    """What trains."""
    tasks: dict[str, float] = field(default_factory=lambda: {"stream": 1.0})
    """Weights of tasks."""
    hidden: list[int] = field(default_factory=lambda: [8, 4])
    """Sizes."""
    seeds: list[int] | None = None
    """Once for each."""
    systems: list[str] = field(default_factory=list)
    """Names."""
    sizes: Sizes = field(default_factory=Sizes)
    """A network's."""
    overwrite: bool = field(default=False, metadata={"identity": False})
    """Repeat finished work."""


@pytest.fixture(autouse=True)
def demo(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "CONFIGS", tmp_path)
    (tmp_path / "demo.yaml").write_text("# a comment\nepochs: 3\ntasks:\n  stream: 2\n")
    return tmp_path


def test_without_config_the_demo_is_read():
    found = parse(Config, "demo.yaml", [])
    assert found == Config(epochs=3, tasks={"stream": 2.0})
    assert isinstance(found.run, Path) and isinstance(found.tasks["stream"], float)


@pytest.mark.parametrize("style", ["two words", "one word"])
def test_with_config_only_that_file_is_read(demo, style):
    path = demo / "mine.yaml"
    path.write_text("run: runs/mine\nlr: 1e-4\nhidden: [2]\n")
    words = ["--config", str(path)] if style == "two words" else [f"--config={path}"]
    assert parse(Config, "demo.yaml", words) == Config(run=Path("runs/mine"), lr=1e-4, hidden=[2])


def test_the_command_line_overrides_the_file_wherever_it_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 7\ndropout: 0.5\n")
    for place in (["--config", str(tmp_path / "a.yaml")], [f"--config={tmp_path / 'a.yaml'}"]):
        for words in ([*place, "--steps", "3"], ["--steps", "3", *place]):
            config = parse(TrainConfig, None, words)
            assert (config.steps, config.dropout) == (3, 0.5)


def test_the_command_line_wins(demo):
    words = ["--epochs", "7", "--mode=lora", "--output", "x/y"]
    assert parse(Config, "demo.yaml", words) == Config(epochs=7, mode="lora", output=Path("x/y"), tasks={"stream": 2.0})


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--seeds", "0,1,2"], {"seeds": [0, 1, 2]}),
        (["--seeds=0,1,2"], {"seeds": [0, 1, 2]}),
        (["--seeds", "[0, 1, 2]"], {"seeds": [0, 1, 2]}),
        (["--seeds", "0, 1"], {"seeds": [0, 1]}),
        (["--seeds", "3"], {"seeds": [3]}),
        (["--seeds", "-3,4", "--epochs", "7"], {"seeds": [-3, 4], "epochs": 7}),
        (["--seeds", "null"], {}),
        (["--systems", "tiger,dwr"], {"systems": ["tiger", "dwr"]}),
        (["--sizes.layers", "8,4", "--hidden=2,1"], {"sizes": Sizes([8, 4]), "hidden": [2, 1]}),
        (["--epochs", "7", "--seeds", "4,5", "--overwrite"], {"epochs": 7, "seeds": [4, 5], "overwrite": True}),
    ],
    ids=str,
)
def test_lists(words, changes):
    assert parse(Config, None, words) == Config(**changes)


@pytest.mark.parametrize(
    "words", [["--seeds", "0,x"], ["--seeds", ""], ["--seeds", "0.5,1"], ["--seeds", "--epochs", "3"]]
)
def test_lists_that_are_none(words):
    with pytest.raises(UserError, match="seeds"):
        parse(Config, None, words)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--dry_run"], {"dry_run": True}),
        (["--dry-run"], {"dry_run": True}),
        (["--dry_run", "true"], {"dry_run": True}),
        (["--dry_run=false"], {}),
        (["--dry-run=yes", "--exclude_bought"], {"dry_run": True, "exclude_bought": True}),
        (["--dry_run", "--steps", "3"], {"dry_run": True, "steps": 3}),
        (["--exclude-bought", "false"], {"exclude_bought": False}),
        (["--exclude_bought", "null", "--check"], {"check": True}),
        (["--weights", "llm=0.7,transitions=0.3"], {"weights": {"llm": 0.7, "transitions": 0.3}}),
        (["--weights=llm=0.7, transitions=0.3"], {"weights": {"llm": 0.7, "transitions": 0.3}}),
        (["--weights", '{"llm": 1}'], {"weights": {"llm": 1.0}}),
        (["--weights.llm", "2", "--weights.b=1"], {"weights": {"llm": 2.0, "b": 1.0}}),
    ],
    ids=str,
)
def test_short_forms(words, changes):
    assert parse(TrainConfig, None, words) == TrainConfig(**changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps is 0; expected a whole number of at least 1."),
        (["--steps", "2.5"], "--steps is 2.5; expected a whole number of at least 1."),
        (["--steps=many"], "--steps is many; expected a whole number of at least 1."),
        (["--limit", "-1"], "--limit is -1; expected a whole number of at least 1 or null."),
        (["--decay", "-0.5"], "--decay is -0.5; expected a number of at least 0."),
        (["--dropout", "1.5"], "--dropout is 1.5; expected a number from 0 to 1."),
        (["--weights", "llm=-1"], "--weights is -1; expected NAME=VALUE pairs, each value a number of at least 0."),
        (["--dry_run", "maybe"], "--dry_run is maybe; expected true or false."),
    ],
    ids=str,
)
def test_ranges_of_fields(words, message, demo):
    with pytest.raises(UserError) as error:
        parse(TrainConfig, None, words)
    assert str(error.value) == message


def test_ranges_hold_in_files_and_values_are_plain_numbers(demo):
    path = demo / "mine.yaml"
    path.write_text("steps: 0\n")
    with pytest.raises(UserError, match="--steps is 0; expected a whole number of at least 1"):
        parse(TrainConfig, None, ["--config", str(path)])
    path.write_text("steps: 4\ndecay: 1\nweights: {a: 2}\n")
    config = parse(TrainConfig, None, ["--config", str(path)])
    assert config == TrainConfig(steps=4, decay=1.0, weights={"a": 2.0})
    assert [type(value) for value in (config.steps, config.decay, config.weights["a"])] == [int, float, float]


def test_help_groups_the_fields_by_the_class_that_declares_them(capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, None, ["--help"])
    text = capsys.readouterr().out
    text = text[text.index("options:") :]
    places = [text.index(part) for part in ("Steps, more of them.", "The optimiser:", "Examples.", "Finished work:")]
    assert places == sorted(places)
    assert "Not part of the title" not in text and text.count("--steps") == 1


def test_jobs_can_be_checked():
    """scripts/run_pipeline.sh asks each command whether its work is finished."""
    from distill import export_soft_labels
    from student import baseline, train
    from teacher import finetune

    for config in (export_soft_labels.Config, train.Config, finetune.Config, baseline.BaselineConfig):
        assert issubclass(config, JobSettings), config.__module__


def test_students_take_seeds():
    from student import train

    assert parse(train.Config, None, ["--seeds", "0,1,2"]).seeds == [0, 1, 2]


def test_overwrite():
    assert parse(Config, "demo.yaml", ["--overwrite"]).overwrite is True
    assert parse(Config, "demo.yaml", []).overwrite is False


@pytest.mark.parametrize("words", [["--epoch_s", "4"], ["--epohcs=4"]])
def test_unknown_words_suggest_the_nearest(words):
    with pytest.raises(UserError, match=r"Unknown config key 'ep.*Did you mean 'epochs'\?"):
        parse(Config, "demo.yaml", words)


def test_unknown_keys_suggest_the_nearest(demo):
    path = demo / "mine.yaml"
    path.write_text("hiden: [2]\n")
    with pytest.raises(UserError, match=r"Unknown config key 'hiden'. Did you mean 'hidden'\? Available: run, output"):
        parse(Config, "demo.yaml", ["--config", str(path)])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--epochs", "many"], ["epochs", "many"]),
        (["--mode", "some"], ["mode", "some"]),
        (["--lr", "[1]"], ["lr"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_wrong_values_name_the_key(words, parts):
    with pytest.raises(UserError) as error:
        parse(Config, "demo.yaml", words)
    for part in parts:
        assert part in str(error.value)


def test_files_that_are_not_yaml(demo):
    path = demo / "mine.yaml"
    for text in ("epochs: [1\n", "just words\n"):
        path.write_text(text)
        with pytest.raises(UserError):
            parse(Config, "demo.yaml", ["--config", str(path)])


def test_help_shows_the_field_docs(capsys):
    with pytest.raises(SystemExit) as done:
        parse(Config, "demo.yaml", ["--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    for part in ("Do something.", "Passes over the data.", "--overwrite", "Learning rate.", "--config"):
        assert part in text


def test_a_mistake_of_the_user_ends_with_code_2(monkeypatch, capsys):
    def refuse(config):
        raise UserError("the dog ate it")

    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as done:
        run(refuse, Config, "demo.yaml")
    assert done.value.code == 2 and capsys.readouterr().err == "error: the dog ate it\n"
    monkeypatch.setenv("RANK", "1")  # one message, not one a process
    with pytest.raises(SystemExit) as done:
        run(refuse, Config, "demo.yaml")
    assert done.value.code == 2 and capsys.readouterr().err == ""


ONE_OF_SEVERAL = """
import atexit, sys
from dataclasses import dataclass
from distill.runtime.errors import UserError
from distill.runtime.config import run

class Held:
    def __del__(self):
        print("interpreter gone")

@dataclass(frozen=True)
class Config:
    code: int = 0

def main(config):
    if config.code:
        raise UserError("no")

held = Held()  # until the interpreter is taken down
atexit.register(print, "cleaned up")
run(main, Config, None, sys.argv[1:])
"""


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("processes, said", [("1", ["cleaned up", "interpreter gone"]), ("2", ["cleaned up"])])
def test_one_of_several_processes_leaves_the_interpreter_standing(code, processes, said):
    """Gloo's threads need it to let go of tensors; what others registered for the end is still done."""
    command = [sys.executable, "-c", ONE_OF_SEVERAL, *(["--code", str(code)] if code else [])]
    environment = os.environ | {"WORLD_SIZE": processes, "PYTHONPATH": str(CONFIGS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (code, said), done.stderr


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def stumble(config):
        raise KeyError("bug")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(KeyError):
        run(stumble, Config, "demo.yaml")


def test_suggest():
    assert suggest("tigr", ["tiger", "dwr"]) == "Did you mean 'tiger'? Available: tiger, dwr."
    assert suggest("zzz", ["tiger", "dwr"]) == "Available: tiger, dwr."


def test_names_that_light_entries_repeat():
    """`--help` and checks must not import torch, so entries hold the names of what the loops know."""
    from student import config as student_config
    from student.models import seq2seq
    from teacher import config, questions

    assert set(student_config.PRESETS) == set(seq2seq.PRESETS)
    assert ("stream", *questions.INSTRUCTIONS) == config.TASKS
