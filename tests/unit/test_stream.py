"""Streams with titles, against tokens put together by hand."""

import numpy as np
import pytest
from test_tasks import CODES, SEQUENCES, TITLES, make_shop, streams, task_data

from distill.runtime.errors import UserError
from teacher.batching import collate, counted_tokens
from teacher.config import StreamSettings


def data_of(shop, titles=3, title_items=0, title_loss=0.0, **more):
    return task_data(shop, stream=StreamSettings(titles, title_items, title_loss), **more)


def test_streams(tmp_path):
    """BOS, codewords, title, newline, codewords, ...; the last item is only a target, so it has no title."""
    data = data_of(make_shop(tmp_path))
    tokenizer, ids = data.tokenizer, data.ids
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    title = {}
    for item, text in enumerate(TITLES):
        title[item] = tokenizer(text, add_special_tokens=False)["input_ids"][:3] + newline
    samples = data.epoch({"stream": 1.0}, 0, 0)
    assert len(samples) == 3 and len(newline) == 1
    for sample, sequence in zip(samples, SEQUENCES, strict=True):
        items = sequence[:-2]
        tokens, counted = [tokenizer.bos_token_id], [False]
        for place, item in enumerate(items):
            codewords = tokenizer.convert_tokens_to_ids(
                [f"<{'abc'[level]}_{code}>" for level, code in enumerate(CODES[item])]
            )
            tokens += codewords
            counted += [True] * 3
            if place < len(items) - 1:
                tokens += title[item]
                counted += [False] * len(title[item])
        assert sample.tokens.tolist() == tokens and sample.counted.tolist() == counted
    text = tokenizer.decode(samples[0].tokens)
    assert text.startswith(f"<s>{ids.text(0)}Red") and text.endswith(ids.text(2)) and text.count("\n") == 2
    assert data.writer.prompt(np.array([0, 1])).tolist() == samples[0].tokens[:-3].tolist()


def test_without_titles_nothing_changes(tmp_path):
    shop = make_shop(tmp_path)
    for sample in streams(shop):
        assert sample.counted.dtype == bool and sample.counted[1:].all() and not sample.counted[0]
        assert (len(sample.tokens) - 1) % 3 == 0


@pytest.mark.parametrize("title_items", [1, 2, 3, 9])
def test_only_the_last_items_of_a_history_carry_titles(tmp_path, title_items):
    data, every = data_of(make_shop(tmp_path), title_items=title_items), data_of(make_shop(tmp_path / "all"))
    items = np.array([0, 1, 2, 3])
    stream = data.writer.sequence(items)
    titled = [2] if title_items == 1 else [1, 2] if title_items == 2 else [0, 1, 2]
    text = data.tokenizer.decode(stream.tokens)
    titles = [every.tokenizer.decode(every.writer.titles[item]) for item in items]
    assert text == "<s>" + "".join(data.ids.text(item) + (titles[item] if item in titled else "") for item in items)
    # the history's items carry the same titles in the prompt
    assert data.writer.prompt(items[:-1]).tolist() == stream.tokens[:-3].tolist()
    assert data.writer.prompt(items[:0]).tolist() == [data.tokenizer.bos_token_id]


def test_windows_share_an_item_that_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setitem(make_shop.__globals__, "SEQUENCES", [[0, 1, 2, 3, 4, 5, 0, 1]] * 3)
    data = data_of(make_shop(tmp_path))
    data.max_history = 4
    first, second = (data.epoch({"stream": 1.0}, 0, 0)[row] for row in range(2))
    assert first.counted.sum() == 5 * 3  # items 0 to 4
    assert second.counted.sum() == 1 * 3 and second.counted[-3:].all()  # of 4 and 5 only the second
    shared = data.ids.text(4)
    assert data.tokenizer.decode(first.tokens).endswith(shared)
    assert data.tokenizer.decode(second.tokens).startswith(f"<s>{shared}Long rope")


def test_weight_of_titles(tmp_path):
    """Codewords count 1, titles and newlines .25, BOS nothing; the last item's title is trained too."""
    data = data_of(make_shop(tmp_path), title_loss=0.25)
    samples = data.epoch({"stream": 1.0, "index2item": 1.0}, 0, 0)
    sample, item = samples[0], samples[5]
    n_titles = sum(len(data.writer.titles[number]) for number in (0, 1, 2))
    assert sample.counted.dtype == np.float32 and sample.counted[0] == 0
    assert (sample.counted == 1).sum() == 9 and (sample.counted == 0.25).sum() == n_titles
    assert data.tokenizer.decode(sample.tokens).endswith("\n")
    assert set(item.counted.tolist()) == {0.0, 1.0}  # other tasks' responses count 1
    assert counted_tokens(samples, [[[0]], [[0], [5]]]).tolist() == [
        9 + n_titles / 4, 9 + n_titles / 4 + item.counted.sum(),
    ]  # fmt: skip
    inputs = collate(samples, [[0], [5]], 0)
    length = len(sample.tokens)
    np.testing.assert_array_equal(inputs["loss_weights"][0, :length], sample.counted)
    assert (inputs["labels"][0, 1:length] == sample.tokens[1:]).all() and not inputs["loss_weights"][0, length:].any()


def test_later_windows_count_the_shared_title_once(tmp_path, monkeypatch):
    monkeypatch.setitem(make_shop.__globals__, "SEQUENCES", [[0, 1, 2, 3, 4, 5, 0, 1]] * 3)
    data = data_of(make_shop(tmp_path), title_loss=0.5)
    data.max_history = 4
    second = data.epoch({"stream": 1.0}, 0, 0)[1]
    assert second.counted.tolist() == [0] * (1 + 3 + len(data.writer.titles[4])) + [1] * 3 + [0.5] * len(
        data.writer.titles[5]
    )


def test_items_without_texts(tmp_path, monkeypatch):
    """An item without a title has the rest of its text; one without any text has neither title nor newline."""
    monkeypatch.setitem(make_shop.__globals__, "TITLES", ["", "Blue tent XL", "Oil lamp", "", "", "Copper kettle"])
    monkeypatch.setitem(make_shop.__globals__, "BRANDS", ["Nord"] + [""] * 5)
    data = data_of(make_shop(tmp_path), titles=9)
    assert [len(title) > 0 for title in data.writer.titles] == [True, True, True, True, False, True]
    text = data.tokenizer.decode(data.writer.prompt(np.array([0, 4, 2])))
    assert f"{data.ids.text(4)}{data.ids.text(2)}Oil lamp\n" in text and f"{data.ids.text(0)}Nord" in text


def test_no_item_has_a_text(tmp_path):
    shop = make_shop(tmp_path, texts=False)
    with pytest.raises(UserError, match=r"--stream_titles 3: no item of .* has a text"):
        data_of(shop)


def test_a_stream_that_does_not_fit(tmp_path):
    shop = make_shop(tmp_path)
    longest = max(len(title) for title in data_of(shop).writer.titles)
    tokens = 1 + 3 * 3 + 2 * longest
    data_of(shop, max_tokens=tokens).epoch({"stream": 1.0}, 0, 0)
    message = f"A stream of 3 items takes {tokens} tokens, --max_tokens is {tokens - 1}.* or --stream_titles"
    with pytest.raises(UserError, match=message):
        data_of(shop, max_tokens=tokens - 1).epoch({"stream": 1.0}, 0, 0)
    with pytest.raises(UserError, match=f"takes {tokens + longest} tokens"):
        data_of(shop, max_tokens=tokens, title_loss=0.5).epoch({"stream": 1.0}, 0, 0)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(3, 4, 5), (6, 7, 8), (9, 13, 12)])
def test_windows_by_a_loop(tmp_path, monkeypatch, width, lengths):
    """Windows begin `width` items apart and end with the first item of the next; a last one of one item is left out."""
    sequences = [np.random.default_rng(length).integers(0, len(CODES), length).tolist() for length in lengths]
    monkeypatch.setitem(make_shop.__globals__, "SEQUENCES", sequences)
    data, expected = task_data(make_shop(tmp_path)), []
    data.max_history = width
    for sequence in sequences:
        items = sequence[:-2]
        for first in range(0, len(items), width):
            window = items[first : first + width + 1]
            if first == 0 or len(window) > 1:
                tokens = [data.tokenizer.bos_token_id, *data.item_tokens[window].ravel().tolist()]
                expected.append((tokens, 3 * (len(window) - (first > 0))))
    samples = data.epoch({"stream": 1.0}, 0, 0)
    assert [(sample.tokens.tolist(), int(sample.counted.sum())) for sample in samples] == expected
    sizes = zip(samples.lengths.tolist(), samples.counts.tolist(), strict=True)
    assert list(sizes) == [(len(tokens), counted) for tokens, counted in expected]
