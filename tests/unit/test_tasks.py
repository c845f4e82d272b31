"""Samples of the six tasks against words put together by hand, and what their draw may depend on."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.dataset import Dataset, write_dataset
from distill.data.splits import assign_folds
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, write_codes
from teacher import templates, user_intents
from teacher.batching import collate, make_batches, pack, padded_size
from teacher.config import TASKS, AugmentationSettings, Config
from teacher.samples import Sample, Samples
from teacher.tasks import TaskData
from teacher.tokenizer import add_codewords, load_tokenizer, train_tokenizer, use_chat_template

TITLES = ["Red tent XL", "Blue tent XL", "Oil lamp", "Gas lamp 40cm", "Long rope", "Copper kettle"]
KINDS = [
    "Camping > Tents",
    "Camping > Tents",
    "Light, Lamps",
    "Light, Lamps",
    "",
    "Kitchen Things of all sorts Tea Kettles",
]
BRANDS = ["Nord", "Nord", "Sol", "", "", "Nord"]
DESCRIPTIONS = ["Sleeps two.", "", "", "Burns long.", "", ""]
SEQUENCES = [[0, 1, 2, 3, 4], [4, 5, 0, 2], [2, 3, 1]]  # the last two items of each test and validate
CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1], [2, 0, 1]])
SIX = ("seqrec", "item2index", "index2item", "fusionseqrec", "itemsearch", "preferenceobtain")


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make_shop(root, texts=True, users=3):
    """Both artifacts; users beyond the third buy as the first three do."""
    names = [f"i{number}" for number in range(len(CODES))]
    items = {"item_id": names}
    if texts:
        items |= {"title": TITLES, "categories": KINDS, "brand": BRANDS, "description": DESCRIPTIONS}
    rows = [np.array(SEQUENCES[user % 3]) for user in range(users)]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        write_dataset(folder, pa.table(items), [str(7 + user) for user in range(users)], rows)
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids").write() as folder:
        write_codes(folder, names, CODES)
        write_json(folder / "report.json", {"codebook_size": 3})
    return Dataset.load(root / "dataset"), SemanticIDs.load(root / "semantic_ids", len(CODES))


def task_data(shop, max_tokens=512, **more):
    tokenizer = train_tokenizer(TITLES, 300)
    add_codewords(tokenizer, shop[1])
    return TaskData(*shop, tokenizer, 4, max_tokens, **more)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def data(shop):
    return task_data(shop)


def words(data, sample):
    """(prompt, response) of a sample as text."""
    assert sample.tokens[0] == data.tokenizer.bos_token_id and not sample.counted[0]
    split = int(np.argmax(sample.counted))
    assert sample.counted[split:].all() and not sample.counted[:split].any()  # the response, and only that
    return tuple(data.tokenizer.decode(part) for part in (sample.tokens[1:split], sample.tokens[split:]))


def drawn(data, task, epochs=40, weight=1.0):
    """The (prompt, response) pairs of some epochs."""
    return [words(data, s) for epoch in range(epochs) for s in data.epoch({task: weight}, 0, epoch)]


def all_of(lists, **fields):
    return {line.format(**fields) for line in lists}


def test_seqrec(data):
    """The training part is [0, 1, 2], [4, 5], [2]: three examples."""
    ids = data.ids.text
    expected = [((0,), 1), ((0, 1), 2), ((4,), 5)]
    pairs = drawn(data, "seqrec")
    assert len(pairs) == 40 * 3
    wanted = {
        (prompt, ids(target))
        for history, target in expected
        for prompt in all_of(templates.SEQREC, history=", ".join(map(ids, history)))
    }
    assert set(pairs) == wanted  # in 40 epochs every template came up with every example


def test_item2index_and_index2item(data):
    ids = data.ids.text
    assert "Red tent XL. Nord. Camping > Tents. Sleeps two." in data.questions.texts
    wanted = {
        (p, ids(i)) for i, text in enumerate(data.questions.texts) for p in all_of(templates.ITEM2INDEX, text=text)
    }
    assert set(drawn(data, "item2index", 80)) == wanted
    wanted = {(p, f"{TITLES[i]}</s>") for i in range(6) for p in all_of(templates.INDEX2ITEM, item=ids(i))}
    assert set(drawn(data, "index2item", 80)) == wanted


def test_fusionseqrec(data):
    ids = data.ids.text
    found = set(drawn(data, "fusionseqrec", 300))
    wanted = set()
    for history, target in (((0,), 1), ((0, 1), 2), ((4,), 5)):  # none of these targets has a description
        prompts = all_of(templates.FUSION_TO_TEXT, history=", ".join(map(ids, history)), field="title")
        wanted |= {(prompt, f"{TITLES[target]}</s>") for prompt in prompts}
        prompts = all_of(templates.FUSION_TO_ITEM, history="; ".join(TITLES[item] for item in history))
        wanted |= {(prompt, ids(target)) for prompt in prompts}
    assert found == wanted


def test_fusionseqrec_asks_for_descriptions_where_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "DESCRIPTIONS", ["Some words."] * 6)
    data = task_data(make_shop(tmp_path))
    pairs = drawn(data, "fusionseqrec", 100)
    described = [answer for _, answer in pairs if answer == "Some words.</s>"]
    titled = [answer for _, answer in pairs if answer.endswith("</s>") and answer != "Some words.</s>"]
    assert abs(len(described) - 75) < 25 and abs(len(titled) - 75) < 25  # a quarter of 300 each
    assert all("description" in prompt for prompt, answer in pairs if answer == "Some words.</s>")


def test_queries_and_preferences_by_the_rules(data):
    rules = user_intents.ItemWords(data.dataset)
    assert rules.kinds == ["Tents", "Tents", "Lamps", "Lamps", "", "Tea Kettles"]
    # "tent" and "lamp" are held by two titles, "XL" and "40cm" are no words
    assert rules.words == ["Red tent", "Blue tent", "Oil lamp", "Gas lamp", "Long rope", "Copper kettle"]
    assert rules.queries(0) == ["Tents from Nord", "Tents, Red tent", "Red tent"]
    assert rules.queries(3) == ["Lamps, Gas lamp", "Gas lamp"]
    assert rules.queries(4) == ["Long rope"]
    assert rules.preference([2, 0, 1]) == "Mostly buys Tents, Lamps. Prefers the brands Nord, Sol."
    assert rules.preference([4]) == "Likes Long rope."


def test_the_rarest_words_without_the_brand(tmp_path, monkeypatch):
    titles = ["Nord steel kettle with whistle", "steel cup", "steel kettle", "lamp", "rope", "Nord tent"]
    monkeypatch.setitem(globals(), "TITLES", titles)
    rules = user_intents.ItemWords(make_shop(tmp_path)[0])
    assert rules.words[0] == "kettle with whistle"  # steel is in three titles, Nord is the brand


def test_itemsearch(data):
    ids = data.ids.text
    queries = {
        1: ["Tents from Nord", "Tents, Blue tent", "Blue tent"],
        2: ["Lamps from Sol", "Lamps, Oil lamp", "Oil lamp"],
    }
    queries[5] = ["Tea Kettles from Nord", "Tea Kettles, Copper kettle", "Copper kettle"]
    wanted = {
        (prompt, ids(target))
        for history, target in (((0,), 1), ((0, 1), 2), ((4,), 5))
        for query in queries[target]
        for prompt in all_of(templates.ITEMSEARCH, query=query, history=", ".join(map(ids, history)))
    }
    assert set(drawn(data, "itemsearch", 300)) == wanted


def test_preferenceobtain(data):
    """Users with one item in the training part say nothing."""
    ids = data.ids.text
    wanted = set()
    for history, text in (
        ((0, 1, 2), "Mostly buys Tents, Lamps. Prefers the brands Nord, Sol."),
        ((4, 5), "Mostly buys Tea Kettles. Prefers the brands Nord."),
    ):
        prompts = all_of(templates.PREFERENCEOBTAIN, history=", ".join(map(ids, history)))
        wanted |= {(prompt, f"{text}</s>") for prompt in prompts}
    assert set(drawn(data, "preferenceobtain")) == wanted


def test_nothing_of_what_tests_or_validates_is_seen(data):
    """Items 3 and 4 of the first user, and so on, are never a target or part of a history after training items."""
    for task in ("seqrec", "fusionseqrec", "itemsearch", "preferenceobtain"):
        for prompt, answer in drawn(data, task, 5):
            assert data.ids.text(3) not in prompt + answer and "Gas" not in prompt + answer


USER_JSON = {
    "user_explicit_preference": {"7": ["Wants light.", "Camps."], "8": "Cooks."},
    "user_vague_intention": {
        "train": {
            "7": {"item": 2, "inters": [4, 4], "querys": ["something for the night", "a small light"]},
            "8": {"item": "4", "inters": [], "querys": ["tie it up"]},
        },
        "test": {"7": {"item": 4, "inters": [], "querys": ["leak"]}},
    },
}


def with_file(shop, tmp_path, content):
    path = tmp_path / "shop.user.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return task_data(shop, intentions_file=path)


def test_intentions_of_a_file(shop, tmp_path):
    data = with_file(shop, tmp_path, USER_JSON)
    ids = data.ids.text
    bare = [line for line in templates.ITEMSEARCH if "{history}" not in line]
    wanted = {
        (prompt, ids(2))
        for query in ("something for the night", "a small light")
        for prompt in all_of(templates.ITEMSEARCH, query=query, history=f"{ids(0)}, {ids(1)}")
    }
    wanted |= {(prompt, ids(4)) for prompt in all_of(bare, query="tie it up")}  # the user's first item: no history
    assert set(drawn(data, "itemsearch", 200)) == wanted
    answers = {answer for _, answer in drawn(data, "preferenceobtain")}
    assert answers == {"Wants light.</s>", "Camps.</s>", "Cooks.</s>"}


def changed(**train):
    return USER_JSON | {
        "user_vague_intention": {"train": {"7": USER_JSON["user_vague_intention"]["train"]["7"] | train}}
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{\n\n", ":3: not readable as JSON"),
        ({"user_explicit_preference": {}}, 'expected {"user_explicit_preference"'),
        ([], "for user_explicit_preference"),
        (changed(item="red"), "user '7' has"),
        (changed(querys="light"), "user '7' has"),
        (changed(querys=[3]), "where texts belong"),
        (changed(item=4), "item 4, which is not in the training part"),
        (USER_JSON | {"user_explicit_preference": {"70": "Reads."}}, "names user '70'"),
    ],
)
def test_files_of_another_form(shop, tmp_path, content, said):
    with pytest.raises(UserError) as error:
        with_file(shop, tmp_path, content).epoch({"itemsearch": 1.0, "preferenceobtain": 1.0}, 0, 0)
    assert said in str(error.value) and "shop.user.json" in str(error.value)


def test_no_file(shop, tmp_path):
    with pytest.raises(UserError, match="No file of intentions"):
        task_data(shop, intentions_file=tmp_path / "none").epoch({"itemsearch": 1.0}, 0, 0)


def test_without_texts(tmp_path):
    data = task_data(make_shop(tmp_path, texts=False))
    for task in SIX[1:]:
        with pytest.raises(UserError, match=f"'{task}' needs texts"):
            data.epoch({"stream": 1.0, task: 0.5}, 0, 0)
    assert len(data.epoch({"stream": 1.0, "seqrec": 1.0}, 0, 0)) == 3 + 3


def key(sample):
    return tuple(sample.tokens.tolist()), tuple(sample.counted.tolist())


@settings(max_examples=30, deadline=None)
@given(
    task=st.sampled_from(SIX),
    others=st.dictionaries(st.sampled_from(TASKS), st.floats(0.1, 2.0)),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_a_sample_does_not_depend_on_the_other_tasks(data, task, others, seed, epoch):
    alone = [key(sample) for sample in data.epoch({task: 1.0}, seed, epoch)]
    mixed = [key(sample) for sample in data.epoch(others | {task: 1.0}, seed, epoch)]
    assert any(mixed[start : start + len(alone)] == alone for start in range(len(mixed)))


@settings(max_examples=30, deadline=None)
@given(task=st.sampled_from(SIX), weight=st.floats(0.05, 3.0), seed=st.integers(0, 9))
def test_weights_and_subsets(data, task, weight, seed):
    """A share of a pass is a subset of the pass; a second pass draws anew."""
    size = data.sizes()[task]
    one = [key(sample) for sample in data.epoch({task: 1.0}, seed, 0)]
    some = [key(sample) for sample in data.epoch({task: weight}, seed, 0)]
    assert len(one) == size and len(some) == int(weight) * size + round((weight - int(weight)) * size)
    if weight < 1:
        assert set(some) <= set(one)
    else:
        assert some[:size] == one


def test_draws_change_with_seed_epoch_and_pass(data):
    drawings = [
        [key(s) for s in data.epoch({"item2index": 2.0}, seed, epoch)] for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert drawings[0] != drawings[1] and drawings[0] != drawings[2]
    assert drawings[0][:6] != drawings[0][6:]


def test_long_prompts_lose_their_beginning(shop):
    data, short = task_data(shop), task_data(shop, max_tokens=20)
    for whole, cut in zip(data.epoch({"seqrec": 1.0}, 0, 0), short.epoch({"seqrec": 1.0}, 0, 0), strict=True):
        assert len(cut.tokens) == 20 < len(whole.tokens)
        assert cut.tokens.tolist() == [whole.tokens[0], *whole.tokens[-19:]]
        assert cut.counted.sum() == 3


def streams(shop, **augmentation):
    return task_data(shop, augmentation=AugmentationSettings(**augmentation)).epoch({"stream": 1.0}, 0, 0)


def test_streams_run_backwards_and_lose_items_where_asked(tmp_path):
    shop = make_shop(tmp_path)
    plain, backwards = (streams(shop, reverse=share) for share in (0.0, 1.0))
    for row in range(len(plain)):
        items = plain[row].tokens[1:].reshape(-1, 3)
        np.testing.assert_array_equal(backwards[row].tokens[1:].reshape(-1, 3), items[::-1])
        np.testing.assert_array_equal(backwards[row].counted, plain[row].counted)
    shop = make_shop(tmp_path / "many", users=600)
    whole, fewer = (streams(shop, drop_items=share) for share in (0.0, 0.2))
    assert len(fewer) == len(whole) == 600
    assert (fewer.lengths >= np.minimum(whole.lengths, 1 + 2 * 3)).all()  # two items at least, where there are so many
    assert fewer.lengths.sum() < whole.lengths.sum()


@pytest.mark.parametrize("fold", [0, 1])
def test_cross_fitting_hides_the_users_of_a_fold(tmp_path, fold):
    """No item sells to two users here, so an item's ID betrays its buyer; no task may show one of the fold."""
    users, each = 8, 4
    names = [f"i{number}" for number in range(users * each)]
    rows = [np.arange(user * each, (user + 1) * each) for user in range(users)]
    codes = np.stack([np.arange(users * each) // 16, np.arange(users * each) // 4 % 4, np.arange(users * each) % 4], 1)
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as folder:
        table = pa.table({"item_id": names, "title": TITLES[:4] * users, "categories": KINDS[:4] * users})
        write_dataset(folder, table, [f"u{number}" for number in range(users)], rows)
    with ArtifactJob("semantic_ids", Nothing(), tmp_path / "semantic_ids").write() as folder:
        write_codes(folder, names, codes)
        write_json(folder / "report.json", {"codebook_size": 4})
    shop = Dataset.load(tmp_path / "dataset"), SemanticIDs.load(tmp_path / "semantic_ids", len(names))
    tokenizer = train_tokenizer(TITLES, 300)
    add_codewords(tokenizer, shop[1])
    entry = {f"u{user}": {"item": str(user * each), "querys": ["a thing"]} for user in range(users)}
    file = tmp_path / "shop.user.json"
    file.write_text(
        json.dumps({"user_explicit_preference": {"u0": ["Tents."]}, "user_vague_intention": {"train": entry}})
    )
    tasks = ("stream", "seqrec", "fusionseqrec", "itemsearch", "preferenceobtain")
    for intention in (None, file):
        config = Config(max_history=4, folds=2, fold=fold, intentions=intention)
        data = TaskData.of(config, *shop, tokenizer)
        samples = [data.epoch({task: 3.0}, 0, 0) for task in tasks if task != "preferenceobtain" or not intention]
        texts = "".join(tokenizer.decode(sample.tokens) for group in samples for sample in group).replace(" ", "")
        seen = {item // each for item in range(len(names)) if shop[1].text(item) in texts}
        assert seen == set(np.flatnonzero(assign_folds(np.arange(users), 2) != fold).tolist())


def test_a_stream_longer_than_the_limit_is_refused(shop):
    with pytest.raises(UserError, match="A stream of 3 items takes 10 tokens"):
        task_data(shop, max_tokens=9).epoch({"stream": 1.0}, 0, 0)


CHAT = "{% for m in messages %}<s>[{{ m.role }}] {{ m.content | trim }}{% endfor %}"
CHAT += "{% if add_generation_prompt %} [bot] {% endif %}"


def test_chat_template(shop, tmp_path):
    data = task_data(shop)
    with pytest.raises(UserError, match="no chat template"):
        use_chat_template(data.tokenizer)
    data.tokenizer.chat_template = CHAT
    use_chat_template(data.tokenizer)
    data.tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    again = TaskData(*shop, tokenizer, 4, 300)  # as an engine does: told nothing of chats
    text = again.tokenizer.decode(again.seqrec_prompt(np.array([0, 1, -1, -1])))
    asked = templates.SEQREC[0].format(history=again.questions.history_text(np.array([0, 1])))
    assert text == f"<s>[user] {asked} [bot] "
    short = TaskData(*shop, tokenizer, 4, 60)
    for sample in short.epoch({"item2index": 1.0}, 0, 0):
        text = tokenizer.decode(sample.tokens)
        assert len(sample.tokens) == 60 and text.startswith("<s>[user] ") and " [bot] <" in text  # the frame is not cut


@pytest.mark.parametrize("packing", [False, True])
def test_batches_and_collate(data, packing):
    samples = data.epoch(dict.fromkeys(TASKS, 1.0), 0, 0)
    groups = make_batches(samples, 200, np.random.default_rng(0), packing)
    assert sorted(number for group in groups for row in group for number in row) == list(range(len(samples)))
    assert any(len(row) > 1 for group in groups for row in group) == packing
    for group in groups:
        inputs = collate(samples, group, 0)
        tokens, labels = inputs["input_ids"], inputs["labels"]
        assert len(group) == 1 or tokens.size <= 200
        assert tokens.size == padded_size(samples, group)
        for line, row in enumerate(group):
            parts = [samples[number] for number in row]
            end = sum(len(part.tokens) for part in parts)
            assert tokens[line, :end].tolist() == [token for part in parts for token in part.tokens]
            assert not tokens[line, end:].any() and (labels[line, end:] == -100).all()
            counted = np.concatenate([part.counted for part in parts])
            assert labels[line, :end].tolist() == np.where(counted, tokens[line, :end], -100).tolist()
            lengths = [*(len(part.tokens) for part in parts), tokens.shape[1] - end]
            if "position_ids" in inputs:
                assert inputs["position_ids"][line].tolist() == [place for n in lengths for place in range(n)]
            else:
                assert len(row) == 1


def of_lengths(lengths):
    return Samples.of([Sample(np.full(n, n), np.arange(n) > 0) for n in lengths])


def test_packed_by_hand():
    """Best fit decreasing into rows of 10: the 3 goes beside the 7, not the 6; the 4 beside the 6."""
    rows = pack(np.array([10, 3, 7, 4, 6, 2]), 10, np.random.default_rng(0))
    assert sorted(map(sorted, rows)) == [[0], [1, 2], [3, 4], [5]]
    inputs = collate(of_lengths([2, 3, 1]), [[0, 1], [2]], 0)
    assert inputs["input_ids"].tolist() == [[2, 2, 3, 3, 3], [1, 0, 0, 0, 0]]
    assert inputs["labels"].tolist() == [[-100, 2, -100, 3, 3], [-100] * 5]
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 3]]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80), more=st.integers(0, 20), seed=st.integers(0, 9))
def test_every_sample_is_packed_once(lengths, more, seed):
    lengths = np.array(lengths)
    space = lengths.max() + more
    rows = pack(lengths, int(space), np.random.default_rng(seed))
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    used = sorted(int(lengths[row].sum()) for row in rows)
    assert used[-1] <= space
    if len(rows) > 1:
        assert used[0] + used[1] > space  # no two rows would fit into one


def test_packed_batches_use_their_budget():
    """The longest has 6 tokens: two rows of 8 fill 16, not two of 6."""
    samples = of_lengths([6, 2, 6, 2, 5, 3, 4, 4])
    groups = make_batches(samples, 16, np.random.default_rng(0), packing=True)
    assert [padded_size(samples, group) for group in groups] == [16, 16]


@pytest.mark.parametrize("packing", [False, True])
def test_no_samples_no_batches(packing):
    assert not [row for group in make_batches(of_lengths([]), 10, np.random.default_rng(0), packing) for row in group]
