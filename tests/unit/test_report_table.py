"""The report's table by hand: floor, marks, and notes in words."""

import pytest

from distill.evaluation.report.notes import readable_note
from distill.evaluation.report.table import build_table, footnotes, verdict


def rows(**ndcg):
    return [{"system": name, "ndcg@10": value} for name, value in ndcg.items()]


def test_the_rows_name_their_floor():
    table = [*rows(transitions=0.2, teacher=0.24), {"system": "counter+content", "ndcg@10": 0.25}]
    old = build_table(table).lines
    assert [line.is_floor for line in old] == [True, False, False]
    assert [line.beats_floor for line in old] == [False, True, True]
    named = [row | {"floor": "counter+content", "valid_ndcg@10": 0.3} for row in table]
    new = build_table(named).lines
    assert [line.is_floor for line in new] == [False, False, True] and not any(line.beats_floor for line in new)
    assert [line.cells[0].best for line in new] == [False, True, False]  # what learns nothing is never the best
    assert verdict(named) == (
        "Best learned system by NDCG@10: teacher, 0.2400, 4.0% below the floor (counter+content, 0.2500)."
    )
    chosen = "Floor: counter+content, the best by validation NDCG@10 of the systems that learn nothing. "
    assert any(note.startswith(chosen) for note in footnotes(named))
    assert any(note.startswith("Floor: transitions, which learns nothing. ") for note in footnotes(table))


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (
            "budgets ((10,),), alpha 2.0, both False",
            "10 items one hop away from the last item; weight 2.0 on transitions, forward only",
        ),
        (
            "budgets ((5, 1), (3, 1)), alpha 0.5, both True",
            "5 items one hop away, 1 item two hops away from the last item; 3 items one hop away, 1 item two hops away "
            "from the one before it; weight 0.5 on transitions, in both directions",
        ),
        (
            "counts of the training part; window 20, decay 0.8, recency 0.6, last 5",
            "counts of the training part; pairs at most 20 items apart, decay 0.8 a step; the last 5 items of the "
            "history, weight 0.6 a step back",
        ),
        ("the simulator's own distribution", "the simulator's own distribution"),
    ],
)
def test_notes_in_words(note, words):
    assert readable_note(note) == words
