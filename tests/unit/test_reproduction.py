"""Figure 4 and the cases: values worked out by hand, and a table, page and drawing from artifacts that exist."""

import csv
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from distill.data.dataset import Examples, write_dataset
from distill.evaluation.ranked_lists import RankedLists, write_ranked_lists
from distill.evaluation.reproduction import maps
from distill.evaluation.reproduction.alignment import measure_run
from distill.evaluation.reproduction.cases import GROUPS, choose_users, list_entries, make_cases
from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.figure4 import make_figure4
from distill.metrics import diversity
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError

ITEMS = 16
TITLES = ["blue tent", "red tent", "red tent", "kettle *new*", "lamp|long", "$5 rope", *map(str, range(6, ITEMS))]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def write_evaluation(folder, targets, lists, free=None):
    targets = np.array(targets)
    examples = Examples(np.arange(len(targets)), np.full(len(targets), 2), np.tile([7, 8], (len(targets), 1)), targets)
    with ArtifactJob("evaluation", Nothing(), folder).write() as output:
        write_ranked_lists(output / "lists.parquet", examples, {name: np.array(rows) for name, rows in lists.items()})
        if free:
            write_ranked_lists(output / "unconstrained.parquet", examples, {"tiger": np.array(free)})


TEACHER = [[1, 2, 3, 4], [5, 6, 7, 8]]
STUDENTS = {  # Coverage and Coordination by hand
    "same": (TEACHER, 1, 1),
    "reversed": ([[4, 3, 2, 1], [8, 7, 6, 5]], 1, 1 / 4),
    # {1, 2, 3} of four, "1 3" in order; {7}
    "mixed": ([[2, 1, 3, 9], [9, 10, 7, 11]], (3 / 4 + 1 / 4) / 2, (2 / 4 + 1 / 4) / 2),
    "none": ([[9, 10, 11, 12], [1, 2, 3, 4]], 0, 0),
}


def write_run(root, seed=0):
    """A run whose students have the lists of `STUDENTS`; targets are the teacher's second and an item nobody has."""
    targets, lists = [2, 15], {name: rows for name, (rows, _, _) in STUDENTS.items()}
    main = {"teacher": TEACHER, "tiger": lists["none"], "distill": lists["reversed"], "dwr": lists["same"]}
    free = [[9, -1, 11, 12], [1, 2, -1, -1]]
    write_evaluation(root / "evaluation", targets, main, free)
    others = {"popularity": lists["none"], "top": lists["mixed"], "random": lists["none"], "rank": lists["same"]}
    write_evaluation(root / "evaluation-alignment", targets, others)
    write_evaluation(root / "evaluation-alignment-ablation", targets, {"dwr-without-distill": lists["reversed"]})
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    vectors = {"teacher": teacher, "distill": teacher[:, ::-1].copy(), "smooth": rng.normal(size=(ITEMS, 3))}
    with ArtifactJob("item_vectors", Nothing(), root / "item_vectors").write() as folder:
        save_file({name: table.astype(np.float32) for name, table in vectors.items()}, folder / "vectors.safetensors")
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(ITEMS)], "title": TITLES})
        write_dataset(folder, items, ["u", "v"], [np.arange(4), np.arange(5)])


def test_coverage_and_coordination_of_each_method(tmp_path):
    write_run(tmp_path)
    rows = measure_run(tmp_path)
    expected = {"ref": "none", "top": "mixed", "random": "none", "rank": "same", "rank+ref": "reversed"}
    for method, student in (expected | {"distill": "reversed", "dwr": "same"}).items():
        _, coverage, coordination = STUDENTS[student]
        row = rows[method]
        assert (row["coverage"], row["coordination"]) == (pytest.approx(coverage), pytest.approx(coordination)), method
        assert (row["length"], row["users"]) == (4, 2)
        assert row["recall@10"] == (0 if student == "none" else 0.5)  # the first user's target is in the teacher's list


def test_lists_of_other_users_are_refused(tmp_path):
    write_run(tmp_path)
    write_evaluation(tmp_path / "other", [3, 15], {"top": TEACHER, "random": TEACHER, "rank": TEACHER})
    (tmp_path / "evaluation-alignment").rename(tmp_path / "before")
    (tmp_path / "other").rename(tmp_path / "evaluation-alignment")
    with pytest.raises(UserError, match=r"evaluation-alignment and .*evaluation ranked for different users"):
        measure_run(tmp_path)


def on_circle(*degrees):
    return np.array([(math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in degrees])


def test_common_neighbours():
    """Nearest by angle: in a 0→10, 10→0, 90→100, 100→90; in b the items 1 and 2 have changed places."""
    a = on_circle(0, 10, 90, 100)
    assert maps.common_neighbours(a, 3 * a, 1) == 1  # lengths do not count
    assert maps.common_neighbours(a, on_circle(0, 90, 10, 100), 1) == 0
    # two nearest: a {1,2} {0,2} {3,1} {2,1}; b, angles 0 90 10 100: {2,1} {3,2} {0,1} {1,2}
    assert maps.common_neighbours(a, on_circle(0, 90, 10, 100), 2) == pytest.approx((2 + 1 + 1 + 2) / 8)


def test_maps_are_turned_mirrored_and_scaled():
    reference = np.array([[0.0, 0], [2, 0], [2, 1], [0, 1]])
    turned = 5 * reference[:, ::-1] * [1, -1] + 7
    aligned, disparity = maps.align(reference, turned)
    assert disparity == pytest.approx(0) and aligned == pytest.approx(maps.at_unit_size(reference))
    assert np.abs(aligned[:, 0]) == pytest.approx(1 / math.sqrt(5)) and (aligned**2).sum() == pytest.approx(1)
    # a rectangle's corners against a line along its long side, which holds 4/5 of their variance
    assert maps.align(reference, reference * [1, 0])[1] == pytest.approx(1 / 5)


def test_cka_by_hand():
    """Turned and scaled: 1. Features that vary independently: 0. x against (x, y) of twice the variance: 1 / √2."""
    x, y = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    both = np.stack([x, y], axis=1)
    assert maps.cka(both, 3 * both[:, ::-1] * [1, -1] + 5) == pytest.approx(1)
    assert maps.cka(x[:, None], y[:, None] + 2) == pytest.approx(0)
    assert maps.cka(x[:, None], both) == pytest.approx(1 / math.sqrt(2))


def test_the_map_follows_the_seed():
    vectors = np.random.default_rng(1).normal(size=(ITEMS, 4))
    first, again, other = (maps.reduce_to_plane(vectors, seed) for seed in (3, 3, 4))
    assert first.shape == (ITEMS, 2) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_figure4_files(tmp_path):
    write_run(tmp_path)
    (tmp_path / "out").mkdir()
    config = Config(table="figure4", run=tmp_path, map_items=14)
    paths = make_figure4([tmp_path], config).write(tmp_path / "out", "figure4")
    assert [path.name for path in paths] == [
        "figure4.csv", "figure4-spaces.csv", "figure4-map.csv", "figure4.md", "figure4.png"]  # fmt: skip
    text = (tmp_path / "out/figure4.md").read_text()
    assert "| rank | 1.0000 | 1.0000 | 0.5000 |" in text and "| top | 0.5000 | 0.3750 |" in text
    assert "| distill | 1.0000 | 0.7692 | 1.0000 |" in text  # the same space; ten of 13 others
    with open(tmp_path / "out/figure4-map.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert len(points) == 3 * 14 and len({point["item"] for point in points}) == 14
    assert paths[-1].read_bytes().startswith(b"\x89PNG")


def test_a_map_needs_umap(monkeypatch):
    monkeypatch.setattr(maps.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lohrec-distill\[figures\]'"):
        maps.check_umap()


def test_users_are_drawn_from_each_group():
    """Ten users: TIGER has the target of the first five, DWR that of the even ones."""
    users, far = np.arange(10), np.full((10, 11), 99)
    tiger, dwr = far.copy(), far.copy()
    tiger[:5, 0], dwr[::2, 9] = users[:5], users[::2]
    dwr[1, 10] = 1  # behind the tenth place
    lists = RankedLists(users, users, {"tiger": tiger, "dwr": dwr})
    groups = {"only DWR": {6, 8}, "only TIGER": {1, 3}, "both": {0, 2, 4}, "neither": {5, 7, 9}}
    seen = {name: set() for name in groups}
    for seed in range(20):
        chosen, sizes = choose_users(lists, 1, seed)
        assert list(sizes.values()) == [2, 2, 3, 3] and [group for group, _ in chosen] == list(GROUPS.values())
        assert chosen == choose_users(lists, 1, seed)[0]
        for (group, row), name in zip(chosen, groups, strict=True):
            assert group.startswith(name)
            seen[name].add(row)
    assert seen == groups  # everyone has a chance
    assert [row for _, row in choose_users(lists, 2, 0)[0]][:4] == [6, 8, 1, 3]


class TitleTable:
    """Titles of the test's catalogue."""

    def item(self, number):
        return type("Item", (), {"full": TITLES[number]})


def test_marks_of_a_list():
    entries = list_entries([0, -1, 1, 2, 3], target=3, titles=TitleTable())
    assert [tuple(entry) for entry in entries] == [
        ("blue tent", ""), ("ERROR", "invalid"), ("red tent", ""), ("red tent", "repeated"), ("kettle *new*", "target"),
    ]  # fmt: skip


def test_cases_files(tmp_path):
    """The first user's target is found by DWR alone, nobody finds the second's."""
    write_run(tmp_path)
    (tmp_path / "out").mkdir()
    result = make_cases([tmp_path], Config(table="cases", run=tmp_path))
    result.write(tmp_path / "out", "cases")
    text = (tmp_path / "out/cases.md").read_text()
    assert "only DWR finds the target: 1 users, 50.0%" in text and "both find the target: 0 users" in text
    assert "## Case 1: only DWR finds the target (user 0)" in text and "## Case 2: neither finds the target" in text
    assert "History: 7; 8." in text and "Target: **red tent**" in text
    # teacher: 1 2 3 4, tiger without the trie: 9 -1 11 12, tiger: 9 10 11 12, distill: 4 3 2 1
    assert "| 2 | **red tent** | ERROR | 10 | kettle \\*new\\* | **red tent** |" in text
    assert "| 1 | red tent | 9 | 9 | lamp\\|long | red tent |" in text
    assert "| target's rank | 2 | – | – | 3 | 2 |" in text
    with open(tmp_path / "out/cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 + 1 + 5 * 4)
    assert {row["list"] for row in rows} == {
        "history",
        "target",
        "teacher",
        "tiger, no trie",
        "tiger",
        "distill",
        "dwr",
    }
    assert sum(row["mark"] == "invalid" for row in rows) == 1 + 2
    assert (tmp_path / "out/cases.png").read_bytes().startswith(b"\x89PNG")


def test_cases_need_tiger_and_dwr(tmp_path):
    write_evaluation(tmp_path / "evaluation", [1], {"tiger": [[1]]})
    with pytest.raises(UserError, match="no lists of dwr"):
        make_cases([tmp_path], Config(table="cases", run=tmp_path))


def test_diversity_over_widths_by_hand():
    """Equation (17) at K = 3, 1 − cos of each pair: 0° 90° 180°, 2/12 · (1 + 2 + 1); 0° 0° 90°, 2/12 · (0 + 1 + 1)."""
    vectors = on_circle(0, 90, 180)
    values = diversity(np.array([[0, 1, 2], [0, 0, 1], [0, -1, -1]]), vectors, 3)
    assert values == pytest.approx([4 / 6, 2 / 6, 0])
