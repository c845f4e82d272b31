"""LC-Rec's forms of the tasks, as options: samples of three items put together by hand."""

import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from distill.data.dataset import Dataset, write_dataset
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, write_codes
from teacher import templates
from teacher.base_model import from_scratch
from teacher.batching import EpochDraws, epoch_batches, make_batches
from teacher.config import Config, InstructionSettings, check
from teacher.engines.hf import HFEngine
from teacher.samples import Sample, Samples
from teacher.tasks import TaskData
from teacher.tokenizer import add_codewords, train_tokenizer

ITEMS = {
    "item_id": ["tent", "lamp", "rope"],
    "title": ["Red tent", "Oil lamp", ""],
    "description": ["Sleeps two.", "", "Ties things."],
    "brand": ["Nord", "Sol", "Nord"],
}
CODES = np.array([[0, 0], [0, 1], [1, 0]])
TENT, LAMP, ROPE = "<a_0><b_0>", "<a_0><b_1>", "<a_1><b_0>"
# training parts: tent, lamp, tent / rope, lamp; the last two items of each validate and test
SEQUENCES = [[0, 1, 0, 2, 1], [2, 1, 0, 0]]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        write_dataset(folder, pa.table(ITEMS), ["u0", "u1"], [np.array(row) for row in SEQUENCES])
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids").write() as folder:
        write_codes(folder, ITEMS["item_id"], CODES)
        write_json(folder / "report.json", {"codebook_size": 2})
    return Dataset.load(root / "dataset"), SemanticIDs.load(root / "semantic_ids", 3)


def task_data(shop, intentions=None, **forms):
    tokenizer = train_tokenizer(["Red tent", "Oil lamp"], 300)
    add_codewords(tokenizer, shop[1])
    return TaskData(*shop, tokenizer, 4, 256, None, intentions, None, InstructionSettings(**forms))


def drawn(data, task, epochs):
    """(prompt, response) of all samples of some epochs, as text; the loss counts the response, and only that."""
    pairs = []
    for epoch in range(epochs):
        for sample in data.epoch({task: 1.0}, 0, epoch):
            split = int(np.argmax(sample.counted))
            assert sample.counted[split:].all() and not sample.counted[:split].any()
            pairs.append(tuple(data.tokenizer.decode(part) for part in (sample.tokens[1:split], sample.tokens[split:])))
    return pairs


def filled(lines, answer, **parts):
    return {(line.format(**parts), answer) for line in lines}


def test_item2index_by_title_by_description_and_by_both(shop):
    wanted = filled(templates.ITEM2INDEX_TITLE, TENT, title="Red tent")
    wanted |= filled(templates.ITEM2INDEX_DESCRIPTION, TENT, description="Sleeps two.")
    wanted |= filled(templates.ITEM2INDEX_BOTH, TENT, title="Red tent", description="Sleeps two.")
    wanted |= filled(templates.ITEM2INDEX_TITLE, LAMP, title="Oil lamp")  # it has no description
    wanted |= filled(templates.ITEM2INDEX_DESCRIPTION, ROPE, description="Ties things.")  # it has no title
    pairs = drawn(task_data(shop, item_fields="lcrec"), "item2index", 150)
    assert len(pairs) == 450 and set(pairs) == wanted
    assert ("Which item is called Red tent? Answer: ", TENT) in wanted
    tents = [prompt for prompt, answer in pairs if answer == TENT]
    forms = Counter(("tent" in prompt, "Sleeps" in prompt) for prompt in tents)
    assert min(forms[form] for form in ((True, False), (False, True), (True, True))) > 35  # about 50 of 150 each


def test_index2item_to_title_to_description_and_to_both(shop):
    wanted = filled(templates.INDEX2ITEM_TITLE, "Red tent</s>", item=TENT)
    wanted |= filled(templates.INDEX2ITEM_DESCRIPTION, "Sleeps two.</s>", item=TENT)
    wanted |= filled(templates.INDEX2ITEM_BOTH, "Red tent\n\nSleeps two.</s>", item=TENT)
    wanted |= filled(templates.INDEX2ITEM_TITLE, "Oil lamp</s>", item=LAMP)
    wanted |= filled(templates.INDEX2ITEM_DESCRIPTION, "Ties things.</s>", item=ROPE)
    assert set(drawn(task_data(shop, item_fields="lcrec"), "index2item", 150)) == wanted


def test_items_of_other_texts(shop, tmp_path):
    """An item with neither title nor description is named by the rest of its text; one without any text is left out."""
    items = {"item_id": ["tent", "lamp", "rope"], "title": ["", None, ""], "brand": ["Nord", "", None]}
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as folder:
        write_dataset(folder, pa.table(items), ["u0"], [np.array(SEQUENCES[0])])
    data = task_data((Dataset.load(tmp_path / "dataset"), shop[1]), item_fields="lcrec")
    assert set(drawn(data, "item2index", 60)) == filled(templates.ITEM2INDEX_TITLE, TENT, title="Nord")


def test_searches_with_preferences(shop):
    """Derived from what was bought before the item, never from the item itself."""
    wanted = set()
    for history, preference, query, answer in (
        (TENT, "Prefers the brands Nord.", "Oil lamp", LAMP),
        (f"{TENT}, {LAMP}", "Prefers the brands Nord, Sol.", "Red tent", TENT),
        (ROPE, "Prefers the brands Nord.", "Oil lamp", LAMP),
    ):
        parts = {"history": history, "query": query, "preference": preference}
        wanted |= filled(templates.ITEMSEARCH + templates.ITEMSEARCH_PREFERENCE, answer, **parts)
    assert set(drawn(task_data(shop, search_preferences=True), "itemsearch", 300)) == wanted
    plain = set(drawn(task_data(shop), "itemsearch", 300))
    assert plain < wanted and not any("Prefers" in prompt for prompt, _ in plain)


def test_preferences_of_a_file(shop, tmp_path):
    """A user without preferences, or without a history, is asked about without them."""
    path = tmp_path / "shop.user.json"
    train = {"u0": {"item": 1, "querys": ["a light"]}, "u1": {"item": 1, "querys": ["oil"]}}
    content = {"user_explicit_preference": {"u0": ["Camps.", "Walks."]}, "user_vague_intention": {"train": train}}
    path.write_text(json.dumps(content))
    wanted = filled(templates.ITEMSEARCH, LAMP, history=ROPE, query="oil")
    for preference in ("Camps.", "Walks."):
        lines = templates.ITEMSEARCH + templates.ITEMSEARCH_PREFERENCE
        wanted |= filled(lines, LAMP, history=TENT, query="a light", preference=preference)
    assert set(drawn(task_data(shop, path, search_preferences=True), "itemsearch", 400)) == wanted
    train["u0"]["item"] = 0
    content["user_vague_intention"]["train"]["u1"]["item"] = 2  # the first item of u1: no history
    content["user_explicit_preference"] = {"u1": "Ties."}
    path.write_text(json.dumps(content))
    pairs = drawn(task_data(shop, path, search_preferences=True), "itemsearch", 100)
    assert not any("Ties" in prompt for prompt, _ in pairs)


@pytest.mark.parametrize("task", ["seqrec", "item2index", "itemsearch", "fusionseqrec"])
def test_ids_that_end_with_eos(shop, task):
    plain, ended = ([*task_data(shop, id_eos=eos).epoch({task: 1.0}, 0, 0)] for eos in (False, True))
    eos = task_data(shop).tokenizer.eos_token_id
    for without, with_eos in zip(plain, ended, strict=True):
        if without.tokens[-1] == eos:  # a text
            np.testing.assert_array_equal(with_eos.tokens, without.tokens)
            continue
        np.testing.assert_array_equal(with_eos.tokens, [*without.tokens, eos])
        np.testing.assert_array_equal(with_eos.counted, [*without.counted, True])
    assert any(len(with_eos.tokens) > len(without.tokens) for without, with_eos in zip(plain, ended, strict=True))


def test_streams_have_no_eos(shop):
    plain, ended = (task_data(shop, id_eos=eos).epoch({"stream": 1.0}, 0, 0) for eos in (False, True))
    assert [sample.tokens.tolist() for sample in plain] == [sample.tokens.tolist() for sample in ended]


def test_lists_do_not_depend_on_eos(shop):
    """They are a function of the model: an ID has a fixed length."""
    engines = []
    for eos in (False, True):
        data = task_data(shop, id_eos=eos)
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        engines.append(HFEngine(from_scratch(data.tokenizer, sizes, 256), data, "seqrec"))
    for plain, ended in zip(*(engine.beams(np.array([[0, 1], [2, -1]]), 3, False) for engine in engines), strict=True):
        np.testing.assert_array_equal(plain, ended)


def test_a_number_of_samples(shop):
    """Drawn anew each epoch; more than a full pass are whole passes and a part of one."""
    data = task_data(shop)
    full = {tuple(sample.tokens) for sample in data.epoch({"item2index": 1.0}, 0, 0)}
    two = [[tuple(sample.tokens) for sample in data.epoch({}, 0, epoch, {"item2index": 2})] for epoch in range(9)]
    assert all(len(samples) == 2 for samples in two) and set(two[0]) < full
    items = [frozenset(tokens[-2:] for tokens in samples) for samples in two]
    assert len(set(items)) == 3  # each of the three pairs of items came up
    seven = data.epoch({"item2index": 0.5}, 0, 0, {"item2index": 7})  # in place of the weight
    ids = Counter(data.tokenizer.decode(sample.tokens[-2:]) for sample in seven)
    assert len(seven) == 7 and sorted(ids.values()) == [2, 2, 3]
    mixed = data.epoch({"seqrec": 1.0}, 0, 0, {"item2index": 2})
    assert len(mixed) == 3 + 2 and {tuple(sample.tokens) for sample in mixed} > set(two[0])
    assert len(data.epoch({}, 0, 0, {"stream": 5})) == 5  # two users' streams: two passes and a half


def listed(samples, batches):
    """Tokens of all samples, and their numbers in the batches."""
    return [sample.tokens.tolist() for sample in samples], [[list(row) for row in batch] for batch in batches]


def test_an_epochs_batches_of_a_number_of_samples(shop):
    config = Config(tasks={"seqrec": 1.0}, task_samples={"item2index": 2}, batch_samples=2, seed=3)
    (samples, batches), again = (epoch_batches(task_data(shop), config, 1) for _ in range(2))
    assert len(samples) == 5 and sorted(len(batch) for batch in batches) == [1, 2, 2]
    assert listed(*again) == listed(samples, batches)


def test_epochs_are_drawn_one_at_a_time(shop, monkeypatch):
    """In any order the samples and batches of drawing all at once; the first is not drawn twice before it is needed."""
    config = Config(tasks={"seqrec": 0.5, "stream": 1.5}, batch_samples=2, seed=3, epochs=3)
    expected, drawn = [epoch_batches(task_data(shop), config, epoch) for epoch in range(3)], []

    def draw(data, settings, epoch, learned):
        drawn.append(epoch)
        return epoch_batches(data, settings, epoch, learned)

    monkeypatch.setattr("teacher.batching.epoch_batches", draw)
    data = task_data(shop)
    epochs = EpochDraws(data, config)
    assert epochs.n_batches == [len(batches) for _, batches in expected] and sorted(drawn) == [0, 1, 2]
    drawn.clear()
    monkeypatch.setattr(data, "to_samples", None)  # lengths are known: nothing is written again to learn them
    order = (0, 0, 1, 1, 2, 1)  # a resumed run begins with a later one
    sizes = [(epochs[number][0].lengths.tolist(), epochs[number][0].counts.tolist()) for number in order]
    assert drawn == [1, 2, 1]
    assert sizes == [(expected[n][0].lengths.tolist(), expected[n][0].counts.tolist()) for n in order]
    monkeypatch.undo()
    for number in order:
        assert listed(*epochs[number]) == listed(*expected[number])
    assert listed(*expected[0]) != listed(*expected[1])


def test_streams_are_written_when_a_batch_asks_for_them(shop, monkeypatch):
    """Lengths and counts of streams of codewords follow from their items alone."""
    data = task_data(shop)
    plain = list(data.epoch({"stream": 1.0}, 0, 0))
    monkeypatch.setattr(data.writer, "sequence", None)
    samples = data.epoch({"stream": 1.0}, 0, 0)
    assert samples.lengths.tolist() == [len(sample.tokens) for sample in plain]
    assert samples.counts.tolist() == [sample.counted.sum() for sample in plain] and not samples.are_weighted


def test_samples_of_several_tasks_in_any_order(shop):
    data = task_data(shop)
    samples = data.epoch({"stream": 2.0, "seqrec": 1.0, "item2index": 1.0}, 0, 0)
    rows = np.random.default_rng(0).integers(0, len(samples), 20)
    taken = [sample.tokens.tolist() for sample in samples.take(rows)]
    assert taken == [samples[row].tokens.tolist() for row in rows.tolist()]
    with pytest.raises(IndexError):
        samples[len(samples)]


@pytest.mark.parametrize(("limit", "largest"), [(0, 4), (3, 3), (9, 4)])
def test_limits_of_a_batch(limit, largest):
    """Four samples fit into the tokens."""
    samples = Samples.of([Sample(np.zeros(5, int), np.ones(5, bool))] * 30)
    batches = make_batches(samples, 20, np.random.default_rng(0), max_samples=limit)
    assert max(map(len, batches)) == largest
    assert sorted(number for batch in batches for row in batch for number in row) == list(range(30))


BASE = Config(tasks={"stream": 1.0, "seqrec": 1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_samples": {"fusionsegrec": 20}}, "Unknown task 'fusionsegrec'. Did you mean 'fusionseqrec'"),
        ({"tasks": {"stream": 1.0, "seqrec": 0.0}, "task_samples": {"seqrec": 20}}, "tasks.seqrec is 0 but"),
        ({"item_fields": "lcrec"}, "give tasks.item2index"),
        ({"search_preferences": True}, "give tasks.itemsearch"),
        ({"tasks": {"stream": 1.0}, "id_eos": True}, "such as tasks.seqrec"),
        ({"lora_embeddings": "all"}, "give --mode lora or qlora"),
        ({"batch_samples": 8, "packing": True}, "set --packing false"),
    ],
)
def test_options_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        check(replace(BASE, **changes))


def test_a_prompt_whose_task_has_a_number():
    check(replace(BASE, tasks={}, task_samples={"seqrec": 100}, prompt="seqrec"))


def test_options_are_in_the_identity_only_where_they_are_set(tmp_path):
    def identity(config):
        return ArtifactJob("teacher", config, tmp_path / "teacher").identity

    changes = {"task_samples": {"item2index": 3}, "id_eos": True, "lora_embeddings": "all", "codeword_lr": 0.01}
    assert identity(BASE)["extra"] == {}
    assert identity(replace(BASE, **changes))["extra"] == changes
    assert identity(replace(BASE, **changes))["config"] == identity(BASE)["config"]
    assert not changes.keys() & identity(BASE)["config"].keys()
