"""finetune.py by its real command: killed and started again, refused, and asked what it would take."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

from distill.data.dataset import Dataset, write_dataset
from distill.runtime import artifacts, precision
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.config import parse
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, write_codes
from teacher.batching import collate, epoch_batches
from teacher.config import TASKS, Config
from teacher.estimate import flops_a_token, memory, plan
from teacher.finetune import main
from teacher.model import build_model, count_parameters
from teacher.tasks import TaskData
from teacher.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LEVELS, SIZE = 3, 8
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
SETTINGS = {
    "sizes": SIZES,
    "vocab_size": 320,
    "tasks": dict.fromkeys(TASKS, 1.0),
    "epochs": 5,
    "batch_tokens": 500,
    "token_dropout": 0.2,
    "attention_dropout": 0.1,
    "crop": 0.5,
    "max_history": 4,
    "valid_users": 10,
    "checkpoint_every": 3,
}


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make_run(root, texts=True, users=40, items=24):
    """A run's folder with a data set, semantic IDs and teacher.yaml."""
    rng = np.random.default_rng(0)
    names = [f"i{number}" for number in range(items)]
    columns = {"item_id": names}
    if texts:
        things = ["tent", "lamp", "rope", "kettle"]
        columns["title"] = [f"{things[number % 4]} number {number}" for number in range(items)]
        columns["categories"] = [things[number % 4] for number in range(items)]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        rows = [rng.integers(0, items, rng.integers(4, 8)) for _ in range(users)]
        write_dataset(folder, pa.table(columns), [f"u{user}" for user in range(users)], rows)
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids").write() as folder:
        write_codes(folder, names, rng.integers(0, SIZE, (items, LEVELS)))
        write_json(folder / "report.json", {"codebook_size": SIZE})
    write_json(root / "teacher.yaml", SETTINGS)  # JSON is YAML


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return folder


def words(root, *more):
    script = [sys.executable, ROOT / "teacher/finetune.py", "--config", root / "teacher.yaml", "--run", root]
    return [str(word) for word in [*script, *more]]


def command(root, *more):
    done = subprocess.run(words(root, *more), capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_killed_and_started_again(root, tmp_path):
    code, _, error = command(root, "--output", tmp_path / "whole")
    assert code == 0, error
    output, partial = tmp_path / "killed", tmp_path / "killed.partial"
    with subprocess.Popen(words(root, "--output", output), env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (partial / "checkpoints/step-00000012").is_dir():
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9 and not output.exists()
    code, _, error = command(root, "--output", output)
    assert code == 0, error
    assert int(re.search(r"goes on from step (\d+) ", error).group(1)) >= 12
    whole, killed = (artifacts.read(tmp_path / name, "teacher") for name in ("whole", "killed"))
    assert whole.fingerprint == killed.fingerprint  # every byte of every file
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert {path.name for path in output.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


class TestBadInput:
    """One clear message, exit code 2, nothing written."""

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--tasks.itemsaerch", "1"], "Did you mean 'itemsearch'?"),
            (["--tasks.seqrec", "-1"], "--tasks is -1; expected"),
            (["--prompt", "seqrec", "--tasks.seqrec", "0"], "not tuned on it"),
            (["--keep_checkpoints", "0"], "--keep_checkpoints is 0; expected"),
            (["--epochs", "0"], "--epochs is 0; expected"),
            (["--utilisation", "40"], "--utilisation is 40.0"),
            (["--chat", "true"], "give --base"),
            (["--folds", "3", "--fold", "3"], "--fold 3 of --folds 3"),
            (["--fold", "1"], "--fold 1 of --folds 0"),
            (["--mode", "qlora"], "give --base"),
            (["--init_codewords", "text"], "give --base"),
            (["--title_loss", "0.5"], "give --stream_titles"),
            (["--stream_title_items", "2"], "give --stream_titles"),
            (["--stream_titles", "-1"], "--stream_titles is -1; expected"),
            (["--stream_titles", "8", "--tasks.stream", "0", "--prompt", "seqrec"], "give tasks.stream"),
            (["--precision", "bf8"], "--precision"),
            (["--intentions", "/nowhere/user.json"], "Cannot read /nowhere/user.json"),
        ],
    )
    def test_what_needs_no_data(self, root, tmp_path, more, said):
        code, _, error = command(root, "--output", tmp_path / "teacher", *more)
        assert code == 2 and said in error
        assert not list(tmp_path.iterdir())

    def test_tasks_without_texts(self, tmp_path):
        make_run(tmp_path, texts=False)
        with pytest.raises(UserError, match="The task 'item2index' needs texts"):
            main(settings(tmp_path))
        with pytest.raises(UserError, match=r"--stream_titles 5: no item of .* has a text"):
            main(settings(tmp_path, tasks={"stream": 1.0}, stream_titles=5))
        make_base(tmp_path, tmp_path / "base")
        with pytest.raises(UserError, match=r"--init_codewords text: no item of .* has a text"):
            base = {"base": str(tmp_path / "base"), "precision": "no"}
            main(settings(tmp_path, tasks={"stream": 1.0}, init_codewords="text", **base))
        assert not list(tmp_path.glob("teacher*/"))


def settings(root, **changes):
    return replace(Config(run=root, **SETTINGS), **changes)


def identity_of(monkeypatch, config):
    """The identity of the work that `main` would do."""
    jobs = []
    monkeypatch.setattr(ArtifactJob, "is_finished", lambda job: jobs.append(job) or True)
    main(config)
    return jobs[0].identity


def test_options_of_text_are_in_the_identity_only_where_they_are_set(root, monkeypatch):
    """So that teachers of before are not trained again; "auto" without a base means float32 on any machine."""
    plain = identity_of(monkeypatch, settings(root))
    assert plain["config"]["precision"] == "no" and plain["extra"] == {}
    assert not {"stream_titles", "stream_title_items", "title_loss"} & plain["config"].keys()
    titled = identity_of(monkeypatch, settings(root, stream_titles=8, title_loss=0.5))
    assert titled["extra"] == {"stream_titles": 8, "title_loss": 0.5} and titled["config"] == plain["config"]
    assert identity_of(monkeypatch, settings(root, base="some/base"))["config"]["precision"] == "auto"


def test_a_base_that_reads_titles_by_its_command(root, tmp_path):
    """In bf16 where this machine has it, validation too; the loss falls."""
    make_base(root, tmp_path / "base")
    more = ["--base", tmp_path / "base", "--stream_titles", "6", "--init_codewords", "text", "--packing", "true"]
    code, _, error = command(root, "--output", tmp_path / "teacher", *more, "--lr", "0.01", "--checkpoint_every", "0")
    assert code == 0, error
    assert error.count("precision: ") == 1
    facts = json.loads((tmp_path / "teacher/manifest.json").read_text())["facts"]
    assert facts["precision"] == precision.choose_mixed_precision("auto", large=True)
    curve = json.loads((tmp_path / "teacher/curve.json").read_text())
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.1


def real(root, config):
    """(model, tokenizer, data) as the training builds them."""
    dataset = Dataset.load(root / "dataset")
    ids = SemanticIDs.load(root / "semantic_ids", dataset.n_items)
    model, tokenizer = build_model(config, dataset, ids, config.max_tokens, config.seed)
    return model, tokenizer, TaskData.of(config, dataset, ids, tokenizer)


def make_base(root, folder, **changes):
    """A base model: an untied LLaMA, without codewords."""
    config = AutoConfig.for_model("llama", **SIZES, vocab_size=330, tie_word_embeddings=False, **changes)
    LlamaForCausalLM(config).save_pretrained(folder)
    train_tokenizer(Dataset.load(root / "dataset").texts(), 330).save_pretrained(folder)


def scales(model):
    """What lies beside 4-bit weights."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


@pytest.mark.parametrize(
    ("mode", "base", "embeddings"),
    [
        ("full", False, "codewords"),
        ("lora", False, "codewords"),
        ("lora", False, "all"),
        ("full", True, "codewords"),
        ("lora", True, "codewords"),
        ("lora", True, "all"),
        ("qlora", True, "codewords"),
        ("qlora", True, "all"),
    ],
)
@pytest.mark.parametrize("packing", [False, True])
def test_the_plan_of_a_training_that_runs(root, tmp_path, mode, base, embeddings, packing):
    """Without a base the tables are tied, with this one they are not."""
    if base:
        make_base(root, tmp_path / "base")
    base = str(tmp_path / "base") if base else None
    config = settings(root, mode=mode, base=base, packing=packing, lora_embeddings=embeddings)
    found = plan(config, root / "dataset", root / "semantic_ids")
    model, _, data = real(root, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert found["parameters"] == count_parameters(model.parameters())
    assert found["trainable"] == sum(parameter.numel() for parameter in trained)

    samples, groups = epoch_batches(data, config, 0)
    assert (found["samples"], found["batches"], found["steps"]) == (len(samples), len(groups), len(groups))
    assert found["tokens"] == sum(len(samples[row].tokens) for row in range(len(samples)))
    assert found["tokens_padded"] == sum(collate(samples, group, 0)["input_ids"].size for group in groups)

    optimizer = torch.optim.AdamW(trained, fused=True)
    tokens = torch.from_numpy(samples[0].tokens.astype(np.int64))[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    size = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # noqa: E731
    stage = found["memory"][0]
    assert stage["weights"] == size(model.parameters()) + size(scales(model))
    assert len(found["memory"]) == (1 if mode == "qlora" else 4)
    assert stage["gradients"] == size(parameter.grad for parameter in trained)
    assert stage["optimiser"] == size(value for state in optimizer.state.values() for value in state.values())


def test_tied_and_untied_products(root, tmp_path):
    """N is what stands in matrix products: projections, norms, and the head once."""
    found = plan(settings(root), root / "dataset", root / "semantic_ids")
    assert found["in_products"] == found["parameters"]  # tied: the table is the head
    make_base(root, tmp_path)
    for mode in ("full", "lora"):
        found = plan(settings(root, base=str(tmp_path), mode=mode), root / "dataset", root / "semantic_ids")
        table = real(root, settings(root, base=str(tmp_path)))[0].get_input_embeddings().weight.numel()
        assert found["in_products"] == found["parameters"] - table - found["adapters"] - found["codeword_rows"]
        assert found["codeword_rows"] == (2 * LEVELS * SIZE * 16 if mode == "lora" else 0)


def test_formulas():
    found = {"parameters": 1000, "trainable": 100, "trainable_tensors": 5, "in_products": 800, "adapters": 60}
    found["trained_head"] = 0
    assert flops_a_token(found, "lora", False) == 3560 and flops_a_token(found, "lora", True) == 5280
    assert flops_a_token(found | {"trained_head": 40}, "lora", False) == 3640
    full = found | {"adapters": 0}
    assert flops_a_token(full, "full", False) == 4800 and flops_a_token(full, "full", True) == 6400
    rows = [memory(found, stage, 4, "bf16") for stage in range(4)]
    assert [row["weights"] for row in rows] == [4000, 2000, 2000, 500]
    assert [row["gradients"] for row in rows] == [400, 200, 50, 50]
    assert [row["optimiser"] for row in rows] == [820, 305, 305, 305]
    assert [memory(found, 3, 1, "no")[name] for name in ("weights", "gradients", "optimiser")] == [4000, 400, 820]


def test_llama_7b_without_its_weights(root, tmp_path):
    """Parameters by hand: LLaMA-7B's 6,738,415,616, two tables of new rows, their trained copies, the adapters."""
    new = LEVELS * SIZE * 4096
    adapters = 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    words = ["--base", "no/where", "--base_config", ROOT / "configs/llama-7b/config.json", "--mode", "lora"]
    code, out, error = command(root, *words, "--dry_run", "--gpus", "2", "--output", tmp_path / "teacher")
    assert code == 0 and "tokenizer is not on this machine" in error
    assert f"parameters        {6_738_415_616 + 2 * new + 2 * new + adapters:,}\n" in out
    assert f"{2 * new + adapters:,} (codeword rows {2 * new:,}, adapters {adapters:,})" in out
    assert not list(tmp_path.iterdir()) and {path.name for path in root.iterdir()} == {
        "dataset", "semantic_ids", "teacher.yaml",
    }  # fmt: skip


def test_llama_7b_with_whole_embeddings(root):
    """Both tables train in place: 32,000 rows and the codewords, of 4,096; the head's gradient is 2 FLOPs a weight."""
    table = (32_000 + LEVELS * SIZE) * 4096
    adapters = 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    file = ROOT / "configs/llama-7b/config.json"
    changes = {"base": "no/where", "base_config": file, "mode": "lora", "lora_embeddings": "all"}
    found = plan(settings(root, **changes), root / "dataset", root / "semantic_ids")
    assert found["trainable"] == 2 * table + adapters
    assert found["parameters"] == 6_738_415_616 + 2 * LEVELS * SIZE * 4096 + adapters
    assert found["trained_head"] == table
    assert found["memory"][0]["gradients"] == 4 * found["trainable"]
    rows = plan(settings(root, **changes | {"lora_embeddings": "codewords"}), root / "dataset", root / "semantic_ids")
    assert found["in_products"] == rows["in_products"]
    assert found["flops_a_token"] == rows["flops_a_token"] + 2 * table


def test_lc_recs_recipe(root, capsys):
    """The dry run takes the config; a step has 8 GPUs x 8 samples x 2 batches."""
    path = ROOT / "configs/llama-7b/teacher-lcrec.yaml"
    words = ["--config", path, "--run", root, "--dry_run", "--gpus", "8", "--task_samples.fusionseqrec", "3000"]
    config = parse(Config, argv=[str(word) for word in words])
    assert (config.lr, config.mode, config.epochs, config.id_eos) == (5e-5, "full", 4, True)
    assert (config.item_fields, config.search_preferences, config.prompt) == ("lcrec", True, "seqrec")
    assert 8 * config.batch_samples * config.accumulation == 128
    assert config.batch_tokens >= config.batch_samples * config.max_tokens  # so that every batch can have eight
    main(replace(config, base_config=ROOT / config.base_config))
    out = capsys.readouterr().out
    data = real(root, settings(root, max_history=20))[2]
    size = sum(data.sizes()[task] for task in ("seqrec", "item2index", "index2item", "itemsearch", "preferenceobtain"))
    assert f"samples           {size + 3000:,} an epoch" in out and f"{(size + 3000) // 8 // 16} an epoch" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "no/where"}, "give --base_config FILE"),
        ({"base": "no/where", "base_config": Path("none.json")}, "No config of a base model at 'none.json'"),
        ({"gpus": 1000}, "too few for 1000 GPUs"),
        ({"init_codewords": "codebook"}, "run with --init_codewords mean"),
        ({"max_tokens": 12}, "--max_tokens is 12"),
    ],
)
def test_a_dry_run_checks_the_config(root, capsys, changes, said):
    with pytest.raises(UserError, match=said):
        main(settings(root, dry_run=True, **changes))
    assert not capsys.readouterr().out
