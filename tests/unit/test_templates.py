"""The instructions: enough of them, each different, and each with the places that its task fills."""

from string import Formatter

import pytest

from teacher import templates

FIELDS = {
    "SEQREC": {"history"},
    "ITEM2INDEX": {"text"},
    "ITEM2INDEX_TITLE": {"title"},
    "ITEM2INDEX_DESCRIPTION": {"description"},
    "ITEM2INDEX_BOTH": {"title", "description"},
    "INDEX2ITEM": {"item"},
    "INDEX2ITEM_TITLE": {"item"},
    "INDEX2ITEM_DESCRIPTION": {"item"},
    "INDEX2ITEM_BOTH": {"item"},
    "FUSION_TO_TEXT": {"history", "field"},
    "FUSION_TO_ITEM": {"history"},
    "PREFERENCEOBTAIN": {"history"},
    "TITLES": {"history"},
}


SEARCHES = ("ITEMSEARCH", "ITEMSEARCH_PREFERENCE")


def fields(template):
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def test_all_lists_are_checked_here():
    assert {name for name in vars(templates) if name.isupper()} == FIELDS.keys() | {*SEARCHES}


@pytest.mark.parametrize("name", [*FIELDS, *SEARCHES])
def test_eight_or_more_different_ones(name):
    """Six of each form, where one of several forms is drawn."""
    lines = getattr(templates, name)
    several = name.endswith(("_TITLE", "_DESCRIPTION", "_BOTH", "_PREFERENCE"))
    assert len(lines) == len(set(lines)) >= (6 if several else 8)
    for line in lines:
        assert line.endswith(": ") and "<" not in line  # the answer follows, and no codeword stands in the instruction
        assert line == line.strip() + " "


@pytest.mark.parametrize("name", FIELDS)
def test_places_to_fill(name):
    assert all(fields(line) == FIELDS[name] for line in getattr(templates, name))


def test_searches_with_and_without_a_history():
    found = [fields(line) for line in templates.ITEMSEARCH]
    assert found.count({"query"}) == found.count({"query", "history"}) == 4


def test_preferences_with_and_without_a_query():
    found = [fields(line) for line in templates.ITEMSEARCH_PREFERENCE]
    assert found.count({"history", "preference"}) == 2
    assert found.count({"query", "history", "preference"}) == 4


def test_the_one_that_teachers_are_asked_with():
    assert templates.SEQREC[0] == "The user bought these items, oldest first: {history}. What comes next? Answer: "
