"""Two processes train as one, sharded or not; launches that would not are refused; what dies leaves nothing half done.

Every launch is the real command. Curves and weights are compared with one process that accumulates two batches. Equal
means within 1e-4: sums of floats in another order, carried through some 50 steps of AdamW (seen: 1e-6).
"""

import json
import re
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from launchers import ACCELERATE, ENVIRONMENT, LAUNCHERS, LONG, ROOT, TORCHRUN, TWO_ON_CPUS
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from distill.data.dataset import write_dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.semantic_ids.ids import write_codes
from teacher.config import Config
from teacher.finetune import main
from teacher.tokenizer import train_tokenizer

LEVELS, SIZE, ITEMS, USERS = 3, 8, 40, 60
EPOCHS = 3
# wide enough that ZeRO-3 cuts the matrices: it leaves what has less than 1e5 numbers whole
SETTINGS = {
    "sizes": {
        "hidden_size": 320, "intermediate_size": 400, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "vocab_size": 320,
    "tasks": {"stream": 1.0, "seqrec": 0.5},
    "epochs": EPOCHS,
    "batch_tokens": 250,
    "lr": 0.002,
    "token_dropout": 0.2,
    "max_history": 4,
    "valid_users": 41,
    "patience": 0,
    "checkpoint_every": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run's folder with a data set, semantic IDs and teacher.yaml."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    names = [f"i{number}" for number in range(ITEMS)]
    with ArtifactJob("dataset", Nothing(), folder / "dataset").write() as made:
        rows = [rng.permutation(ITEMS)[: rng.integers(4, 8)] for _ in range(USERS)]
        write_dataset(made, pa.table({"item_id": names}), [f"u{user}" for user in range(USERS)], rows)
    with ArtifactJob("semantic_ids", Nothing(), folder / "semantic_ids").write() as made:
        write_codes(made, names, rng.integers(0, SIZE, (ITEMS, LEVELS)))
        write_json(made / "report.json", {"codebook_size": SIZE})
    write_json(folder / "teacher.yaml", SETTINGS)  # JSON is YAML
    return folder


def words(launcher, root, output, *more):
    script = [ROOT / "teacher/finetune.py", "--config", root / "teacher.yaml", "--run", root, "--output", output]
    return [str(word) for word in [*launcher, *script, *more]]


def launch(launcher, root, output, *more, **environment):
    """(exit code, what was said)."""
    done = subprocess.run(
        words(launcher, root, output, *more),
        capture_output=True,
        text=True,
        env=ENVIRONMENT | environment,
        timeout=400,
        cwd=root,
    )
    return done.returncode, done.stderr


def kill_one(launcher, root, output):
    """Kill the second process after some steps of the second epoch; returns the launch's exit code."""
    partial = output.with_name(output.name + ".partial")
    with subprocess.Popen(
        words(launcher, root, output), env=ENVIRONMENT, cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as launched:
        waited = time.time() + 120
        while launched.poll() is None and time.time() < waited and epoch_of(partial) < 1:
            time.sleep(0.01)
        children = psutil.Process(launched.pid).children(recursive=True)
        second = [child for child in children if child.environ().get("RANK") == "1"]
        second[0].send_signal(signal.SIGKILL)
        return launched.wait(timeout=120)


def epoch_of(partial):
    """Epoch of the last whole checkpoint, -1 without."""
    whole = [path for path in sorted((partial / "checkpoints").glob("step-*")) if path.suffix != ".partial"]
    try:
        return json.loads((whole[-1] / "state.json").read_text())["epoch"]
    except (IndexError, OSError):  # just removed
        return -1


def curve(teacher):
    """[epochs, values] without the epochs' numbers."""
    rows = json.loads((teacher / "curve.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    return np.array([[row[name] for name in sorted(row) if name != "epoch"] for row in rows])


@pytest.fixture(scope="module")
def one(root):
    """What one process makes of the same global batches."""
    output = root / "one"
    main(replace(Config(run=root, **SETTINGS), output=output, accumulation=2))
    return output


@pytest.fixture(scope="module")
def broken(root):
    """Launches with a process killed, then started again: engine -> (output, exit code, files left, messages)."""
    made = {}

    def get(engine):
        if engine not in made:
            output = root / f"{engine}-broken"
            code = kill_one(LAUNCHERS[engine], root, output)
            # the launcher's SIGTERM may end the first process before it removes its lock's file, which hinders nobody
            left = [path.name for path in root.glob(f"{output.name}*") if path.suffix != ".lock"]
            whole = [path for path in (root / f"{output.name}.partial/checkpoints").glob("step-*[0-9]")]
            assert all((path / "state.json").is_file() for path in whole)
            again, said = launch(LAUNCHERS[engine], root, output)
            assert again == 0, said
            made[engine] = output, code, left, said
        return made[engine]

    return get


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=LONG), "zero3"])
def test_a_process_dies(broken, engine):
    output, code, left, messages = broken(engine)
    assert code != 0
    assert left == [f"{output.name}.partial"]  # no artifact
    assert "goes on from step" in messages
    assert not (output / "checkpoints").exists()


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=LONG), "zero3"])
def test_two_processes_train_as_one(one, broken, engine):
    """Killed and started again in between."""
    output = broken(engine)[0]
    np.testing.assert_allclose(curve(output), curve(one), rtol=1e-4)
    assert artifacts.read(output, "teacher").inputs == artifacts.read(one, "teacher").inputs
    found, expected = (load_file(path / "model.safetensors") for path in (output, one))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)


def test_killed_or_not(root, broken):
    """Under DDP, the very same weights."""
    code, said = launch(LAUNCHERS["ddp"], root, root / "ddp", "--checkpoint_every", "0")
    assert code == 0, said
    for name in ("model.safetensors", "curve.json"):
        assert (root / "ddp" / name).read_bytes() == (broken("ddp")[0] / name).read_bytes()


@pytest.mark.parametrize(
    ("mode", "engine", "embeddings"),
    [
        pytest.param("lora", "zero3", "codewords", marks=LONG),
        ("lora", "zero3", "all"),
        ("full", "zero3", "codewords"),
        pytest.param("full", "ddp", "codewords", marks=LONG),
    ],
)
def test_a_base_on_two_processes(root, mode, engine, embeddings):
    """The loss at counted positions alone; under ZeRO-3 a base whose table grows. Adapters make larger steps: 1e-3.

    With whole embeddings also LC-Rec's options: samples do not depend on the process.
    """
    config = LlamaConfig(**SETTINGS["sizes"], vocab_size=320, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(root / "base")
    train_tokenizer(["-"], 320).save_pretrained(root / "base")
    lora = {"lora_dropout": 0.0, "lr": 0.005} if mode == "lora" else {"epochs": 3}
    changes = {"base": str(root / "base"), "precision": "no", "mode": mode, "lora_embeddings": embeddings} | lora
    if embeddings == "all":
        changes |= {"id_eos": True, "task_samples": {"seqrec": 50}, "batch_samples": 6}
    more = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    outputs = root / f"base-{mode}-{embeddings}-{engine}", root / f"base-{mode}-{embeddings}-one-{engine}"
    code, said = launch(LAUNCHERS[engine], root, outputs[0], *more)
    assert code == 0, said
    main(replace(Config(run=root, **SETTINGS | changes), output=outputs[1], accumulation=2))
    np.testing.assert_allclose(curve(outputs[0]), curve(outputs[1]), rtol=1e-3)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors")[: 2 if mode == "lora" else 1]:
        found, expected = (load_file(output / name) for output in outputs)
        assert found.keys() == expected.keys()
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], atol=1e-3, err_msg=key)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=LONG)])
def test_each_process_loads_its_share_of_a_base(tmp_path, tied):
    """Half of every layer, and whole token tables, into which rows are written before they are cut."""
    LlamaForCausalLM(LlamaConfig(**SETTINGS["sizes"], vocab_size=320, tie_word_embeddings=tied)).save_pretrained(
        tmp_path
    )
    words = [*LAUNCHERS["zero3"], Path(__file__).with_name("load_base.py"), tmp_path, tmp_path]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=ENVIRONMENT, timeout=400)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    assert first == second and first["tables"] == [[320, 320]] * (1 if tied else 2)
    matrices = {"q_proj": 320 * 320, "o_proj": 320 * 320, "up_proj": 320 * 400, "down_proj": 320 * 400}
    for name, size in matrices.items():
        assert [held for key, held in first["held"].items() if name in key] == [size // 2]
    torch.manual_seed(0)
    assert first["random_number"] == torch.rand(()).item()


def test_no_number_stops_the_launch(root):
    output = root / "nan"
    code, said = launch(TORCHRUN, root, output, "--lr", "1e36", "--checkpoint_every", "1")
    assert code != 0
    assert re.search(r"error( in process 1)?: The (loss|gradient norm) is (nan|inf) in epoch 1; lower --lr", said), said
    assert not output.exists() and epoch_of(root / "nan.partial") == 0
    assert "The last checkpoint is" in said


class TestRefused:
    """Launches that would train something else than was asked for."""

    def test_one_process_in_place_of_several(self, root, tmp_path):
        """On CPUs Accelerate leaves the starting to mpirun, and starts one process without."""
        config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "use_cpu": True,
                  "num_processes": 2, "num_machines": 1, "machine_rank": 0, "mixed_precision": "no"}  # fmt: skip
        write_json(tmp_path / "multi_cpu.yaml", config)
        launcher = [*ACCELERATE, "--config_file", tmp_path / "multi_cpu.yaml"]
        self.refused(root, tmp_path, launcher, "Several processes were asked for, and one was started")

    def test_whole_in_place_of_sharded(self, root, tmp_path):
        """FSDP 2 without a GPU: two copies that never meet."""
        launcher = [*ACCELERATE, "--config_file", ROOT / "configs/accelerate/fsdp.yaml", *TWO_ON_CPUS]
        self.refused(root, tmp_path, launcher, "FSDP was asked for, but ", CUDA_VISIBLE_DEVICES="")

    @staticmethod
    def refused(root, tmp_path, launcher, message, **environment):
        code, said = launch(launcher, root, tmp_path / "teacher", **environment)
        assert code != 0 and message in said, said
        assert not list(tmp_path.glob("teacher*"))
