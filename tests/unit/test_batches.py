"""The students' batches: every target once, the same global batches for any number of processes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from student_shop import ITEMS, K, make_prior, make_shop

from distill.data.dataset import PAD, Dataset
from distill.labels.store import LabelStore
from distill.runtime.errors import UserError
from student import batches
from student.augment import drop_items, drop_items_with_targets, reverse_and_shuffle
from student.batches import BatchSampler, check_scope
from student.config import Config
from student.layout import layout_rows, sample_position, shard_rows
from student.prefetch import Prefetcher
from student.ranked_lists import item_of_list, open_prior
from student.variants import Loss

CONFIG = Config(batch_size=4, candidates=K, max_history=4, buffer_rows=60)
NLL, DISTILL, DWR = Loss("nll"), Loss("distill"), Loss("distill", rank=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    make_shop(root, [3, 4, 5, 6, 9, 13, 4, 4, 7, 3, 3, 8, 5, 5, 21, 6, 4])
    return Dataset.load(root / "dataset"), LabelStore.open(root / "soft_labels")


def sampler(shop, loss=NLL, one_pass=False, process=0, processes=1, **changes):
    store = shop[1] if loss.needs_labels else None
    return BatchSampler(shop[0], store, loss, one_pass, dataclasses.replace(CONFIG, **changes), process, processes)


def examples_of(batch):
    """(history, target) of the batch's examples that count."""
    actual = []
    for example in np.flatnonzero(batch.weights.numpy()):
        row, place = batch.rows[example], batch.places[example]
        actual.append((tuple(batch.sequences[row, :place].tolist()), batch.targets[example].item()))
    return actual


def all_of(samplers, epoch=0, skip=0):
    return [example for one in samplers for batch in one.batches(epoch, skip) for example in examples_of(batch)]


def expected(dataset, longest):
    examples = dataset.examples("train", longest)
    rows = zip(examples.histories, examples.targets, strict=True)
    return sorted((tuple(row[row != PAD].tolist()), int(target)) for row, target in rows)


@pytest.mark.parametrize("loss", [NLL, DWR])
@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (3, 2), (7, 3)])
def test_every_target_once(shop, loss, one_pass, processes, accumulation):
    """With its very history; nothing doubled, nothing lost at the end of an epoch on any number of processes."""
    changes = {"accumulation": accumulation, "long_histories": "prefixes"}
    samplers = [sampler(shop, loss, one_pass, process, processes, **changes) for process in range(processes)]
    for epoch in range(2):
        assert sorted(all_of(samplers, epoch)) == expected(shop[0], CONFIG.max_history)
    steps = [[batch.last for batch in one.batches(0)] for one in samplers]
    assert all(one == steps[0] for one in steps)  # no process waits for another
    assert sum(steps[0]) * accumulation == len(steps[0])


@pytest.mark.parametrize("one_pass", [False, True])
def test_without_labels_in_parts_of_whole_users(shop, one_pass, monkeypatch):
    monkeypatch.setattr(batches, "EXAMPLES_AT_ONCE", 9)
    for processes in (1, 3):
        changes = {"processes": processes, "long_histories": "prefixes"}
        samplers = [sampler(shop, NLL, one_pass, number, **changes) for number in range(processes)]
        assert sorted(all_of(samplers)) == expected(shop[0], CONFIG.max_history)
    one = sampler(shop, NLL, one_pass)
    parts = [[one.index.take(numbers) for _, numbers, _ in one._blocks(epoch)] for epoch in range(2)]
    users = [{int(user) for user in part.users} for part in parts[0]]
    assert len(users) > 3 and sum(map(len, users)) == len(set.union(*users))
    assert max(map(len, parts[0])) < 9 + 20  # the longest user has 19 targets
    assert [part.users[0] for part in parts[0]] != [part.users[0] for part in parts[1]]  # in another order
    rest = all_of([one], epoch=1, skip=2)
    assert rest and all_of([one], epoch=1)[-len(rest) :] == rest


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("loss", [NLL, DWR])
@pytest.mark.parametrize("dropped", [0.3, 0.9])
def test_global_batches_do_not_depend_on_the_split(shop, loss, one_pass, dropped):
    def steps(processes, accumulation, **changes):
        batches = []
        for process in range(processes):
            one, number = sampler(shop, loss, one_pass, process, processes, accumulation=accumulation, **changes), 0
            for batch in one.batches(1):
                if number == len(batches):
                    batches.append(([], batch.total, batch.rank_total, batch.count))
                assert batches[number][1:] == (batch.total, batch.rank_total, batch.count)
                batches[number][0].extend(examples_of(batch))
                number += batch.last
        return [(sorted(actual), *rest) for actual, *rest in batches]

    changes = {"drop_items": dropped, "rank_within": 3 if loss.rank else 0, "confidence": 0.5 if loss.rank else 0.0}
    alone = steps(1, 1, batch_size=12, **changes)
    assert len(alone) > 2
    assert steps(2, 1, batch_size=6, **changes) == alone
    assert steps(1, 2, batch_size=6, **changes) == alone
    assert steps(2, 3, batch_size=2, **changes) == alone


def test_a_restart_skips_what_is_done(shop):
    for one_pass in (False, True):
        one = sampler(shop, DWR, one_pass, drop_items=0.2)
        whole = [examples_of(batch) for batch in one.batches(3)]
        assert [examples_of(batch) for batch in one.batches(3, skip=3)] == whole[3:]


def test_epochs_differ(shop):
    one = sampler(shop)
    assert [examples_of(batch) for batch in one.batches(0)] != [examples_of(batch) for batch in one.batches(1)]


def test_labels_go_with_their_examples(shop):
    dataset, store = shop
    block = store.load()
    examples = dataset.examples("train", CONFIG.max_history)
    histories = [tuple(history[history != PAD].tolist()) for history in examples.histories]
    number = {key: n for n, key in enumerate(zip(histories, examples.targets.tolist(), strict=True))}
    row = {key: n for n, key in enumerate(zip(block.users.tolist(), block.positions.tolist(), strict=True))}
    for one_pass in (False, True):
        for batch in sampler(shop, DWR, one_pass, long_histories="prefixes").batches(0):
            for place, example in enumerate(examples_of(batch)):
                label = row[examples.users[number[example]], examples.positions[number[example]]]
                assert batch.candidates[place].tolist() == block.candidates(np.array([label]))[0].tolist()
                np.testing.assert_array_equal(batch.log_probs[place], block.log_probs(np.array([label]))[0])


@given(st.integers(1, 9), st.lists(st.integers(1, 40), min_size=1, max_size=5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rows(longest, counts, strided):
    """Users with so many targets: every one once; histories whole, or as long as the rule says."""
    users = np.repeat(np.arange(len(counts)), counts)
    positions = np.concatenate([np.arange(1, count + 1) for count in counts])
    offsets = np.cumsum([0, *[count + 1 for count in counts]])
    layout = layout_rows(users, positions, offsets, longest, True, strided)
    rows = np.repeat(np.arange(len(layout.starts)), np.diff(layout.first))
    np.testing.assert_array_equal(layout.starts[rows] + layout.places, offsets[users] + positions)
    assert (layout.places < layout.lengths[rows]).all() and (layout.lengths <= longest + 1).all()
    whole = positions <= longest
    assert (layout.places[whole] == positions[whole]).all()
    if strided:
        assert (layout.places[~whole] > longest - max(longest // 2, 1)).all()
        assert len(layout.starts) <= len(counts) + sum(count // max(longest // 2, 1) + 1 for count in counts)
    else:
        assert (layout.places[~whole] == longest).all()


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_shares_are_a_partition(seed, size, processes, accumulation):
    group = np.random.default_rng(seed).permutation(100)[:size]
    parts = [part for process in range(processes) for part in shard_rows(group, process, processes, accumulation)]
    assert len(parts) == processes * accumulation and sorted(np.concatenate(parts)) == sorted(group)


def test_one_example_stands_for_its_row():
    rows, weights = np.array([0, 0, 0, 1, 3, 3]), np.array([1.0, 0, 2, 5, 0, 4])
    total, rng = np.zeros(6), np.random.default_rng(0)
    for _ in range(4000):
        drawn = sample_position(rows, weights, 4, rng)
        assert drawn[[3, 5]].tolist() == [5, 4] and drawn[:3].sum() == 3 and (drawn[:3] > 0).sum() == 1
        total += drawn
    np.testing.assert_allclose(total / 4000, weights, atol=0.15)


def test_dropped_items():
    rng = np.random.default_rng(0)
    sequences = np.array([[1, 2, 3, 4], [5, PAD, PAD, PAD]])
    gone = 0
    for _ in range(400):
        actual = drop_items(sequences, 0.5, rng)
        first = actual[0][actual[0] != PAD].tolist()
        assert actual[1].tolist() == [5, PAD, PAD, PAD]
        assert first and first == [item for item in (1, 2, 3, 4) if item in first]
        assert (actual[0, len(first) :] == PAD).all()
        gone += 4 - len(first)
    assert 700 < gone < 900


def test_dropped_items_take_their_targets_along():
    rng, rows = np.random.default_rng(1), np.array([0, 0, 0, 1])
    places = np.array([1, 2, 3, 1])
    sequences = np.array([[1, 2, 3, 4], [5, 6, PAD, PAD]])
    seen = set()
    for _ in range(200):
        actual, new, kept = drop_items_with_targets(sequences, rows, places, 0.4, rng)
        for example in np.flatnonzero(kept):
            assert actual[rows[example], new[example]] == sequences[rows[example], places[example]]
            assert new[example] > 0
        seen.add(tuple(kept))
    assert len(seen) > 8


def test_the_last_target_stays_where_all_would_be_dropped():
    """With the item before it; what a sequence keeps beside them is kept too, and other draws change nothing."""
    sequences = np.array([[1, 2, 3, 4], [5, 6, 7, PAD]])
    rows, places = np.array([0, 0, 1, 1]), np.array([1, 3, 1, 2])
    actual, new, kept = drop_items_with_targets(sequences, rows, places, 1.0, np.random.default_rng(0))
    assert actual.tolist() == [[PAD] * 4, [6, 7, PAD, PAD]]
    assert kept.tolist() == [False, False, False, True] and new[-1] == 1
    outcomes = set()
    for seed in range(300):
        keep = (sequences != PAD) & (np.random.default_rng(seed).random(sequences.shape) >= 0.7)
        expected = [bool(keep[row, place] and keep[row, :place].any()) for row, place in zip(rows, places, strict=True)]
        is_lost = not any(expected)
        if is_lost:
            keep[1, 1:3] = True
            expected = [False, False, bool(keep[1, 0]), True]
        actual, new, kept = drop_items_with_targets(sequences, rows, places, 0.7, np.random.default_rng(seed))
        assert kept.tolist() == expected
        assert [row[row != PAD].tolist() for row in actual] == [
            row[mask].tolist() for row, mask in zip(sequences, keep, strict=True)
        ]
        for row, place, target in zip(rows[kept], new[kept], sequences[rows, places][kept], strict=True):
            assert actual[row, place] == target and place > 0
        outcomes.add((is_lost, *expected))
    assert {outcome[0] for outcome in outcomes} == {False, True} and len(outcomes) > 6


@pytest.mark.parametrize("loss", [NLL, DWR, Loss(None, rank=True, own_beams=True)])
def test_every_part_of_a_batch_has_an_example(shop, loss):
    """Where a process or an accumulation step lost all of its own to dropped items, it is another's, of weight 0."""
    changes = {"drop_items": 0.9, "batch_size": 1, "accumulation": 2}
    lists = [list(sampler(shop, loss, True, process, 2, **changes).batches(0)) for process in range(2)]
    empty = 0
    for first in range(0, len(lists[0]), 2):
        parts = [batch for one in lists for batch in one[first : first + 2]]
        for batch in parts:
            assert batch.count > 0 and len(batch.targets) > 0 and (batch.places > 0).all()
            assert len(batch.sequences) > max(batch.rows) and (batch.sequences[:, 0] != PAD).all()
            assert batch.on_policy or (batch.sequences[batch.rows, batch.places] == batch.targets).all()
            empty += not batch.weights.any()
        assert sum(batch.weights.sum().item() for batch in parts) == pytest.approx(parts[0].total)
    assert empty > 5


def test_order():
    rng, sequences = np.random.default_rng(2), np.array([[1, 2, 3, 4, 5, 6], [7, 8, PAD, PAD, PAD, PAD]])
    assert reverse_and_shuffle(sequences, 1.0, 0.0, rng)[0].tolist() == [[6, 5, 4, 3, 2, 1], [8, 7, PAD, PAD, PAD, PAD]]
    assert reverse_and_shuffle(sequences, 0.0, 0.0, rng)[0].tolist() == sequences.tolist()
    places = [reverse_and_shuffle(sequences, 0.0, 2, rng)[0] for _ in range(100)]
    assert all((actual[1, 2:] == PAD).all() and set(actual[0]) == {1, 2, 3, 4, 5, 6} for actual in places)
    moved = np.abs(np.stack([actual[0] for actual in places]) - np.arange(1, 7))
    assert moved.max() == 2 and moved.mean() > 0.3


def test_augmented_histories_keep_their_targets_and_labels(shop):
    plain = {}
    for batch in sampler(shop, DWR).batches(0):
        for example, (history, target) in enumerate(examples_of(batch)):
            plain[target, tuple(batch.candidates[example].tolist())] = history
    for batch in sampler(shop, DWR, drop_items=0.3, reverse=0.5, shuffle=2).batches(0):
        for example, (history, target) in enumerate(examples_of(batch)):
            before = plain.pop((target, tuple(batch.candidates[example].tolist())))
            assert history and set(history) <= set(before)
    assert not plain


def test_reversed_sequences_have_no_labels(shop):
    """In one pass: the items are taught there, with full weight and no ranking; all others keep their labels."""
    straight = {}
    for batch in sampler(shop, DWR, one_pass=True, confidence=1.0, rank_positions="all").batches(0):
        for (history, target), weight in zip(examples_of(batch), batch.weights.tolist(), strict=True):
            straight[(*history, target)] = weight
    seen = {True: 0, False: 0}
    for batch in sampler(shop, DWR, one_pass=True, confidence=1.0, rank_positions="all", reverse=0.5).batches(0):
        for example, (history, target) in enumerate(examples_of(batch)):
            hard, weight = bool(batch.label_invalid[example]), batch.weights[example].item()
            seen[hard] += 1
            assert batch.rank_weights[example] == (0 if hard else weight)
            if hard:
                assert weight == 1
            else:
                assert batch.candidates[example, 0] == target and weight == straight[(*history, target)]
    assert min(seen.values()) > 5 and sum(seen.values()) == len(straight)
    assert not any(
        batch.label_invalid.any() for batch in sampler(shop, Loss(None, rank=True), True, reverse=1.0).batches(0)
    )


def test_items_of_the_teachers_list():
    lists, scores = np.array([[4, 5, 6], [7, 8, PAD]]), np.array([[-3.0, -1, -2], [-1, -2, -np.inf]])
    assert item_of_list(lists, scores, "top", np.zeros(2)).tolist() == [5, 7]
    assert item_of_list(lists, scores, "random", np.array([0.99, 0.99])).tolist() == [6, 8]
    assert item_of_list(lists, scores, "random", np.array([0.3, 0.3])).tolist() == [5, 7]  # 4 is there by force


def test_a_random_item_is_of_the_teachers_own_list():
    """The reference, in front, is drawn where the teacher ranks it above another candidate, or has nothing else."""
    lists = np.array([[4, 5, 6, 7], [4, 5, 6, 7], [4, 5, PAD, PAD], [4, PAD, PAD, PAD]])
    scores = np.array([[-9, -1, -2, -3], [-2.5, -1, -2, -3], [-1, -2, -np.inf, -np.inf], [-9, *[-np.inf] * 3]])
    draws = (np.arange(60) + 0.5) / 60
    drawn = np.stack([item_of_list(lists, scores, "random", np.full(4, draw)) for draw in draws], axis=1)
    counts = [dict(zip(*map(list, np.unique(row, return_counts=True)), strict=True)) for row in drawn]
    assert counts == [{5: 20, 6: 20, 7: 20}, {4: 15, 5: 15, 6: 15, 7: 15}, {4: 30, 5: 30}, {4: 60}]


def test_the_teachers_first_is_taught(shop):
    block = shop[1].load()
    rows = np.arange(len(block.users))
    tops = item_of_list(block.candidates(rows), block.scores(rows), "top", np.zeros(len(rows)))
    actual = [target for _, target in all_of([sampler(shop, Loss("nll", target="top"))])]
    assert sorted(actual) == sorted(tops.tolist()) and (tops != block.targets).any()


def test_confidence(shop):
    """Weights by hand: 1 / rank; no ranking after the second place."""
    block = shop[1].load()
    scores = block.scores(np.arange(len(block.users)))
    ranks = 1 + (scores[:, 1:] > scores[:, :1]).sum(1)
    batches = list(sampler(shop, DWR, confidence=1.0, rank_within=2, batch_size=1000).batches(0))
    assert sorted(np.concatenate([batch.weights for batch in batches])) == pytest.approx(sorted(1 / ranks))
    assert sum(batch.total for batch in batches) == pytest.approx((1 / ranks).sum())
    inside = np.where(ranks <= 2, 1 / ranks, 0)
    assert sorted(np.concatenate([batch.rank_weights for batch in batches])) == pytest.approx(sorted(inside))
    assert sum(batch.rank_total for batch in batches) == pytest.approx(inside.sum())


def test_a_loss_without_distill_is_not_weighted_by_the_teacher(shop):
    """Table 2's "w/o DISTILL": equation (8) weighs all examples alike; the ranking loss keeps its weights."""
    without, dwr = ((sampler(shop, loss, confidence=1.0)) for loss in (Loss("nll", rank=True), DWR))
    for batch, same in zip(without.batches(0), dwr.batches(0), strict=True):
        assert (batch.weights == 1).all() and batch.total == batch.count
        assert (batch.rank_weights == same.rank_weights).all() and batch.rank_total == same.rank_total
        assert (same.weights != 1).any()


def with_prior(shop, name, teacher="distance", loss=DWR, **changes):
    prior = open_prior(shop[0].artifact.folder.parent / name, teacher)
    return BatchSampler(shop[0], shop[1], loss, False, dataclasses.replace(CONFIG, **changes), prior=prior)


def test_a_prior_changes_the_order_and_nothing_else(shop):
    """Its candidates, and where it puts the reference; weights and distributions stay the teacher's."""
    root = shop[0].artifact.folder.parent
    make_prior(root, "aligned", "distance", keep=K + 2)
    blocks = shop[1].load(), LabelStore.open(root / "aligned").load()
    teacher, prior = (
        {(u, p): row for u, p, row in zip(block.users, block.positions, block.candidates(), strict=True)}
        for block in blocks
    )
    skipped = {(u, p) for u, p, row in zip(blocks[1].users, blocks[1].positions, blocks[1].scores(), strict=True)
               if sum(row[1:K] > row[0]) >= 3}  # fmt: skip
    assert 0 < len(skipped) < len(teacher)
    assert teacher.keys() == prior.keys() and any((teacher[key] != prior[key][:K]).any() for key in teacher)
    examples = shop[0].examples("train", CONFIG.max_history)
    keys = {}
    for user, position, history in zip(examples.users, examples.positions, examples.histories, strict=True):
        history = tuple(history[history != PAD].tolist())
        keys[history, int(shop[0].values[shop[0].offsets[user] + position])] = (user, position)
    changes = {"confidence": 1.0, "rank_within": 3}
    count = 0
    pairs = zip(
        with_prior(shop, "aligned", **changes).batches(0), sampler(shop, DWR, **changes).batches(0), strict=True
    )
    for actual, before in pairs:
        for name in ("sequences", "targets", "weights", "log_probs"):
            assert (getattr(actual, name) == getattr(before, name)).all(), name
        rows = zip(examples_of(before), actual.candidates.numpy(), actual.weights, actual.rank_weights, strict=True)
        for example, candidates, weight, ranked in rows:
            assert candidates.tolist() == prior[keys[example]][:K].tolist()
            assert ranked == (0 if keys[example] in skipped else weight)
            count += 1
    assert count == len(teacher)


def test_priors_that_do_not_fit(shop):
    root = shop[0].artifact.folder.parent
    make_prior(root, "few", "statistics", keep=3)
    make_prior(root, "part", "statistics", examples=slice(0, 20))
    with pytest.raises(UserError, match="has 3 candidates an example, --candidates asks for 5"):
        with_prior(shop, "few", "statistics")
    assert with_prior(shop, "few", "statistics", candidates=3).prior.candidates.shape[1] == 3
    with pytest.raises(UserError, match=r"part lacks \d+ of the \d+ examples of .*soft_labels, first the item at"):
        with_prior(shop, "part", "statistics")
    with pytest.raises(UserError, match=r"--prior distance, but .*part holds the labels of statistics"):
        with_prior(shop, "part", "distance")
    with pytest.raises(UserError, match=r"--prior distance, but .*soft_labels holds the labels of a language model"):
        with_prior(shop, "soft_labels", "distance")


def test_refusals(shop):
    with pytest.raises(UserError, match="has 5 candidates an example, --candidates asks for 6"):
        sampler(shop, DWR, candidates=6)
    dataset, store = shop
    later = dataclasses.replace(store, index=store.index | {"split": "valid"})
    with pytest.raises(UserError, match="labels the valid split, which no student may see"):
        BatchSampler(dataset, later, DISTILL, False, CONFIG)
    wide = dataclasses.replace(store, index=store.index | {"scope": "all"})
    with pytest.raises(UserError, match="over all levels' codewords, --scope level asks for each level's own"):
        check_scope(wide, DISTILL, "level")
    others = dataclasses.replace(dataset, values=(dataset.values + 1) % ITEMS)
    with pytest.raises(UserError, match="another data set, or another split"):
        list(BatchSampler(others, store, DWR, False, CONFIG).batches(0))


def test_a_thread_prepares_the_batches():
    with Prefetcher(iter(range(100)), depth=2) as numbers:
        assert list(numbers) == list(range(100)) and numbers.waited >= 0

    def failing():
        yield 1
        raise UserError("no such shard")

    with Prefetcher(failing()) as numbers, pytest.raises(UserError, match="no such shard"):
        list(numbers)
    with Prefetcher(iter(range(10**9)), depth=1) as numbers:  # a training that stops leaves nobody behind
        assert next(iter(numbers)) == 0
    assert not numbers._thread.is_alive()
