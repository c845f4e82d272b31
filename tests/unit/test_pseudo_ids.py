"""The paper's distance prior: pseudo-IDs around the target, strictly ordered."""

import dataclasses

import numpy as np
import pytest
import torch
from reference import losses_naive, pseudo_ids_naive
from reference.teachers_naive import distance
from student_shop import ITEMS, LEVELS, SIZE, make_shop

from distill import losses
from distill.data.dataset import Dataset
from distill.labels.store import LabelStore
from distill.semantic_ids.ids import SemanticIDs
from student import variants
from student.batches import BatchSampler
from student.config import Config
from student.models import BACKBONES
from student.objective import batch_loss, ranked_codewords
from student.pseudo_ids import PseudoIDs
from student.variants import Loss

K = 6
CONFIG = Config(batch_size=4, candidates=K, max_history=4, margin=0.3)
DWR = Loss("distill", rank=True, pseudo=True)
WITHOUT_DISTILL = Loss("nll", rank=True, pseudo=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    make_shop(root, [3, 4, 5, 6, 9, 13, 4, 4, 7])
    dataset = Dataset.load(root / "dataset")
    return dataset, LabelStore.open(root / "soft_labels"), SemanticIDs.load(root / "semantic_ids", ITEMS)


def sampler(shop, loss, one_pass=False, process=0, processes=1, **changes):
    dataset, store, ids = shop
    config = dataclasses.replace(CONFIG, **changes)
    prior = PseudoIDs(ids.codes, SIZE, config.candidates)
    store = store if loss.needs_labels else None
    return BatchSampler(dataset, store, loss, one_pass, config, process, processes, prior)


@pytest.mark.parametrize("k", [2, 7, 8, 16])
def test_all_sets_of_levels_nearest_first(k):
    """Three levels by hand: 1 differs in the last level, 2 in the second, 3 in both, 4 in the first …"""
    codes = np.array([[0, 0, 0], [5, 2, 4]])
    drawn = PseudoIDs(codes, 6, k).draw(np.array([1, 0]), np.random.default_rng(0))
    assert drawn.shape == (2, min(k, 8), 3) and (drawn >= 0).all() and (drawn < 6).all()
    for target, ids in zip(codes[[1, 0]], drawn, strict=True):
        assert [distance(each, target) for each in ids] == list(range(min(k, 8)))
        expected = pseudo_ids_naive.pseudo_ids(target.tolist(), k, lambda level, far, ids=ids: int(ids[far, level]))
        assert ids.tolist() == expected


def test_codewords_are_drawn_evenly_among_the_others():
    codes = np.array([[3, 1]])
    drawn = PseudoIDs(codes, 5, 4).draw(np.zeros(20000, int), np.random.default_rng(1))
    for place, level in ((1, 1), (2, 0), (3, 0), (3, 1)):
        counts = np.bincount(drawn[:, place, level], minlength=5)
        assert counts[codes[0, level]] == 0
        np.testing.assert_allclose(np.delete(counts, codes[0, level]) / 20000, 0.25, atol=0.015)


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("loss", [DWR, WITHOUT_DISTILL])
def test_batches_carry_them(shop, loss, one_pass):
    """Around each example's target, drawn anew each epoch, alike for any number of processes; no labels needed."""
    codes = shop[2].codes

    def lists(processes, epoch=0):
        parts = {}
        for process in range(processes):
            size = 4 // processes
            for batch in sampler(shop, loss, one_pass, process, processes, batch_size=size).batches(epoch):
                assert batch.candidates is None and (batch.log_probs is None) == (loss is WITHOUT_DISTILL)
                for example in np.flatnonzero(batch.weights.numpy()):
                    row, place = batch.rows[example], batch.places[example]
                    key = tuple(batch.sequences[row, : place + one_pass].tolist()), batch.targets[example].item()
                    parts[key] = batch.pseudo_ids[example].tolist()
        return parts

    alone = lists(1)
    assert len(alone) > 20 and lists(2) == alone and lists(1) == alone and lists(1, 1) != alone
    for (_, target), ids in alone.items():
        assert ids[0] == codes[target].tolist()
        assert [distance(each, codes[target]) for each in ids] == list(range(K))


def test_weights(shop):
    """All examples are ranked: the reference is first. The teacher's confidence stays, where there is a teacher."""
    for batch in sampler(shop, WITHOUT_DISTILL, rank_within=1, confidence=1.0).batches(0):
        assert (batch.rank_weights == 1).all() and (batch.weights == 1).all()
    for batch in sampler(shop, DWR, rank_within=1, confidence=1.0).batches(0):
        assert (batch.rank_weights == batch.weights).all() and (batch.weights > 0).all()


@pytest.mark.parametrize(
    ("backbone", "one_pass"), [("seq2seq", False), ("causal", False), ("causal", True), ("nested", True)]
)
def test_the_loss_orders_codewords(shop, backbone, one_pass):
    """Equation (14) over the pseudo-IDs' scores, each computed by itself."""
    torch.manual_seed(0)
    network, sizes, _ = BACKBONES[backbone]
    widths = {"d_model": 16, "d_ff": 24, "heads": 2, "d_head": 8}
    layers = {"encoder_layers": 1, "decoder_layers": 1} if backbone == "seq2seq" else {"layers": 1}
    layers |= {"outer": 1} if backbone == "nested" else {}
    model = network(sizes(LEVELS, SIZE, dropout=0.0, **widths, **layers)).double()
    codes = torch.from_numpy(shop[2].codes)
    loss, count = Loss(None, rank=True, pseudo=True), 0
    for batch in sampler(shop, loss, one_pass, rank_positions="all").batches(0):
        value = batch_loss(model, loss, batch, codes, True, CONFIG).item()
        naive = []
        for example in range(len(batch.targets)):
            items = batch.sequences[batch.rows[example], : batch.places[example]]
            history = codes[items][None]
            ids, _ = ranked_codewords(batch, codes)
            log_probs = torch.cat([model(history, each[None, None], "level")[0] for each in ids[example]])
            scores = losses.sequence_score(log_probs, ids[example])
            naive.append(losses_naive.rank(scores.tolist(), CONFIG.margin, [True] * K))
        assert value == pytest.approx(np.mean(naive), rel=1e-6)
        count += len(naive)
    assert count > 20


def test_what_needs_labels():
    def needs(name, labels="ref"):
        return variants.find(name, labels).on_pseudo_ids().needs_labels

    assert not needs("dwr-without-distill") and not needs("dwr-smooth") and not needs("dtr-smooth")
    assert not needs("tiger", "rank") and needs("dwr") and needs("dtr")
    dtr = variants.find("dtr").on_pseudo_ids()
    assert not dtr.retriever.pseudo and dtr.ranker == Loss(None, rank=True, pseudo=True)
