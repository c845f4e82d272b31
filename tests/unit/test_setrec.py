"""SETRec: masks, loss and scores by their definitions, siblings and queries that do not see each other, training."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from breaking_off import BrokenOffError, break_at
from reference import setrec_naive
from student_shop import ITEMS, make_shop, windows_of
from transformers import T5Config, T5Model

from distill.data.dataset import PAD, Dataset
from distill.data.splits import assign_folds
from distill.export_soft_labels import main as export
from distill.labels.config import Config as ExportConfig
from distill.labels.config import check as check_export
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.semantic_ids import embeddings
from distill.semantic_ids.ids import SemanticIDs
from student import train
from student.baseline import main
from student.config import BaselineConfig, Config
from student.item_batches import ItemBatchSampler, cut_windows
from student.item_recommender import ItemRecommender
from student.models.setrec import SETRec, SETRecConfig
from student.models.setrec.trunks import query_mask
from student.phases import build_item_model
from student.setrec_config import SETRecSettings
from student.setrec_model import build_setrec, random_network, setrec_loss, tune_beta

N_ITEMS, DIM, N = 12, 16, 2
HISTORIES = torch.tensor([[3, 1, 4, 7], [5, 1, PAD, PAD]])
LAST = torch.tensor([[False, False, False, True], [False, True, False, False]])
TRUNKS = ["t5", "causal"]


def settings_of(trunk, **more):
    return SETRecSettings(trunk=trunk, semantic=N, hidden=[24], **more)


def model_of(trunk, instruction=0, n_items=N_ITEMS, **more):
    """A random network of large weights, so that all of them matter."""
    torch.manual_seed(0)
    config = BaselineConfig(network="setrec", dim=DIM, layers=2, max_history=6, dropout=0.0, setrec=settings_of(trunk))
    sizes = {"cf_dim": 5, "text_dim": 7, "semantic": N, "hidden": (24,), "instruction": instruction} | more
    model = SETRec(SETRecConfig(n_items, 6, DIM, random_network(config), trunk, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.trunk.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
        model.queries.normal_()
        model.instruction.normal_()
    model.tokens.set_inputs(torch.randn(n_items, 5), torch.randn(n_items, 7) if sizes["semantic"] else None)
    return model


@pytest.mark.parametrize("sparse", [True, False])
def test_the_mask_by_its_definition(sparse):
    words, length, k, order = 2, 3, 2, torch.tensor([[0, 2], [1, 0]])
    actual = query_mask(order, words, length, k, sparse)
    for user, places in enumerate(order.tolist()):
        tokens = [("word", word) for word in range(words)]
        tokens += [("item", item, part) for item in range(length) for part in range(k)]
        queries = [("query", place, part, group) for group, place in enumerate(places) for part in range(k)]
        expected = [[setrec_naive.sees(a, b, sparse) for b in tokens + queries] for a in tokens + queries]
        assert actual[user].tolist() == expected


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("instruction", [0, 2])
class TestGeneration:
    @torch.no_grad()
    def test_a_query_leaves_the_others_alone(self, trunk, instruction):
        model = model_of(trunk, instruction)
        before = model.generate(model.tokens(), HISTORIES, LAST)
        model.queries[1] += 1
        after = model.generate(model.tokens(), HISTORIES, LAST)
        torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
        assert (after[:, 1] - before[:, 1]).abs().max() > 1e-2

    @torch.no_grad()
    def test_the_order_within_a_set_does_not_count(self, trunk, instruction):
        """Tokens share one position: the same set in another order is the same history."""
        model = model_of(trunk, instruction)
        tokens = model.tokens()
        before = model.generate(tokens, HISTORIES, LAST)
        torch.testing.assert_close(model.generate(tokens[:, [2, 0, 1]], HISTORIES, LAST), before)
        swapped = HISTORIES[:, [1, 0, 2, 3]]
        assert (model.generate(tokens, swapped, LAST) - before).abs().max() > 1e-2  # that of the items does

    @torch.no_grad()
    def test_all_places_at_once_are_each_prefix_alone(self, trunk, instruction):
        model = model_of(trunk, instruction)
        tokens, known = model.tokens(), HISTORIES != PAD
        together = model.generate(tokens, HISTORIES, known)
        for row, (user, place) in enumerate(known.nonzero().tolist()):
            prefix = HISTORIES[user : user + 1, : place + 1]
            alone = model.generate(tokens, prefix, torch.arange(place + 1)[None] == place)
            torch.testing.assert_close(together[row : row + 1], alone)

    @torch.no_grad()
    def test_padding_changes_nothing(self, trunk, instruction):
        model = model_of(trunk, instruction)
        padded = torch.cat([HISTORIES, torch.full((2, 2), PAD)], dim=1)
        places = torch.cat([LAST, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
        torch.testing.assert_close(model(padded, places), model(HISTORIES, LAST))


@torch.no_grad()
def test_recencies_of_t5():
    """A table of zeros changes nothing; its first row is the last item's, wherever that stands."""
    plain, model = model_of("t5"), model_of("t5", recency=True)
    model.trunk.recency.weight.zero_()
    model.load_state_dict(plain.state_dict() | {"trunk.recency.weight": model.trunk.recency.weight})
    before = plain.generate(plain.tokens(), HISTORIES, LAST)
    torch.testing.assert_close(model.generate(model.tokens(), HISTORIES, LAST), before)
    model.trunk.recency.weight[0] = torch.randn(DIM)
    changed = model.generate(model.tokens(), HISTORIES, LAST)
    tokens = plain.tokens().clone()
    tokens[[7, 1]] += model.trunk.recency.weight[0]  # the last items
    torch.testing.assert_close(changed[1], plain.generate(tokens, HISTORIES, LAST)[1])
    tokens[1] = plain.tokens()[1]  # the first history has item 1 too, in its middle
    torch.testing.assert_close(changed[0], plain.generate(tokens, HISTORIES, LAST)[0])
    assert (changed - before).abs().amax((1, 2)).min() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("trunk", TRUNKS)
def test_siblings_are_invisible(trunk):
    """In one layer, an item's token changes with its siblings under the full mask alone."""
    for sparse in (True, False):
        model = model_of(trunk, sparse=sparse)
        tokens, outputs = model.tokens(), {}
        stack = model.trunk.model.encoder if trunk == "t5" else model.trunk.model
        layer = stack.block[0] if trunk == "t5" else stack.layers[0]

        def keep(_, __, output, outputs=outputs):
            outputs["last"] = (output[0] if isinstance(output, tuple) else output).clone()

        hook = layer.register_forward_hook(keep)
        one = torch.tensor([[3, 1]])
        model.generate(tokens, one, one == 1)
        before = outputs["last"]
        changed = tokens.clone()
        changed[1, 0] += 1
        model.generate(changed, one, one == 1)
        hook.remove()
        difference = (outputs["last"] - before).abs().amax(-1)[0]
        assert (difference[:3] < 1e-6).all() or trunk == "t5"  # T5 reads in both directions
        assert difference[3] > 1e-3  # the token itself
        assert (difference[4:6].max() < 1e-6) == sparse


@pytest.mark.parametrize("trunk", TRUNKS)
def test_loss_and_scores_by_their_definitions(trunk):
    model = model_of(trunk)
    with torch.no_grad():
        tokens = model.tokens()
        generated = model.generate(tokens, HISTORIES, LAST)
    windows = windows_of([[3, 1, 4, 7, 2], [5, 1, 6]], 4)
    config = BaselineConfig(network="setrec", batch_size=2, setrec=settings_of(trunk, alpha=0.3))
    (batch,) = ItemBatchSampler(windows, None, config).batches(0)
    actual = setrec_loss(model, batch, torch.device("cpu"), config)

    known = HISTORIES != PAD
    with torch.no_grad():
        every = model.generate(tokens, HISTORIES, known)
    targets = [1, 4, 7, 2, 1, 6]
    entropy = np.mean([setrec_naive.cross_entropy(every[row], tokens, target) for row, target in enumerate(targets)])
    texts, decoder = model.tokens.texts, model.tokens.decoder
    errors = [
        ((texts[item] - decoder(tokens[item, 1:].flatten())) ** 2).mean().item() for item in HISTORIES[known].tolist()
    ]
    assert actual.item() == pytest.approx(entropy + 0.3 * np.mean(errors), rel=1e-5)
    for beta in (0.0, 0.3, 1.0):
        model.config = replace(model.config, beta=beta)
        with torch.no_grad():
            actual = model(HISTORIES, LAST)
        for row in range(2):
            expected = setrec_naive.log_softmax(setrec_naive.scores(generated[row], tokens, beta))
            np.testing.assert_allclose(actual[row], expected, atol=1e-4)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_loss_does_not_depend_on_the_split(trunk):
    """Two processes and two accumulation steps, with unequal numbers of targets."""
    model = model_of(trunk)
    windows = windows_of([[3, 1, 4, 7, 8], [5, 6], [8, 2, 3], [6, 9, 0, 1]], 4)
    totals = []
    for processes, accumulation in ((1, 1), (2, 1), (2, 2)):
        rows = 4 // processes // accumulation
        config = BaselineConfig(network="setrec", batch_size=rows, accumulation=accumulation, setrec=settings_of(trunk))
        parts = [
            setrec_loss(model, batch, torch.device("cpu"), config)
            for process in range(processes)
            for batch in ItemBatchSampler(windows, None, config, process, processes).batches(0)
        ]
        totals.append(sum(parts).item())
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_one_forward_pass_for_all_tokens(trunk, monkeypatch):
    model = model_of(trunk)
    calls = []
    stack = model.trunk.model.decoder.block[0] if trunk == "t5" else model.trunk.model
    stack.register_forward_hook(lambda *_: calls.append(1))
    ItemRecommender(model, {"exclude_bought": True}).rank_items(HISTORIES.numpy(), 5)
    assert len(calls) == 1


@torch.no_grad()
def test_the_catalogue_is_computed_again_when_weights_change():
    model = model_of("causal")
    before = model(HISTORIES, LAST)
    assert model.catalogue() is model.catalogue()
    weights = {name: value + 0.1 if "project" in name else value for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    torch.testing.assert_close(model.catalogue(), model.tokens())
    assert (model(HISTORIES, LAST) - before).abs().max() > 1e-3


@dataclass(frozen=True)
class Nothing:
    """No settings."""


SOURCES = ("baselines/sasrec", "baseline"), ("embeddings", "embeddings")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop with a teacher's labels, text embeddings and a SASRec."""
    root = tmp_path_factory.mktemp("shop")
    make_shop(root, [3, 4, 5, 6, 9, 4, 7, 3, 8, 5] * 5)
    names = [f"i{number}" for number in range(ITEMS)]
    dataset = artifacts.read(root / "dataset", "dataset")
    with ArtifactJob("embeddings", Nothing(), root / "embeddings", [dataset]).write() as folder:
        embeddings.write(folder, np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32), names)
    main(BaselineConfig(run=root, dim=8, layers=1, epochs=1, tracker="none"))
    return root


def config_of(shop, output, trunk="causal", epochs=2, **more):
    settings = {"dim": 16, "layers": 1, "batch_size": 16, "tracker": "none", "max_history": 9} | more
    settings.setdefault("precision", "no")  # Accelerate knows one a process
    settings.setdefault("setrec", settings_of(trunk))
    return BaselineConfig(run=shop, network="setrec", output=output, epochs=epochs, **settings)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_overfits_fifty_users(trunk, shop, tmp_path):
    """Every training target comes first: fifty users of random histories are learned by heart."""
    config = config_of(shop, tmp_path / "setrec", trunk, epochs=60, lr=1e-2, dropout=0.0, dim=32, patience=0,
                       weight_decay=0.0, checkpoint_every=0)  # fmt: skip
    torch.manual_seed(0)
    source, texts = ([artifacts.read(shop / name, kind)] for name, kind in SOURCES)
    student = build_item_model(config, [shop / "dataset"], texts, source, Accelerator(cpu=True))
    model, (phase,) = student.recommender.model, student.phases
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 3e-3)
    for epoch in range(60):
        model.train()
        for batch in phase.sampler.batches(epoch):
            phase.loss(model, batch, 0.0).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    examples = Dataset.load(shop / "dataset").examples("train", 9)
    # a history that two users share has two answers
    keep = [row for row, history in enumerate(examples.histories) if (examples.histories == history).all(1).sum() == 1]
    lists, _ = student.recommender.rank_items(examples.histories[keep], 1, exclude_bought=True)
    assert len(keep) > 80 and (lists[:, 0] == examples.targets[keep]).all()


@pytest.mark.parametrize(("trunk", "loss"), [("t5", "ce"), ("causal", "list+rank")])
def test_goes_on_where_it_was_broken_off(trunk, loss, shop, tmp_path, monkeypatch):
    """With dropout: the very same bytes; and what is saved recommends the same."""

    config = config_of(shop, tmp_path / "whole", trunk, loss=loss, margin=0.1, dropout=0.2, checkpoint_every=2)
    main(config)
    with monkeypatch.context() as patch:
        break_at(patch, 4)
        with pytest.raises(BrokenOffError):
            main(replace(config, output=tmp_path / "broken"))
    main(replace(config, output=tmp_path / "broken"))
    whole, broken = (artifacts.read(tmp_path / name, "baseline") for name in ("whole", "broken"))
    assert whole.fingerprint == broken.fingerprint
    source, texts = (artifacts.read(shop / name, kind).fingerprint for name, kind in SOURCES)
    assert whole.inputs[f"baseline/cf_source-{source[:8]}"] == source
    assert whole.inputs[f"embeddings/item_text-{texts[:8]}"] == texts
    assert json.loads((tmp_path / "whole/config.json").read_text())["model"]["beta"] in [n / 10 for n in range(11)]


def test_beta_is_the_best_on_validation(shop, tmp_path):
    main(config_of(shop, tmp_path / "setrec", setrec=settings_of("causal", beta=0.2), epochs=1))
    recommender = ItemRecommender.from_pretrained(tmp_path / "setrec")
    assert recommender.model.config.beta == 0.2
    valid = Dataset.load(shop / "dataset").examples("valid", 9)
    tune_beta(recommender, valid)
    chosen, quality = recommender.model.config.beta, {}
    for number in range(11):
        recommender.model.config = replace(recommender.model.config, beta=number / 10)
        lists, _ = recommender.rank_items(valid.histories, 10, recommender.facts["exclude_bought"])
        gains = [
            1 / np.log2(2 + row.tolist().index(target)) if target in row else 0
            for row, target in zip(lists, valid.targets, strict=True)
        ]
        quality[number / 10] = round(float(np.mean(gains)), 10)
    assert chosen == max(quality, key=quality.get)


def test_both_commands_train_it(shop, tmp_path):
    config = config_of(shop, tmp_path / "one", epochs=1, max_history=20)
    same = {name: getattr(config, name) for name in ("run", "dim", "layers", "batch_size", "epochs", "setrec")}
    main(config)
    train.main(Config(backbone="setrec", variant="tiger", output=tmp_path / "two", tracker="none", **same))
    one, two = (artifacts.read(tmp_path / name, "baseline") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_starts_from_a_causal_model(lora_rank, shop, base, tmp_path):
    settings = settings_of("causal", lora_rank=lora_rank, instruction="some")
    config = config_of(shop, tmp_path / "setrec", base=base, setrec=settings, epochs=1, dropout=0.0)
    main(config)
    model = ItemRecommender.from_pretrained(tmp_path / "setrec").model
    assert model.config.instruction == 1 and model.config.dim == 32 and model.config.lora_rank == 0
    assert model.instruction.abs().sum() > 0


@torch.no_grad()
def test_adapters_are_merged(shop, base, tmp_path):
    """What is saved has no adapters and the same scores; the language model's own weights do not train."""
    config = config_of(shop, tmp_path / "setrec", base=base, setrec=settings_of("causal", lora_rank=2))
    texts = artifacts.read(shop / "embeddings", "embeddings")
    model = build_setrec(config, ITEMS, shop / "baselines/sasrec", texts).eval()
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"tokens", "queries", "trunk"}
    assert all("lora_" in name for name, value in model.trunk.named_parameters() if value.requires_grad)
    plain = model(HISTORIES, LAST)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.normal_(0, 0.1)
    model.train().eval()  # weights changed
    adapted = model(HISTORIES, LAST)
    assert (adapted - plain).abs().max() > 1e-3
    torch.testing.assert_close(model.merged().eval()(HISTORIES, LAST), adapted, rtol=1e-4, atol=1e-4)


def test_starts_from_a_t5(shop, tmp_path):
    torch.manual_seed(0)
    t5 = T5Model(T5Config(vocab_size=10, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4))
    t5.save_pretrained(tmp_path / "base")
    config = config_of(shop, tmp_path / "setrec", "t5", base=tmp_path / "base")
    source = shop / "baselines/sasrec"
    model = build_setrec(config, ITEMS, source, artifacts.read(shop / "embeddings", "embeddings"))
    weights = model.trunk.model.state_dict()
    for name, value in T5Model.from_pretrained(tmp_path / "base").state_dict().items():
        if "embed_tokens" not in name and "shared" not in name:
            torch.testing.assert_close(weights[name], value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setrec": SETRecSettings(cf=False, semantic=0)}, "An item needs a token"),
        ({"item_text": "add"}, "setrec always reads texts"),
        ({"dim": 18}, "--dim is 18; expected a multiple of 4"),
        ({"network": "gru4rec", "setrec": SETRecSettings(alpha=1)}, "--setrec is for setrec; the network is gru4rec"),
        ({"setrec": SETRecSettings(lora_rank=2)}, "give --base"),
        ({"batch_size": 10_000_000}, "GiB, at most 16. Lower --batch_size"),
        ({"embeddings": "nowhere"}, "scripts/embed_items.py"),
        ({"sasrec": "nowhere"}, "student/baseline.py"),
    ],
)
def test_what_is_refused(changes, message, shop, tmp_path):
    changes = {name: tmp_path / value if value == "nowhere" else value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        main(replace(config_of(shop, tmp_path / "setrec"), **changes))
    assert not (tmp_path / "setrec").exists()


def test_a_sasrec_of_another_data_set_is_refused(shop, tmp_path):
    make_shop(tmp_path, [4, 5, 6], seed=3)
    main(BaselineConfig(run=tmp_path, dim=8, layers=1, epochs=1, tracker="none"))
    with pytest.raises(UserError, match="dataset"):
        main(config_of(shop, tmp_path / "setrec", sasrec=tmp_path / "baselines/sasrec"))


def test_labels_students(shop, tmp_path):
    """Candidates are scored by the network's distribution over items that were not bought; codewords by its sums."""
    main(config_of(shop, shop / "baselines/setrec", epochs=1))
    options = {"encoding": "fp16", "exclude_bought": True, "keep": 4, "item_temperature": 2.0}
    export(ExportConfig(run=shop, mix={"item_model": 1.0}, output=tmp_path / "labels", **options))
    store = LabelStore.open(tmp_path / "labels")
    rows = store.read("user", "position", "target", "candidates", "candidate_scores")
    (block,) = store.blocks()
    log_probs = block.log_probs()
    np.testing.assert_array_equal(block.positions, rows["position"])
    dataset = Dataset.load(shop / "dataset")
    codes = SemanticIDs.load(shop / "semantic_ids", ITEMS).codes
    recommender = ItemRecommender.from_pretrained(shop / "baselines/setrec")
    for row in range(0, store.rows, 17):
        history = dataset.sequence(rows["user"][row])[: rows["position"][row]]
        target = rows["target"][row]
        scores = recommender.score_items(history[None])[0].astype(float) / 2
        probabilities = np.exp(scores - scores.max())
        probabilities[history] = 0
        probabilities /= probabilities.sum()
        for item, score in zip(rows["candidates"][row], rows["candidate_scores"][row], strict=True):
            assert score == pytest.approx(np.log(probabilities[item]), abs=0.02)
        best = np.argsort(-probabilities, kind="stable")[:4].tolist()
        assert rows["candidates"][row].tolist() == [target, *[item for item in best if item != target][:3]]
        alike = np.ones(ITEMS, dtype=bool)
        for level in range(codes.shape[1]):
            mass = np.bincount(codes[alike, level], probabilities[alike], minlength=6)
            with np.errstate(divide="ignore"):
                expected = np.log(mass / mass.sum())
            actual = log_probs[row, level]
            np.testing.assert_allclose(actual[mass > 0], expected[mass > 0], atol=0.02)
            alike &= codes[:, level] == codes[target, level]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_model": Path("x")}, "are for --mix item_model=1"),
    ],
)
def test_item_models_that_label_are_checked(changes, message):
    with pytest.raises(UserError, match=message):
        check_export(ExportConfig(**changes))


def test_cross_fitted_labels(shop, tmp_path):
    """A fold's network is trained on the other folds' users, as is the SASRec below it, and labels its own users."""
    run = tmp_path / "run"
    shutil.copytree(shop, run)
    fold_of_user = assign_folds(np.arange(Dataset.load(run / "dataset").n_users), 2)
    for fold in range(2):
        config = config_of(run, None, epochs=1, folds=2, fold=fold)
        main(replace(config, network="sasrec", setrec=SETRecSettings()))
        main(config)
    dataset, examples = Dataset.load(run / "dataset"), Dataset.load(run / "dataset").examples("train", 20)
    options = {"encoding": "fp16", "exclude_bought": False, "keep": 4, "folds": 2}
    export(ExportConfig(run=run, mix={"item_model": 1.0}, output=tmp_path / "folded", **options))
    rows = LabelStore.open(tmp_path / "folded").read("user", "position", "candidates", "candidate_scores")
    assert len(rows["user"]) == len(examples)
    for fold in range(2):
        recommender = ItemRecommender.from_pretrained(run / f"folds/setrec-fold{fold}")
        for row in np.flatnonzero(fold_of_user[rows["user"]] == fold)[::9]:
            history = dataset.sequence(rows["user"][row])[: rows["position"][row]]
            scores = recommender.score_items(history[None], False)[0].astype(float)
            expected = scores - np.log(np.exp(scores).sum())
            assert rows["candidate_scores"][row] == pytest.approx(expected[rows["candidates"][row]], abs=0.02)

    shutil.move(run / "folds/setrec-fold1", tmp_path / "aside")
    with pytest.raises(UserError, match=r"No baseline for fold 1 .*--folds 2 --fold 1"):
        export(ExportConfig(run=run, mix={"item_model": 1.0}, output=tmp_path / "labels", **options))
    shutil.copytree(run / "folds/setrec-fold0", run / "folds/setrec-fold1")
    with pytest.raises(UserError, match=r"was trained with --folds 2 --fold 0"):
        export(ExportConfig(run=run, mix={"item_model": 1.0}, output=tmp_path / "labels", **options))
    with pytest.raises(UserError, match=r"has seen the users of fold 1"):
        main(config_of(run, tmp_path / "network", folds=2, fold=1, sasrec=run / "baselines/sasrec"))
    with pytest.raises(UserError, match="expected 2 folds or more, counted from 0"):
        main(config_of(run, tmp_path / "network", folds=2, fold=2))
    with pytest.raises(UserError, match="Take --loss ce"):
        main(config_of(run, tmp_path / "network", folds=2, loss="list"))


def test_a_fold_is_left_out_of_training(shop):
    dataset = Dataset.load(shop / "dataset")
    source, texts = ([artifacts.read(shop / name, kind)] for name, kind in SOURCES)
    config = config_of(shop, None, folds=2, fold=1)
    (phase,) = build_item_model(config, [shop / "dataset"], texts, source, Accelerator(cpu=True)).phases
    starts = {int(place) for place in phase.sampler.windows.starts}
    kept = np.flatnonzero(assign_folds(np.arange(dataset.n_users), 2) == 0)
    assert len(starts) > 0 and starts == {
        int(start) for start in cut_windows(
            dataset.values, dataset.offsets[:-1][kept], dataset.training_lengths()[kept], 9, None
        ).starts
    }  # fmt: skip
