"""Exported searches in ONNX Runtime against the Recommender's, and the operators that ONNX lacks against torch's."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from distill.baselines.counting import TransitionSettings, count_transitions
from distill.runtime.errors import UserError
from student import graph_cache, graph_export
from student.graph_cache import with_graphs
from student.graph_export import write_export
from student.graphs import load_graph
from student.models import BACKBONES
from student.onnx_decompositions import searchsorted, stable_argsort, stable_sort
from student.recommender import Recommender
from student.restriction import rank_within
from student.search_graph import SearchGraph, capture
from student.transition_memory import TransitionMemory

ROOT = Path(__file__).resolve().parents[2]
N_ITEMS, MAX_HISTORY = 30, 4
IDS = {"nested": (3, 4), "causal": (2, 6), "seq2seq": (2, 6)}  # levels, codewords; fewer levels export faster
SMALL = {"d_model": 16, "d_ff": 32, "heads": 2, "d_head": 8}
ONE_LAYER = {
    "nested": {"outer": 1, "layers": 1, "tied": True},
    "causal": {"layers": 1},
    "seq2seq": {"encoder_layers": 1, "decoder_layers": 1},
}


def shop(backbone, scope, ranker):
    rng, (levels, size) = np.random.default_rng(0), IDS[backbone]
    codes = np.stack(np.unravel_index(rng.choice(size**levels, N_ITEMS, replace=False), (size,) * levels), axis=1)
    codes[7] = codes[3]  # two items behind one ID
    network, config, _ = BACKBONES[backbone]
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(network(config(levels, size, **SMALL, **ONE_LAYER[backbone])).eval())
    ids = [f"i{number}" for number in range(N_ITEMS)]
    facts = {"backbone": backbone, "max_history": MAX_HISTORY, "scope": scope}
    return Recommender(networks[0], codes, ids, ids, networks[1] if ranker else None, facts)


def padded(histories):
    longest = max(map(len, histories))
    return np.array([history + [-1] * (longest - len(history)) for history in histories], dtype=np.int64)


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A nested student and the folder of its export: an export takes some 15 seconds, and two tests read this one."""
    student, folder = shop("nested", "trie", False), tmp_path_factory.mktemp("nested")
    write_export(SearchGraph(student, k=N_ITEMS, width=N_ITEMS, exclude_bought=True), folder, "onnx")
    return student, folder


@pytest.mark.parametrize(
    ("backbone", "scope", "ranker", "exclude_bought"),
    [
        ("nested", "trie", False, True),
        pytest.param("causal", "level", True, True, marks=pytest.mark.long),
        ("seq2seq", "all", False, False),
    ],
)
def test_onnx_lists_equal_the_recommenders(backbone, scope, ranker, exclude_bought, tmp_path, request):
    """Any number of users, histories longer than max_history, items that share an ID, more places than items."""
    if backbone == "nested":
        student, tmp_path = request.getfixturevalue("nested")
    else:
        student = shop(backbone, scope, ranker)
        write_export(SearchGraph(student, k=N_ITEMS, width=N_ITEMS, exclude_bought=exclude_bought), tmp_path, "onnx")
    description = json.loads((tmp_path / "export.json").read_text())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [value.name for value in session.get_inputs()] == list(description["inputs"])
    assert str(ROOT) not in (tmp_path / "model.onnx").read_bytes().decode("latin-1")
    long = [3, 7, 1, 9, 12, 28, 3]
    for histories in ([[5]], [[2, 7], long, [3]], [[0, 1, 2, 3], [29, 4, 3, 8], [6], long[:5], [11, 11]]):
        inputs = {"recent": padded([history[-MAX_HISTORY:] for history in histories]), "bought": padded(histories)}
        items, scores = session.run(None, {name: inputs[name] for name in description["inputs"]})
        expected, expected_scores = student.rank_items(padded(histories), N_ITEMS, exclude_bought)
        assert items.tolist() == expected.tolist()
        ranked = expected >= 0
        np.testing.assert_allclose(scores[ranked], expected_scores[ranked], atol=1e-4)
        assert np.isneginf(scores[~ranked]).all()
        assert ranked.all() == (not exclude_bought)
    nobody = {name: np.array([[-1], [2]]) for name in description["inputs"]}
    assert session.run(None, nobody)[0].max(1).tolist()[0] == -1


@torch.no_grad()
def test_a_graph_in_bf16_computes_in_it():
    """Captured, before it is compiled: the student's own search in bf16, which float32's scores differ from."""
    student = shop("nested", "level", False)
    users = padded([[5, 2], [7, 1]])
    graph = SearchGraph(student, N_ITEMS, N_ITEMS, exclude_bought=False, precision="bfloat16")
    items, scores = capture(graph).module()(torch.from_numpy(users))
    exact = student.rank_items(users, N_ITEMS, exclude_bought=False)[1]
    student.precision = "bfloat16"
    expected, expected_scores = student.rank_items(users, N_ITEMS, exclude_bought=False)
    assert items.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert np.abs(scores.numpy() - exact).max() > 1e-4


@pytest.fixture(scope="module")
def kept_graphs(tmp_path_factory):
    """A cache with the graphs of a nested student with a transition memory; afterwards nothing is exported."""
    cache, student = tmp_path_factory.mktemp("cache"), shop("nested", "trie", False)
    values, offsets = np.random.default_rng(1).integers(0, N_ITEMS, 200), np.arange(0, 201, 5)
    counts = count_transitions(values, offsets, N_ITEMS, 2, 0.5)
    student = student.with_transition_memory(TransitionMemory(counts, TransitionSettings(window=2), 0.4, 20))
    with_graphs(student, "onnx", cache, width=12)

    def fail(*args):
        raise AssertionError("exported again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_cache, "write_graph", fail)
        yield cache, student


def test_int8_rounds_the_scores(nested, tmp_path):
    student, folder = nested
    path = tmp_path / "model.onnx"
    shutil.copy(folder / "model.onnx", path)
    assert set(graph_export._round_to_int8(path)) == {"onnxruntime"}
    users = torch.tensor([[2, 7, -1], [9, 12, 28]])
    items, scores = load_graph(tmp_path, "onnx-int8")(users, users)
    expected = student.rank_items(users.numpy(), N_ITEMS)
    for row in range(2):
        rounded, exact = (dict(zip(part[0][row], part[1][row], strict=True)) for part in ((items, scores), expected))
        del rounded[-1], exact[-1]  # bought items
        assert rounded.keys() == exact.keys()
        errors = [abs(rounded[item] - exact[item]) for item in exact]
        assert 0 < max(errors) < 0.2


def test_the_file_of_the_docs_serves_without_this_project(nested, tmp_path):
    student, folder = nested
    docs = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    code = docs.split("```python\n", 1)[1].split("```", 1)[0]
    blocked = "import sys\nfor name in ('torch', 'distill', 'student', 'onnx'):\n    sys.modules[name] = None\n"
    (tmp_path / "recommend.py").write_text(blocked + code)
    histories = [["i3", "i7", "i1", "i9", "i12", "i28"], ["i5"]]
    lines = "".join(",".join(history) + "\n" for history in histories)
    command = [sys.executable, "-I", "recommend.py", str(folder)]
    done = subprocess.run(command, cwd=tmp_path, input=lines, text=True, capture_output=True, check=True)
    expected = student.recommend(histories, k=N_ITEMS, width=N_ITEMS)
    lists = [json.loads(line) for line in done.stdout.splitlines()]
    assert [[item for item, _ in row] for row in lists] == [[item.item_id for item in row] for row in expected]
    scores = [item.score for row in expected for item in row]
    np.testing.assert_allclose([score for row in lists for _, score in row], scores, atol=1e-4)


@pytest.mark.parametrize("k", [5, 12])
def test_graphs_answer_as_the_networks(kept_graphs, k):
    """With a memory, whose items the second graph scores; lists that no graph searches are searched as before."""
    cache, student = kept_graphs
    served = with_graphs(student, "onnx", cache, width=12)  # from the cache: `kept_graphs` lets nothing be exported
    ids = [["i3", "i7", "i1", "i9", "i12", "i28"], ["i5"], ["i2", "i7"]]
    for exclude_bought in (True, False):
        lists, expected = (each.recommend(ids, k, 12, exclude_bought) for each in (served, student))
        assert [[item.item_id for item in row] for row in lists] == [[item.item_id for item in row] for row in expected]
        scores, expected = ([item.score for row in part for item in row] for part in (lists, expected))
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    numbers, few = padded([[3, 7, 1, 9, 12, 28], [5]]), np.arange(0, N_ITEMS, 3)
    for student_ in (served, student):
        items = rank_within(student_, numbers, 12, True, few)[0]
        assert set(items[items >= 0].tolist()) <= set(few.tolist())
    assert items.tolist() == rank_within(served, numbers, 12, True, few)[0].tolist()


def test_the_graphs_answer_where_they_can(kept_graphs, monkeypatch):
    cache, student = kept_graphs
    served = with_graphs(student, "onnx", cache, width=12)
    monkeypatch.setattr(served, "_search", lambda *inputs: pytest.fail("the network searched"))
    monkeypatch.setattr(served, "_scores", lambda *inputs: pytest.fail("the network scored"))
    assert len(served.recommend([["i3"]], 5, 12)[0]) == 5


def test_other_weights_have_other_graphs(kept_graphs):
    cache, student = kept_graphs
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.model.embedding.weight.mul_(1.5)
    with pytest.raises(AssertionError, match="exported again"):
        with_graphs(other, "onnx", cache, width=12)
    assert len(list(cache.iterdir())) == 1


def test_what_is_no_part_of_the_graph_is_refused():
    student = shop("nested", "level", False)
    student.transition_memory = object()
    with pytest.raises(UserError, match="Memories are no part of the graph"):
        SearchGraph(student)
    student.transition_memory, student.facts["backbone"] = None, "large"
    with pytest.raises(UserError, match="Backbone large cannot be exported; nested, causal, seq2seq can"):
        SearchGraph(student)


def test_width_and_k_are_the_recommenders():
    graph = SearchGraph(shop("nested", "level", False), k=7, width=5)
    assert (graph.k, graph.width, graph.inputs) == (7, 7, ("recent", "bought"))
    assert SearchGraph(shop("nested", "level", False), k=100).k == N_ITEMS


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9])
def test_bisection_is_searchsorted(n):
    sequence = torch.tensor(sorted(np.random.default_rng(n).integers(0, 9, n)))
    values = torch.arange(-1, 11).view(3, 4)
    assert torch.equal(searchsorted(sequence, values), torch.searchsorted(sequence, values))
    rows = torch.stack([sequence, sequence + 2])
    assert torch.equal(searchsorted(rows, values[:2]), torch.searchsorted(rows, values[:2].contiguous()))


def test_sorting_by_topk_keeps_type_and_values():
    x = torch.tensor([[3, 1, 2], [5, 9, -4]], dtype=torch.int8)
    values, order = stable_sort(x, stable=True, dim=1, descending=True)
    assert values.dtype == torch.int8 and values.tolist() == [[3, 2, 1], [9, 5, -4]]
    assert order.tolist() == [[0, 2, 1], [1, 0, 2]]
    assert stable_argsort(x, stable=True, dim=1).tolist() == [[1, 2, 0], [2, 0, 1]]
