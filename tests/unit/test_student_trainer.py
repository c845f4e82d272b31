"""The students' training: one loss whatever the split and the number of passes; runs that are resumed."""

import dataclasses
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from breaking_off import BrokenOffError, break_at
from safetensors.torch import load_file
from student_shop import FEATURES, ITEMS, LEVELS, SIZE, K, Nothing, make_prior, make_shop, write_labels

from distill.data.dataset import Dataset
from distill.decoding.trie import Trie
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.artifacts import write_json
from distill.runtime.config import parse
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, write_codes
from student import train, trainer, variants
from student.batches import BatchSampler
from student.config import Config
from student.models import BACKBONES
from student.models.seq2seq import PRESETS
from student.objective import anneal, batch_loss
from student.recommender import Recommender
from student.variants import Loss

LENGTHS = [3, 4, 5, 6, 9, 13, 4, 4, 7, 3, 3, 8, 5, 5, 21, 6, 4]
CONFIG = Config(
    batch_size=8, candidates=K, max_history=4, epochs=2, ranker_epochs=1, valid_users=10, dropout=0.2, width=5,
    margin=0.3, checkpoint_every=1, buffer_rows=60,
    tracker="none",
)  # fmt: skip
LOSSES = {
    "nll": Loss("nll"),
    "smooth": Loss("smooth"),
    "distill": Loss("distill"),
    "rank": Loss(None, rank=True),
    "dwr": Loss("distill", rank=True),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    make_shop(folder, LENGTHS)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    sizes = {"d_model": 16, "d_ff": 24, "heads": 2, "d_head": 8}
    monkeypatch.setitem(PRESETS, "demo", sizes | {"encoder_layers": 1, "decoder_layers": 1})
    monkeypatch.setitem(BACKBONES["causal"][2], "demo", sizes | {"layers": 2})
    monkeypatch.setitem(BACKBONES["nested"][2], "demo", sizes | {"outer": 2, "layers": 1})


def network(backbone, seed=0, **changes):
    torch.manual_seed(seed)
    network, config, presets = BACKBONES[backbone]
    return network(config(LEVELS, SIZE, dropout=0.0, **(presets["demo"] | changes)))


def losses_of(root, model, loss, one_pass, **changes):
    """Summed parts of every global batch's loss, and the summed gradients."""
    config = dataclasses.replace(CONFIG, **changes)
    dataset = Dataset.load(root / "dataset")
    store = LabelStore.open(root / "soft_labels") if loss.needs_labels else None
    codes = torch.from_numpy(SemanticIDs.load(root / "semantic_ids", dataset.n_items).codes)
    trie = Trie.build(codes.numpy(), SIZE) if config.scope == "trie" else None
    model.zero_grad()
    values = [0.0]
    for batch in BatchSampler(dataset, store, loss, one_pass, config).batches(0):
        value = batch_loss(model, loss, batch, codes, loss.rank, config, trie)
        value.backward()
        values[-1] += value.item()
        if batch.last:
            values.append(0.0)
    return values[:-1], {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def agree(expected, others):
    np.testing.assert_allclose(expected[0], others[0], rtol=1e-5)
    for name, value in expected[1].items():
        assert value.abs().sum() > 0, name
        torch.testing.assert_close(value, others[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", ["causal", "nested"])
@pytest.mark.parametrize(("loss", "scope"), list(itertools.product(LOSSES, ["level", "all", "trie"])))
def test_one_pass_trains_as_prefix_by_prefix(root, loss, scope, backbone):
    """All examples in one batch: equal loss and gradient."""
    changes = {
        "scope": scope, "batch_size": 10**4, "buffer_rows": 10**6, "rank_positions": "all",
        "long_histories": "prefixes", "alpha": 0.3, "confidence": 0.5, "rank_within": 4,
    }  # fmt: skip
    model = network(backbone)
    ones, others = (losses_of(root, model, LOSSES[loss], one_pass, **changes) for one_pass in (True, False))
    assert len(ones[0]) == 1
    agree(ones, others)


@pytest.mark.parametrize("backbone", ["seq2seq", "nested"])
def test_over_the_tries_children_the_loss_is_the_mean_log_probability_of_the_target(root, backbone):
    """As the trained student scores all items: of each example's target, divided by the levels; smoothed by hand."""
    dataset = Dataset.load(root / "dataset")
    codes = SemanticIDs.load(root / "semantic_ids", dataset.n_items).codes
    model = network(backbone).eval()
    facts = {"backbone": backbone, "scope": "trie", "max_history": 4}
    student = Recommender(model, codes, *[[str(item) for item in range(len(codes))]] * 2, facts=facts)
    examples = dataset.examples("train", 4)
    scores = student.score_items(examples.histories)[np.arange(len(examples)), examples.targets]
    values, _ = losses_of(root, model, Loss("nll"), False, scope="trie", batch_size=10**4)
    np.testing.assert_allclose(values, [-scores.mean() / LEVELS], rtol=1e-5)
    smoothed = []
    for history, target in zip(examples.histories, examples.targets, strict=True):
        history_codes = torch.from_numpy(codes[history[history >= 0]])[None]
        log_probs = model(history_codes, torch.from_numpy(codes[target])[None, None])[0, 0].tolist()
        for level, row in enumerate(log_probs):
            prefix = (codes[:, :level] == codes[target, :level]).all(1)
            siblings = set(codes[prefix, level].tolist())
            total = math.log(sum(math.exp(row[code]) for code in siblings))
            weights = {code: 0.1 / max(len(siblings) - 1, 1) for code in siblings} | {codes[target, level]: 0.9}
            smoothed.append(sum(-weight * (row[code] - total) for code, weight in weights.items()))
    values, _ = losses_of(root, model, Loss("smooth"), False, scope="trie", batch_size=10**4)
    np.testing.assert_allclose(values, [np.mean(smoothed)], rtol=1e-5)


@pytest.fixture(scope="module")
def deep_root(tmp_path_factory):
    """Labels with the states of two layers of the teacher."""
    folder = tmp_path_factory.mktemp("deep")
    make_shop(folder, LENGTHS, feature_layers=(2, 5))
    return folder


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("loss", "layers"), [("distill", 1), ("dwr", 1), ("dwr", 2)])
def test_guessed_states_add_their_loss(root, deep_root, backbone, loss, layers):
    """1 − cos to the states less the first shard's mean, at the targets; in one pass as prefix by prefix."""
    root = deep_root if layers == 2 else root
    store, depth = LabelStore.open(root / "soft_labels"), {"seq2seq": "decoder_layers"}.get(backbone, "layers")
    deep = {"feature_layers": 2, depth: 3} if layers == 2 else {}
    model = network(backbone, features=FEATURES, **deep)
    assert (store.features, store.feature_layers) == (FEATURES, layers)
    assert store.load().states(slice(0)).shape == (0, LEVELS, layers, FEATURES)
    changes = {"batch_size": 10**4, "buffer_rows": 10**6, "rank_positions": "all", "long_histories": "prefixes"}
    changes |= {"confidence": 0.0, "rank_within": 0}  # equal weights
    usual = losses_of(root, model, LOSSES[loss], False, **changes)[0][0]
    guessed = losses_of(root, model, LOSSES[loss], False, **changes, feature_weight=2.0)
    if backbone != "seq2seq":
        agree(guessed, losses_of(root, model, LOSSES[loss], True, **changes, feature_weight=2.0))
    dataset, block = Dataset.load(root / "dataset"), store.load()
    codes = torch.from_numpy(SemanticIDs.load(root / "semantic_ids", dataset.n_items).codes)
    rows = {key: row for row, key in enumerate(zip(block.users.tolist(), block.positions.tolist(), strict=True))}
    mean = next(store.blocks(1)).states().mean(0)
    examples, guesses, total = dataset.examples("train", 4), [], 0.0
    model.feature_head.register_forward_hook(lambda *call: guesses.append(call[2]))
    for row, (history, target) in enumerate(zip(examples.histories, examples.targets, strict=True)):
        model(codes[history[history >= 0]][None], codes[target][None, None])
        label = rows[int(examples.users[row]), int(examples.positions[row])]
        states = torch.from_numpy(block.states([label]) - mean)[0]
        guess = guesses.pop()[0]
        assert guess.shape == states.shape == (LEVELS, layers, FEATURES)
        total += (1 - torch.nn.functional.cosine_similarity(guess, states, dim=-1)).mean().item()
    assert guessed[0][0] - usual == pytest.approx(2 * total / len(examples), rel=1e-4)


def test_item_kl_over_a_list_of_all_items_is_the_divergence_over_the_catalogue(tmp_path):
    """KL(P ‖ Q) of distributions over all items, Q as the trained student scores them; in one pass and by prefixes."""
    make_shop(tmp_path, LENGTHS)
    dataset = Dataset.load(tmp_path / "dataset")
    codes = SemanticIDs.load(tmp_path / "semantic_ids", dataset.n_items).codes
    examples, rng = dataset.examples("train", 4), np.random.default_rng(3)
    probabilities = rng.dirichlet(np.full(ITEMS, 0.3), len(examples)).clip(1e-9)
    probabilities /= probabilities.sum(1, keepdims=True)
    others = np.stack([np.delete(np.argsort(-row), np.argsort(np.argsort(-row))[target])
                       for row, target in zip(probabilities, examples.targets, strict=True)])  # fmt: skip
    candidates = np.concatenate([examples.targets[:, None], others], axis=1)
    scores = np.log(np.take_along_axis(probabilities, candidates, 1)).astype(np.float32)
    log_probs = np.full((len(examples), LEVELS, SIZE), -np.log(SIZE))
    shutil.rmtree(tmp_path / "soft_labels")
    inputs = [artifacts.read(tmp_path / kind, kind) for kind in ("dataset", "semantic_ids")]
    with artifacts.ArtifactJob("soft_labels", Nothing(), tmp_path / "soft_labels", inputs).write() as folder:
        write_labels(folder, examples, codes, candidates, scores, log_probs, keep=ITEMS)
    model = network("nested").eval()
    facts = {"backbone": "nested", "scope": "trie", "max_history": 4}
    student = Recommender(model, codes, *[[str(item) for item in range(ITEMS)]] * 2, facts=facts)
    student_log_probs = student.score_items(examples.histories, exclude_bought=False)
    expected = (probabilities * (np.log(probabilities) - student_log_probs)).sum(1).mean()
    settings = {
        "scope": "trie", "list_loss": "item_kl", "candidates": ITEMS, "batch_size": 10**4, "rank_positions": "all",
        "long_histories": "prefixes", "confidence": 0.0, "rank_within": 0,
    }  # fmt: skip
    for one_pass in (True, False):
        values, _ = losses_of(tmp_path, model, LOSSES["rank"], one_pass, **settings)
        np.testing.assert_allclose(values, [expected], rtol=1e-4)


def test_reversed_sequences_learn_their_items(root):
    """All of them reversed: DISTILL is equation (8), and nothing is ranked."""
    changes = {"batch_size": 10**4, "buffer_rows": 10**6, "reverse": 1.0}
    model = network("causal")
    plain = losses_of(root, model, LOSSES["nll"], True, **changes)
    for loss in ("distill", "dwr"):
        agree(losses_of(root, model, LOSSES[loss], True, **changes), plain)
    backwards, straight = plain[0], losses_of(root, model, LOSSES["nll"], True, **(changes | {"reverse": 0.0}))[0]
    assert abs(backwards[0] - straight[0]) > 1e-4


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("loss", ["nll", "distill", "dwr"])
def test_accumulation_is_a_larger_batch(root, backbone, loss):
    """Batches of unequal lengths, cut in two: equal losses and gradients, step by step."""
    model, one_pass = network(backbone), backbone != "seq2seq"
    ones = losses_of(root, model, LOSSES[loss], one_pass, batch_size=8)
    others = losses_of(root, model, LOSSES[loss], one_pass, batch_size=4, accumulation=2)
    assert len(ones[0]) > 1
    agree(ones, others)


@pytest.mark.parametrize("backbone", ["causal", "seq2seq"])
def test_two_processes_learn_the_states_of_layers_as_one(deep_root, backbone):
    """Their parts add up, batch by batch."""
    depth = {"seq2seq": "decoder_layers"}.get(backbone, "layers")
    model, sums = network(backbone, features=FEATURES, feature_layers=2, **{depth: 3}), []
    for processes, batch_size in ((1, 8), (2, 4)):
        config = dataclasses.replace(CONFIG, batch_size=batch_size, feature_weight=2.0)
        dataset, store = Dataset.load(deep_root / "dataset"), LabelStore.open(deep_root / "soft_labels")
        codes = torch.from_numpy(SemanticIDs.load(deep_root / "semantic_ids", dataset.n_items).codes)
        parts = []
        for process in range(processes):
            more = backbone != "seq2seq", config, process, processes
            batches = BatchSampler(dataset, store, LOSSES["distill"], *more).batches(0)
            parts.append([batch_loss(model, LOSSES["distill"], each, codes, False, config).item() for each in batches])
        sums.append(np.sum(parts, axis=0))
    assert len(sums[0]) > 1
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-5)


def test_a_sampled_position_stands_for_all(root):
    """On average over draws, the ranking loss of one position a sequence is that of all."""
    model, changes = network("causal"), {"batch_size": 10**4, "buffer_rows": 10**6}
    exact = losses_of(root, model, LOSSES["rank"], True, rank_positions="all", **changes)[0]
    drawn = [
        losses_of(root, model, LOSSES["rank"], True, rank_positions="one", seed=seed, **changes)[0]
        for seed in range(60)
    ]
    assert np.std(drawn) > 0
    assert abs(np.mean(drawn) - exact[0]) < 4 * np.std(drawn) / 60**0.5


def run(root, output, variant="dwr", **changes):
    """Train in this process; returns the artifact."""
    config = dataclasses.replace(CONFIG, run=root, output=output, variant=variant, **changes)
    train.main(config)
    return artifacts.read(output, "student")


@pytest.mark.parametrize(
    ("variant", "backbone", "step", "phase", "changes"),
    [
        ("dwr", "causal", 2, "retriever", {"drop_items": 0.2}),
        ("dwr", "seq2seq", 13, "retriever", {}),
        ("dtr", "seq2seq", 5, "ranker", {"accumulation": 2, "batch_size": 4}),
        ("dtr", "causal", 3, "ranker", {}),
        ("dtr", "nested", 3, "ranker", {}),
    ],
)
def test_ends_as_an_unbroken_run(root, tmp_path, monkeypatch, capsys, variant, backbone, step, phase, changes):
    changes = changes | {"backbone": backbone}
    whole = run(root, tmp_path / "whole", variant, **changes)
    with monkeypatch.context() as patch:
        break_at(patch, step, phase)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "broken", variant, **changes)
    assert not (tmp_path / "broken").exists()
    actual = run(root, tmp_path / "broken", variant, **changes)
    assert f"{variant} {phase}: goes on from step {step} " in capsys.readouterr().err
    assert actual.fingerprint == whole.fingerprint  # weights, curve: every byte
    names = {"manifest.json", "config.json", "model.safetensors", "items.parquet", "trie.safetensors", "curve.json"}
    names |= {"ranker.safetensors"} if variant == "dtr" else set()
    assert {path.name for path in (tmp_path / "broken").iterdir()} == names


@pytest.mark.parametrize(
    ("rows", "variant", "message"),
    [
        ((50, 20), "distill", "starting afresh: step-00000002 has buffer_rows 50, this run 20"),
        ((10**4, 10**5), "distill", "goes on from step 2 "),  # more than there are labels: one block
        ((50, 20), "tiger", "goes on from step 2 "),  # which reads no labels
    ],
)
def test_another_division_of_the_labels_trains_every_example_once(
    root, tmp_path, monkeypatch, capsys, rows, variant, message
):
    """Broken off in the middle of an epoch; a finished student is not stale."""
    before, after = ({"backbone": "causal", "batch_size": 4, "buffer_rows": number} for number in rows)
    whole = run(root, tmp_path / "whole", variant, **after)
    with monkeypatch.context() as patch:
        break_at(patch, 2)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "broken", variant, **before)
    actual = run(root, tmp_path / "broken", variant, **after)
    assert actual.fingerprint == whole.fingerprint
    assert message in capsys.readouterr().err
    run(root, tmp_path / "broken", variant, **before)
    assert "finished" in capsys.readouterr().err


def test_the_ranker_is_the_same_if_broken_off_before_its_first_checkpoint(root, tmp_path, monkeypatch):
    """The random generators go on from the end of the retriever's phase."""
    whole = run(root, tmp_path / "whole", "dtr", backbone="causal")

    def broken(*_):
        raise BrokenOffError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "clone_for_ranker", broken)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "broken", "dtr", backbone="causal")
    assert run(root, tmp_path / "broken", "dtr", backbone="causal").fingerprint == whole.fingerprint


@pytest.mark.parametrize("moment", ["phase.json", "ranker.safetensors", "curve.json"])
def test_broken_off_between_the_files_of_a_phase(root, tmp_path, monkeypatch, moment):
    whole = run(root, tmp_path / "whole", "dtr", backbone="causal", epochs=1)
    real = trainer.write_json

    def broken(path, value):
        if path.name == moment:
            raise BrokenOffError
        real(path, value)

    with monkeypatch.context() as patch:
        if moment == "ranker.safetensors":
            patch.setattr("student.recommender.save_file", lambda *_: broken(tmp_path / moment, None))
        patch.setattr(trainer, "write_json", broken)
        with pytest.raises(BrokenOffError):
            run(root, tmp_path / "broken", "dtr", backbone="causal", epochs=1)
    assert run(root, tmp_path / "broken", "dtr", backbone="causal", epochs=1).fingerprint == whole.fingerprint


def test_checkpoints_change_nothing(root, tmp_path):
    ones = run(root, tmp_path / "with", "distill")
    others = run(root, tmp_path / "without", "distill", checkpoint_every=0)
    assert ones.fingerprint == others.fingerprint


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_no_number_stops_the_run(root, tmp_path, monkeypatch, what):
    norms = iter([1.0, 1.0] + [float("nan") if what == "gradient norm" else 1.0] * 100)
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
    with pytest.raises(UserError, match=rf"The {what} is (nan|inf) in epoch 1") as error:
        run(root, tmp_path / "student", "tiger", lr=1e36 if what == "loss" else 0.01)
    assert not (tmp_path / "student").exists()
    last = sorted((tmp_path / "student.partial/checkpoints").glob("step-*"))[-1]
    assert str(last) in str(error.value)
    if what == "gradient norm":  # seen before the step, so that no checkpoint holds what it does to the weights
        assert all(value.isfinite().all() for value in load_file(last / "model.safetensors").values())


def test_patience(root, tmp_path, monkeypatch):
    def epochs(values, **changes):
        actual = iter(values)
        monkeypatch.setattr(trainer, "validate", lambda *_: next(actual))
        run(root, tmp_path / str(changes), "tiger", epochs=5, **changes)
        return len(json.loads((tmp_path / str(changes) / "curve.json").read_text())["retriever"])

    assert epochs([0.3, 0.2, 0.1, 0.4, 0.5], patience=2) == 3
    assert epochs([0.3, 0.2, 0.1, 0.4, 0.5], patience=0) == 5


def test_the_best_epoch_is_kept(root, tmp_path, monkeypatch):
    values, kept = iter([0.1, 0.9, 0.2]), []

    def validate(_, model, *__):
        kept.append(trainer.copy_trained_weights(model))
        return next(values)

    monkeypatch.setattr(trainer, "validate", validate)
    run(root, tmp_path / "student", "tiger", epochs=3)
    actual = load_file(tmp_path / "student/model.safetensors")
    assert all(torch.equal(value, kept[1][name]) for name, value in actual.items())
    assert not all(torch.equal(value, kept[2][name]) for name, value in actual.items())


def test_seeds(root, tmp_path, capsys):
    config = dataclasses.replace(CONFIG, run=root, output=tmp_path / "tiger", seeds=[0, 3], epochs=1)
    train.main(config)
    message = capsys.readouterr().err
    assert "validation NDCG@10" in message and "(seed 3)" in message and "±" in message
    seeds = [json.loads((tmp_path / f"tiger-seed{seed}/config.json").read_text())["seed"] for seed in (0, 3)]
    assert seeds == [0, 3]
    alone = run(root, tmp_path / "alone", "tiger", seed=3, epochs=1)
    assert alone.fingerprint == artifacts.read(tmp_path / "tiger-seed3", "student").fingerprint


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("tiger", {"labels": "top"}),
        ("tiger", {"labels": "random", "backbone": "causal"}),
        ("smooth", {"labels": "rank", "backbone": "causal", "rank_positions": "all"}),
        ("dwr-without-distill", {"scope": "all"}),
        ("dwr", {"backbone": "nested", "scope": "trie", "list_loss": "listnet", "temperature_end": 1.0}),
        ("dtr", {"backbone": "nested", "list_loss": "dpo", "alpha_end": 0.5, "prefix_weight": 0.1}),
        ("dtr", {"backbone": "causal", "feature_weight": 0.5}),
        ("dwr", {"backbone": "causal", "scope": "all", "reverse": 0.5, "shuffle": 2, "drop_items": 0.1}),
        ("tiger", {"backbone": "causal", "reverse": 0.5, "shuffle": 2, "drop_items": 0.1}),
        ("dwr-smooth", {"prior": "pseudo", "soft_labels": Path("nowhere"), "candidates": 16}),
        ("dtr-smooth", {"prior": "pseudo", "backbone": "causal", "reverse": 0.5}),
        ("dwr", {"alpha": 0.5, "confidence": 0.5, "rank_within": 2, "rank_from": 0.5, "temperature": 2.0}),
    ],
    ids=str,
)
def test_every_option_trains(root, tmp_path, variant, changes):
    run(root, tmp_path / "student", variant, **changes)
    curve = json.loads((tmp_path / "student/curve.json").read_text())["retriever"]
    assert len(curve) == 2 and all(np.isfinite(row["loss"]) for row in curve)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("tiger", {"backbone": "nested"}),
        ("tiger", {"backbone": "causal"}),
        ("dwr", {"backbone": "nested", "accumulation": 2}),
        ("dtr", {"backbone": "causal", "list_loss": "grpo"}),
        ("dwr-smooth", {"backbone": "nested", "prior": "pseudo", "candidates": 16}),
    ],
    ids=str,
)
def test_batches_that_would_lose_all_targets_train(root, tmp_path, variant, changes):
    """In batches of one sequence most would: it keeps one."""
    run(root, tmp_path / "student", variant, epochs=1, drop_items=0.9, batch_size=1, checkpoint_every=0, **changes)
    curves = json.loads((tmp_path / "student/curve.json").read_text()).values()
    assert all(0 < row["loss"] < 100 for curve in curves for row in curve)


@pytest.fixture(scope="module")
def one_level_root(tmp_path_factory):
    """A shop whose items have one codeword each, as the quantiser iid gives them."""
    folder = tmp_path_factory.mktemp("iid")
    make_shop(folder, LENGTHS)
    dataset, codes = Dataset.load(folder / "dataset"), np.arange(ITEMS)[:, None]
    examples, store = dataset.examples("train"), LabelStore.open(folder / "soft_labels").load()
    labels = store.candidates(), store.scores(), np.full((len(examples), 1, ITEMS), -np.log(ITEMS))
    names = dataset.items["item_id"].to_pylist()
    for kind in ("semantic_ids", "soft_labels"):
        shutil.rmtree(folder / kind)
    data = artifacts.read(folder / "dataset", "dataset")
    with artifacts.ArtifactJob("semantic_ids", Nothing(), folder / "semantic_ids", [data]).write() as partial:
        write_codes(partial, names, codes)
        write_json(partial / "report.json", {"codebook_size": ITEMS})
    inputs = [data, artifacts.read(folder / "semantic_ids", "semantic_ids")]
    with artifacts.ArtifactJob("soft_labels", Nothing(), folder / "soft_labels", inputs).write() as partial:
        write_labels(partial, examples, codes, *labels, levels=1, codebook_size=ITEMS)
    return folder


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("variant", ["dwr", "dtr"])
def test_items_of_one_codeword_train(one_level_root, tmp_path, variant, backbone):
    """And dtr's ranker re-scores beams of one codeword."""
    run(one_level_root, tmp_path / "student", variant, backbone=backbone, epochs=1)
    student = Recommender.from_pretrained(tmp_path / "student")
    lists, scores = student.rank_items(np.array([[1, 2, -1], [3, -1, -1]]), 5)
    assert (lists >= 0).all() and np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "dwr", "candidates": 6}, "--candidates asks for 6"),
        ({"variant": "dtw"}, "Did you mean 'dt?w?r'"),
        ({"variant": "distill", "labels": "top"}, "its labels are of the real next item's codewords"),
        ({"candidates": 1}, "--candidates is 1; it must be at least 2"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"variant": "dwr", "list_loss": "dpo"}, "give --reference STUDENT, or take --variant dtr"),
        ({"labels": "rank", "list_loss": "s_dpo"}, "give --reference STUDENT"),
        ({"variant": "dtr", "reference": Path("nowhere")}, "--reference is for --list_loss dpo, s_dpo, grpo"),
        ({"variant": "dwr", "list_loss": "grpo"}, "starts from a trained retriever: --variant dtr, not dwr"),
        ({"variant": "dtr", "prior": "pseudo", "list_loss": "grpo"}, "--prior pseudo would not be read"),
        ({"backbone": "sasrec", "list_loss": "dpo"}, "--list_loss dpo compares students of semantic IDs"),
        ({"variant": "dwr", "prior": "pseudo", "list_loss": "item_kl"}, "has none; take --list_loss margin"),
        ({"variant": "dwr", "prior": "pseudo", "scope": "trie"}, "--scope trie needs candidates of the catalogue"),
    ],
)
def test_bad_input(root, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.main(dataclasses.replace(CONFIG, run=root, output=tmp_path / "student", **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha", "1.5"), ("batch_size", "0"), ("lr", "0.0"), ("patience", "-1"), ("confidence", "-0.5")],
)
def test_values_out_of_range(option, value):
    with pytest.raises(UserError, match=f"--{option} is {value}; expected a (whole )?number"):
        parse(Config, None, [f"--{option}", value])


@pytest.fixture
def priors(tmp_path):
    make_shop(tmp_path, LENGTHS)
    for name in ("distance", "statistics"):
        make_prior(tmp_path, f"soft_labels-{name}", name, seed=len(name))
    return tmp_path


@pytest.mark.parametrize("variant", ["dwr", "dtr"])
def test_a_prior_is_trained_and_part_of_the_identity(priors, capsys, variant):
    """Finished work is not repeated, another order gives another student, and one table may hold them all."""
    changes = {"variant": variant, "epochs": 1, "backbone": "causal", "rank_positions": "all"}
    actual = {
        prior: run(priors, priors / "students" / prior, **changes, prior=prior)
        for prior in ("teacher", "distance", "statistics")
    }
    assert len({artifact.fingerprint for artifact in actual.values()}) == 3
    curves = [json.loads((artifact.folder / "curve.json").read_text()) for artifact in actual.values()]
    if variant == "dtr":  # the retriever phase ranks nothing
        assert len({curve["retriever"][0]["loss"] for curve in curves}) == 1
        assert len({curve["ranker"][0]["loss"] for curve in curves}) == 3
    assert {"soft_labels", "soft_labels/distance"} <= actual["distance"].inputs.keys()
    artifacts.check_agreement(*actual.values())
    run(priors, priors / "students/distance", **changes, prior="distance")
    assert "student: finished" in capsys.readouterr().err
    make_prior(priors, "soft_labels-distance", "distance", seed=77)
    run(priors, priors / "students/distance", **changes, prior="distance")
    assert "because input soft_labels/distance changed" in capsys.readouterr().err


@pytest.mark.parametrize("one_pass", [True, False])
def test_where_a_plain_teacher_knows_the_target_as_well_the_target_is_learnt(priors, one_pass):
    """One example a batch: each has the loss of the hard label (α 1) or of the distribution (α 0)."""
    dataset, store = Dataset.load(priors / "dataset"), LabelStore.open(priors / "soft_labels")
    plain = LabelStore.open(priors / "soft_labels-distance")
    codes, model = torch.from_numpy(SemanticIDs.load(priors / "semantic_ids", dataset.n_items).codes), network("nested")
    config = dataclasses.replace(CONFIG, batch_size=1, confidence=0.0, rank_within=0)

    def batches(loss, plain=None):
        return list(BatchSampler(dataset, store, loss, one_pass, config, plain=plain).batches(0))

    def values(batches, alpha):
        options = dataclasses.replace(config, alpha=alpha)
        return [batch_loss(model, LOSSES["distill"], batch, codes, False, options).item() for batch in batches]

    mixed, usual = batches(LOSSES["distill"], plain), batches(LOSSES["distill"])
    soft, hard, chosen = values(usual, 0.0), values(usual, 1.0), values(mixed, 0.0)
    columns = [labels.read("user", "position", "candidate_scores") for labels in (store, plain)]
    teacher, other = (
        {(user, position): scores[0] for user, position, scores in zip(*part.values(), strict=True)} for part in columns
    )
    known = sum(other[key] >= score for key, score in teacher.items())
    assert 0 < known < len(teacher)
    assert sum(batch.label_invalid.sum().item() for batch in mixed) == known
    if not one_pass:
        for value, batch, first, second in zip(chosen, mixed, hard, soft, strict=True):
            assert value == pytest.approx(first if batch.label_invalid.item() else second)
    ranked = batches(LOSSES["dwr"], plain)
    assert sum((batch.rank_weights * batch.label_invalid).sum().item() for batch in ranked) == 0


def test_labels_without_states_teach_none(priors, tmp_path):
    assert LabelStore.open(priors / "soft_labels").features == FEATURES
    with pytest.raises(UserError, match="holds no hidden states; export with --features"):
        run(priors, tmp_path / "student", "distill", feature_weight=0.1, soft_labels=priors / "soft_labels-distance")
    assert not (tmp_path / "student").exists()


def test_students_with_fewer_layers_than_the_labels_are_refused(deep_root, tmp_path):
    message = "hold the states of 2 layers of the teacher, and this student has 1 over codewords; export with fewer"
    with pytest.raises(UserError, match=message):
        run(deep_root, tmp_path / "student", "distill", feature_weight=0.1, backbone="nested")
    assert not (tmp_path / "student").exists()


def test_a_plain_teacher_must_know_all_examples(priors):
    changes = {"variant": "distill", "plain_labels": priors / "plain", "epochs": 1}
    make_prior(priors, "plain", "transitions", examples=slice(1, None))
    with pytest.raises(UserError, match="plain lacks 1 of the"):
        run(priors, priors / "student", **changes)
    shutil.rmtree(priors / "plain")
    make_prior(priors, "plain", "transitions")
    first = run(priors, priors / "student", **changes)
    assert "soft_labels/plain" in first.inputs
    assert run(priors, priors / "tiger", **changes | {"variant": "tiger"}).inputs.keys() == {"dataset", "semantic_ids"}


def test_priors_that_cannot_be_taught(priors):
    def refused(**changes):
        with pytest.raises(UserError) as error:
            run(priors, priors / "student", **changes)
        assert not (priors / "student").exists() and not (priors / "student.partial").exists()
        return str(error.value)

    for variant, labels in (("distill", "ref"), ("tiger", "top")):
        assert f"{variant} has none; take --variant dtr, dwr" in refused(
            variant=variant, labels=labels, prior="distance"
        )
    assert "--prior_labels needs its --prior" in refused(prior_labels=priors / "soft_labels-distance")
    message = refused(prior="mixture")
    command = f"distill/export_soft_labels.py --run {priors} --keep {K} --mix llm=0.5,transitions=0.5 --output "
    assert "No soft_labels at" in message and command + str(priors / "soft_labels-mixture") in message
    (priors / "soft_labels-distance/manifest.json").unlink()
    message = refused(prior="distance")
    assert "is not a finished soft_labels" in message and "--mix distance=1 --output" in message
    assert "holds the labels of statistics" in refused(prior="mixture", prior_labels=priors / "soft_labels-statistics")
    make_shop(priors / "others", LENGTHS, seed=3)
    make_prior(priors / "others", "soft_labels-statistics", "statistics")
    labels = priors / "others/soft_labels-statistics"
    assert "do not belong together" in refused(prior="statistics", prior_labels=labels)


def test_labels_that_cannot_be_read(priors, monkeypatch):
    """Missing, unfinished, of another codebook, of another scope, cut: refused before anything is written."""
    labels, shard = priors / "soft_labels", priors / "soft_labels/data/00001.parquet"

    def refused(**changes):
        with pytest.raises(UserError) as error:
            run(priors, priors / "student", **changes)
        assert not (priors / "student").exists()
        return str(error.value)

    message = refused(variant="distill", soft_labels=priors / "nowhere")
    assert "No soft_labels at" in message and "distill/export_soft_labels.py" in message
    index = json.loads((labels / "index.json").read_text())
    write_json(labels / "index.json", index | {"scope": "all"})
    with monkeypatch.context() as patch:
        patch.setenv("LOHREC_NO_VERIFY", "1")
        assert "--scope level asks for each level's own" in refused(variant="dtr")
    write_json(labels / "index.json", index)
    make_shop(priors / "others", LENGTHS, seed=3)
    assert "do not belong together" in refused(semantic_ids=priors / "others/semantic_ids")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    assert f"The shard {shard} is damaged" in refused()
    shard.write_bytes(whole)
    (labels / "manifest.json").rename(labels / "elsewhere")
    message = refused()
    assert "is not a finished soft_labels" in message and "distill/export_soft_labels.py" in message
    (labels / "elsewhere").rename(labels / "manifest.json")
    run(priors, priors / "student", epochs=1)


def test_variants_of_table_2():
    assert variants.find("dwr-without-distill").retriever == Loss("nll", rank=True)
    assert variants.find("dwr-smooth").retriever == Loss("smooth", rank=True)
    assert variants.find("dtr-smooth").phases == {"retriever": Loss("smooth"), "ranker": Loss(None, rank=True)}
    assert variants.find("tiger", "rank").retriever == Loss(None, rank=True)


@pytest.mark.parametrize("one_pass", [True, False])
def test_a_student_that_is_its_own_reference_has_gained_nothing(root, one_pass):
    """Every pair is −log σ(0)."""
    config = dataclasses.replace(CONFIG, list_loss="dpo", list_scale=7.0, rank_within=0)
    dataset, store = Dataset.load(root / "dataset"), LabelStore.open(root / "soft_labels")
    codes, model = torch.from_numpy(SemanticIDs.load(root / "semantic_ids", dataset.n_items).codes), network("nested")
    batch = next(BatchSampler(dataset, store, LOSSES["rank"], one_pass, config).batches(0))
    value = batch_loss(model, LOSSES["rank"], batch, codes, True, config, reference=model)
    assert value.item() == pytest.approx(math.log(2) * batch.rank_weights.sum().item() / batch.rank_total)
    other = batch_loss(model, LOSSES["rank"], batch, codes, True, config, reference=network("nested", seed=1))
    assert abs(other.item() - value.item()) > 0.01


def test_a_joint_ranker_is_compared_with_a_finished_student(root, tmp_path):
    run(root, tmp_path / "tiger", "tiger", epochs=1)
    options = {"list_loss": "s_dpo", "reference": tmp_path / "tiger", "epochs": 1}
    run(root, tmp_path / "dwr", "dwr", **options)
    foreign = tmp_path / "foreign"
    make_shop(foreign, LENGTHS, seed=1)
    with pytest.raises(UserError, match="do not belong together"):
        run(foreign, tmp_path / "other", "dwr", **options)


@pytest.fixture(scope="module")
def references(root, tmp_path_factory):
    """Finished students: (backbone, scope) -> folder; their networks are larger than those that are compared."""
    folder, sizes = tmp_path_factory.mktemp("references"), {"d_model": 24, "d_ff": 24, "heads": 2, "d_head": 8}
    layers = {
        "seq2seq": {"encoder_layers": 1, "decoder_layers": 1},
        "causal": {"layers": 1},
        "nested": {"outer": 1, "layers": 1},
    }

    def train_once(backbone, scope):
        output = folder / f"{backbone}-{scope}"
        if not output.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(BACKBONES[backbone][2], "demo", sizes | layers[backbone])
                run(root, output, "tiger", backbone=backbone, scope=scope, epochs=1)
        return output

    return train_once


@pytest.mark.parametrize(
    ("backbone", "scope", "changes"),
    [
        ("causal", "level", {"backbone": "causal"}),
        ("nested", "level", {"backbone": "causal"}),
        ("causal", "all", {"backbone": "nested", "scope": "all"}),
        ("nested", "level", {"backbone": "seq2seq"}),
        ("seq2seq", "level", {"backbone": "nested", "one_pass": False}),
        ("seq2seq", "level", {"backbone": "causal", "variant": "dtr", "list_loss": "grpo"}),  # prefix by prefix
    ],
    ids=str,
)
def test_references_that_score_what_the_student_scores(root, tmp_path, references, backbone, scope, changes):
    """Sizes may differ, and networks, as long as both score the same candidates over the same codewords."""
    options = {"variant": "dwr", "list_loss": "dpo", "reference": references(backbone, scope), "epochs": 1}
    run(root, tmp_path / "student", **(options | changes))
    curves = json.loads((tmp_path / "student/curve.json").read_text()).values()
    assert all(np.isfinite(row["loss"]) for curve in curves for row in curve)


@pytest.mark.parametrize(
    ("backbone", "scope", "changes", "message"),
    [
        ("seq2seq", "level", {"backbone": "causal"}, "--backbone seq2seq, which cannot .* --backbone causal, is"),
        ("seq2seq", "level", {"backbone": "nested", "list_loss": "s_dpo"}, "--one_pass false"),
        ("seq2seq", "level", {"backbone": "causal", "variant": "dtr"}, "--backbone seq2seq, which cannot score"),
        ("causal", "all", {"backbone": "causal"}, "with --scope all, this student has --scope level"),
        (
            "causal",
            "level",
            {"backbone": "causal", "scope": "trie"},
            "with --scope level, this student has --scope trie",
        ),
    ],
    ids=str,
)
def test_references_that_cannot_be_compared(root, tmp_path, references, backbone, scope, changes, message):
    options = {"variant": "dwr", "list_loss": "dpo", "reference": references(backbone, scope)}
    with pytest.raises(UserError, match=message):
        run(root, tmp_path / "student", **(options | changes))
    assert not list(tmp_path.iterdir())  # before anything is trained


def test_annealing_by_hand():
    config = dataclasses.replace(CONFIG, temperature=2.0, temperature_end=1.0, alpha=0.1)
    assert [anneal(config, done).temperature for done in (0.0, 0.25, 1.0)] == [2.0, 1.75, 1.0]
    assert anneal(config, 0.5).alpha == 0.1
    assert anneal(dataclasses.replace(config, alpha_end=0.5), 0.5).alpha == pytest.approx(0.3)
