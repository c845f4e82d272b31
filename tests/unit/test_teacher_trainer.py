"""Parts of the teacher's loop: what batches weigh, what validation measures, when the run ends."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from test_resume import run
from test_tasks import make_shop, task_data
from transformers import AutoConfig, AutoModelForCausalLM, get_cosine_schedule_with_warmup

from distill.metrics import hit_ranks, ndcg, recall
from distill.runtime import errors
from distill.runtime.config import parse
from teacher import optimiser, trainer
from teacher.base_model import from_scratch
from teacher.batching import counted_tokens, make_batches
from teacher.config import Config, ValidationSettings
from teacher.engines.hf import HFEngine
from teacher.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    make_shop(folder, users=30)
    return folder


@pytest.fixture(scope="module")
def data(root, tmp_path_factory):
    return task_data(make_shop(tmp_path_factory.mktemp("shop"), users=30))


def test_counted_tokens(data):
    samples = data.epoch({"stream": 1.0, "item2index": 1.0}, 0, 0)
    groups = make_batches(samples, 60, np.random.default_rng(0))
    expected = [sum(int(samples[row].counted.sum()) for row in np.hstack(group)) for group in groups]
    assert len(groups) > 3 and counted_tokens(samples, groups).tolist() == expected


def test_weights_by_hand():
    """Two batches of 3 and 1 tokens with mean losses 2 and 6: the mean over tokens is (3·2 + 1·6) / 4 = 3."""
    makers = [
        SimpleNamespace(num_processes=1, gradient_accumulation_steps=2),
        SimpleNamespace(num_processes=2, gradient_accumulation_steps=1),
    ]
    counts = np.array([7, 9, 3, 1])
    for made in makers:
        weights = [trainer.batch_weight(number, counts, made) for number in (2, 3)]
        assert weights == [1.5, 0.5]
        assert np.mean([weights[0] * 2, weights[1] * 6]) == 3
    alone = SimpleNamespace(num_processes=1, gradient_accumulation_steps=1)
    assert [trainer.batch_weight(number, counts, alone) for number in range(4)] == [1.0] * 4


@pytest.fixture(scope="module")
def engine(data):
    torch.manual_seed(0)
    return HFEngine(from_scratch(data.tokenizer, SIZES, 64), data, "stream")


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("exclude_bought", [True, False, None])
def test_validate(engine, data, monkeypatch, exclude_bought, repeats):
    """Against all exact scores, of users taken one by one.

    The run's setting decides whether bought items may be recommended, whatever the training part says; without one,
    they are left out where the training part never has an item twice.
    """
    dataset, settings = data.dataset, ValidationSettings(valid_users=17, exclude_bought=exclude_bought)
    monkeypatch.setattr(type(dataset), "repeats", lambda _: repeats)
    found = trainer.validate(Accelerator(cpu=True), engine, dataset, settings)
    examples = dataset.examples("valid", 4)
    examples = examples.take(np.random.default_rng(0).permutation(len(examples))[:17])
    scores = engine.score_items(examples.histories)
    exact = scores[np.arange(17), examples.targets] / data.ids.levels
    assert found["valid_loss"] == pytest.approx(-exact.mean(), rel=1e-5)
    if exclude_bought or (exclude_bought is None and not repeats):
        for row, history in enumerate(examples.histories):
            scores[row, history[history >= 0]] = -np.inf
    ranks = hit_ranks(np.argsort(-scores, axis=1)[:, :10], examples.targets)
    assert found["valid_ndcg@10"] == pytest.approx(ndcg(ranks, 10).mean())
    assert found["valid_recall@10"] == recall(ranks, 10).mean()


def test_processes_share_the_users(engine, data):
    """What two processes gather is what one finds; the odd user is not counted twice."""
    settings = ValidationSettings(valid_users=17)
    parts = []
    for index in range(2):
        made = SimpleNamespace(
            num_processes=2, process_index=index, device="cpu", gather=lambda own: parts.append(own) or own
        )
        trainer.validate(made, engine, data.dataset, settings)
    assert [len(part) for part in parts] == [9, 9]
    values = torch.cat(parts)[:17].mean(0).tolist()
    alone = trainer.validate(Accelerator(cpu=True), engine, data.dataset, settings)
    assert values == pytest.approx(list(alone.values()))


def test_configs_choose_the_epoch_as_they_evaluate():
    """A run whose evaluate.yaml sets exclude_bought sets it in its teacher.yaml too."""
    checked = 0
    for path in ROOT.glob("configs/*/evaluate.yaml"):
        chosen = yaml.safe_load(path.read_text()).get("exclude_bought")
        teacher = parse(Config, argv=["--config", str(path.with_name("teacher.yaml"))])
        assert teacher.exclude_bought == chosen, path
        checked += chosen is not None
    assert checked


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 11), (1, 1)])
def test_schedule(warmup, steps):
    """Bit for bit that of transformers."""
    rates = []
    for make in (optimiser.warmup_cosine_schedule, get_cosine_schedule_with_warmup):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.3)
        schedule = make(optimizer, warmup, steps)
        rates.append([])
        for _ in range(steps + 1):
            rates[-1].append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
    assert rates[0] == rates[1] and len(set(rates[0])) > 1


def test_the_loop_does_not_import_bitsandbytes():
    """It warns on CPUs; neither full training nor the engine needs it. PEFT imports it."""
    code = "import sys, teacher.trainer; sys.exit(bool({'peft', 'bitsandbytes'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Failed to load" not in done.stderr, done.stderr


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (0, 4)])
def test_patience(root, tmp_path, monkeypatch, patience, epochs):
    values = iter([0.5, 0.4, 0.3, 0.2])
    monkeypatch.setattr(trainer, "validate", lambda *_: {"valid_ndcg@10": next(values)})
    teacher = run(root, tmp_path / "teacher", patience=patience, epochs=4, tasks={"stream": 1.0})
    assert len(json.loads((teacher.folder / "curve.json").read_text())) == epochs


def test_memory_that_does_not_suffice(root, tmp_path, monkeypatch):
    """One message, with knobs to turn; the artifact is not there."""

    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(trainer, "collate", fails)
    with pytest.raises(errors.UserError, match=r"Out of memory .*--batch_tokens .*--gradient_checkpointing .*qlora"):
        run(root, tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_kinds_of_bases(root, tmp_path, kind, mode):
    """A tiny random base without codewords: tuned, saved, read by the engine."""
    dataset, ids = make_shop(tmp_path / "shop")
    tokenizer = train_tokenizer(dataset.texts(), 300)
    if kind.startswith("qwen"):  # has no BOS, and ends with what it pads with
        tokenizer.bos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    config = AutoConfig.for_model(
        kind,
        **SIZES,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        tie_word_embeddings=kind == "qwen2" or kind.startswith("gemma"),
        pad_token_id=None,
        **({"head_dim": 8} if kind.startswith("gemma") else {}),
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    changes = {"tasks": {"seqrec": 1.0}, "prompt": "seqrec", "epochs": 2, "max_tokens": 128, "mode": mode}
    teacher = run(root, tmp_path / "teacher", base=str(tmp_path / "base"), **changes)
    curve = json.loads((teacher.folder / "curve.json").read_text())
    assert curve[1]["loss"] < curve[0]["loss"]
    engine = HFEngine.load(teacher.folder, dataset, ids)
    assert engine.model.config.model_type == kind
    lists, scores = engine.beams(np.array([[0, 1]]), 3)
    assert lists[0, 0] in {2, 3, 4, 5}
    prompt = engine.data.seqrec_prompt(np.array([0, 1]))
    forced = engine.data.item_tokens[lists[0, 0]]
    with torch.no_grad():  # soft-capped logits, where the model caps them
        log_probs = engine.model(torch.tensor([[*prompt, *forced]])).logits[0].log_softmax(-1)
    expected = log_probs[range(len(prompt) - 1, len(prompt) + len(forced) - 1), forced].sum().item()
    assert scores[0, 0] == pytest.approx(expected, abs=1e-4)


def base_of(root, folder, **sizes):
    """A tiny LLaMA without codewords, on disk."""
    tokenizer = train_tokenizer(make_shop(root)[0].texts(), 300)
    from_scratch(tokenizer, SIZES | sizes, 256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("changes", [{}, {"stream_title_items": 1}, {"title_loss": 0.1, "packing": True}], ids=str)
def test_a_teacher_that_reads_titles(root, tmp_path, changes):
    """teacher.json says in which form the teacher is asked; validation and engines ask so."""
    base = base_of(tmp_path / "shop", tmp_path / "base")
    more = {"base": base, "stream_titles": 4, "tasks": {"stream": 4.0}, "epochs": 2, "init_codewords": "text"}
    teacher = run(root, tmp_path / "teacher", **more | changes)
    facts = json.loads((teacher.folder / "teacher.json").read_text())
    assert facts["stream_titles"] == 4
    assert facts["stream_title_items"] == changes.get("stream_title_items", 0)
    curve = json.loads((teacher.folder / "curve.json").read_text())
    assert curve[1]["loss"] < curve[0]["loss"]
    dataset, ids = make_shop(tmp_path / "again", users=30)
    engine = HFEngine.load(teacher.folder, dataset, ids)
    prompt = engine.data.tokenizer.decode(engine.prompts(np.array([[0, 4]]))[0][0])
    assert prompt.count("\n") == changes.get("stream_title_items", 2) and f"{ids.text(4)}Long r" in prompt
    found = trainer.validate(Accelerator(cpu=True), engine, dataset, ValidationSettings(valid_users=10))
    kept = max(curve, key=lambda row: row["valid_ndcg@10"])
    assert found["valid_loss"] == pytest.approx(kept["valid_loss"], rel=1e-4)


def test_teachers_of_codewords_alone_say_nothing_of_titles(root, tmp_path):
    teacher = run(root, tmp_path / "teacher", tasks={"stream": 1.0}, epochs=1)
    assert json.loads((teacher.folder / "teacher.json").read_text()).keys() == {
        "prompt", "max_history", "max_tokens", "valid_ndcg@10",
    }  # fmt: skip
    assert teacher.manifest["facts"]["precision"] == "no"
