"""Textual IDs by hand: the weightiest words in the order of the text, unique."""

from hypothesis import given
from hypothesis import strategies as st

from distill.semantic_ids.textual_ids import build_textual_ids


def test_rare_words_name_an_item():
    """Words of many texts weigh less; of equals, the earlier is taken."""
    texts = ["Oil lamp for the tent", "Gas lamp for the tent", "Tent for the Copper-kettle", "rope"]
    # "oil" and "gas" are in one text, "lamp" in two, "for", "the" and "tent" in three
    assert build_textual_ids(texts, 2) == ["oil lamp", "gas lamp", "copper kettle", "rope"]
    assert build_textual_ids(texts, 1) == ["oil", "gas", "copper", "rope"]
    assert build_textual_ids(texts, 9)[2] == "tent for the copper kettle"


def test_collisions():
    """Another word joins, up to twice as many; then a number does. An item without words has no ID."""
    texts = ["red tent", "red tent", "red tent xl", "red tent", "", "--", "red red tent"]
    ids = build_textual_ids(texts, 1)
    # "red" is in as many texts as "tent" and comes first; "xl" weighs most where it is
    assert ids == ["red", "red tent", "xl", "red tent 2", "", "", "red tent 3"]
    assert build_textual_ids(["", "-"], 2) == ["", ""]
    assert build_textual_ids(["a b c d e", "a b c d e", "a b c d e"], 1) == ["a", "a b", "a b 2"]


@given(st.lists(st.text("ab 2_-ö", max_size=8), max_size=12), st.integers(1, 3))
def test_ids_are_unique(texts, n_words):
    ids = build_textual_ids(texts, n_words)
    with_id = [textual_id for textual_id in ids if textual_id]
    assert len(ids) == len(texts) and len(set(with_id)) == len(with_id)
    for text, textual_id in zip(texts, ids, strict=True):
        assert bool(textual_id) == any(character.isalnum() for character in text)
