"""The instructions: enough of them, each different, and each with the places that its task fills."""

from string import Formatter

import pytest

from teacher import templates

FIELDS = {
    "SEQREC": {"history"},
    "ITEM2INDEX": {"text"},
    "INDEX2ITEM": {"item"},
    "FUSION_TO_TEXT": {"history", "field"},
    "FUSION_TO_ITEM": {"history"},
    "PREFERENCEOBTAIN": {"history"},
}


def fields(template):
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def test_all_lists_are_checked_here():
    assert {name for name in vars(templates) if name.isupper()} == FIELDS.keys() | {"ITEMSEARCH"}


@pytest.mark.parametrize("name", [*FIELDS, "ITEMSEARCH"])
def test_eight_or_more_different_ones(name):
    lines = getattr(templates, name)
    assert len(lines) == len(set(lines)) >= 8
    for line in lines:
        assert line.endswith(": ") and "<" not in line  # the answer follows, and no codeword stands in the instruction
        assert line == line.strip() + " "


@pytest.mark.parametrize("name", FIELDS)
def test_places_to_fill(name):
    assert all(fields(line) == FIELDS[name] for line in getattr(templates, name))


def test_searches_with_and_without_a_history():
    found = [fields(line) for line in templates.ITEMSEARCH]
    assert found.count({"query"}) == found.count({"query", "history"}) == 4


def test_the_one_that_teachers_are_asked_with():
    assert templates.SEQREC[0] == "The user bought these items, oldest first: {history}. What comes next? Answer: "
