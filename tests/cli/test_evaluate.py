"""evaluate.py, add_memory.py and compare.py on a small shop whose student has random weights."""

import contextlib
import importlib.util
import io
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from unit.test_recommender import N_ITEMS, SIZE, shop

from distill.baselines import counting
from distill.data.dataset import Dataset, write_dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.checksums import seal
from distill.runtime.config import run
from distill.semantic_ids import embeddings
from distill.semantic_ids.ids import write_codes
from student.item_recommender import ItemRecommender
from student.models.item_models import ITEM_MODELS
from student.recommender import Recommender
from teacher import finetune
from teacher.config import Config as TeacherConfig

ROOT = Path(__file__).parents[2]
IDS = [f"i{number}" for number in range(N_ITEMS)]
NOT_LEARNED = ("popularity", "transitions", "transitions+valid", "graph", "content", "counter+content")
COUNTED = ("--transitions.window", "2")  # no search for the best settings


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@dataclass(frozen=True)
class Loss:
    """The one setting of a baseline that counts here."""

    loss: str


def make_run(root, users=50, seed=0, n_vectors=N_ITEMS):
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, N_ITEMS, users)
    sequences = [(start + np.arange(rng.integers(4, 9))) % N_ITEMS for start in starts]  # what counting sees at once
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": IDS, "title": [f"thing {number}" for number in range(N_ITEMS)]})
        write_dataset(folder, items, [f"u{user}" for user in range(users)], sequences)
    data = artifacts.read(root / "dataset", "dataset")
    student = shop(shared=False)
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids", [data]).write() as folder:
        write_codes(folder, IDS, student.codes.numpy())
        write_json(folder / "report.json", {"codebook_size": SIZE})
    codes = artifacts.read(root / "semantic_ids", "semantic_ids")
    with ArtifactJob("embeddings", Nothing(), root / "embeddings", [data]).write() as folder:
        embeddings.write(folder, rng.normal(size=(n_vectors, 4)).astype(np.float32), IDS[:n_vectors])
    with ArtifactJob("student", Nothing(), root / "students/tiger", [data, codes]).write() as folder:
        student.save_pretrained(folder)
    for name, loss in (("sasrec-list", "list"), ("gru4rec", "ce")):
        network, sizes = ITEM_MODELS[name.split("-")[0]]
        with ArtifactJob("baseline", Loss(loss), root / "baselines" / name, [data]).write() as folder:
            facts = {"network": name.split("-")[0], "exclude_bought": True}
            ItemRecommender(network(sizes(N_ITEMS, dim=8)), facts).save_pretrained(folder)


def command(script, *words):
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / "scripts" / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    code, out, error = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            run(module.main, module.Config, None, [str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), error.getvalue()


def refused(script, *words):
    code, _, error = command(script, *words)
    assert code == 2 and "Traceback" not in error, error
    return error


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run with a transition memory and an evaluation."""
    root = tmp_path_factory.mktemp("run")
    make_run(root)
    code, _, error = command("add_memory.py", "--run", root, "--student", root / "students/tiger", *COUNTED)
    assert code == 0, error
    code, _, error = command("evaluate.py", "--run", root, *COUNTED, "--widths", "[4, 12]", "--exact_users", "10")
    assert code == 0, error
    return root


def test_an_item_model_gets_a_memory(evaluated, tmp_path):
    words = "--run", evaluated, "--student", evaluated / "baselines/gru4rec", "--output", tmp_path / "gru4rec+memory"
    code, _, error = command("add_memory.py", *words, *COUNTED, "--weight", "0.3")
    assert code == 0, error
    assert ItemRecommender.from_pretrained(tmp_path / "gru4rec+memory").transition_memory.weight == 0.3
    error = refused("add_memory.py", "--run", evaluated, "--student", evaluated / "dataset")
    assert "Expected a student" in error and "found a dataset" in error


def test_rows(evaluated):
    rows = {row["system"]: row for row in json.loads((evaluated / "evaluation/metrics.json").read_text())}
    assert list(rows) == [*NOT_LEARNED, "gru4rec", "sasrec-list", "tiger", "tiger+memory"]
    assert rows["sasrec-list"]["parameters"] > 0 and rows["sasrec-list"]["invalid@10"] is None
    for row in rows.values():
        assert row["recall@1"] <= row["recall@5"] <= row["recall@10"] <= row["recall@20"] <= 1
        assert row["recall@1"] == row["ndcg@1"] <= row["mrr@20"] <= row["recall@20"]
        assert row["ndcg@10_low"] <= row["ndcg@10"] <= row["ndcg@10_high"]
        assert 0 < row["catalogue@10"] <= 1 and 0 <= row["gini@10"] < 1 and row["novelty@10"] > 0
        groups = row["by_popularity"]
        assert [group["group"] for group in groups] == [1, 2, 3, 4, 5, "unseen"]
        assert sum(group["users"] for group in groups) == 50 and sum(group["items"] for group in groups) == N_ITEMS
        hits = sum(group["users"] * group.get("recall@10", 0) for group in groups)
        assert hits / 50 == pytest.approx(row["recall@10"])
    assert [one["width"] for one in rows["tiger"]["widths"]] == [4, 12]
    assert [one["invalid_whole"] for one in rows["tiger"]["widths"]] == [None, None]  # a softmax over the level alone
    assert 0 <= rows["tiger"]["beam_missed@10"] < 1 and 0 < rows["tiger"]["invalid@10"] < 1
    # the student knows nothing, the counter nearly everything, and validation saw that
    memory = rows["tiger+memory"]
    assert memory["ndcg@10"] > rows["tiger"]["ndcg@10"] + 0.2
    # the floor is the best on validation of those that learn nothing; the counts with validation do not compete
    valid = {name: row["valid_ndcg@10"] for name, row in rows.items() if "valid_ndcg@10" in row}
    assert list(valid) == ["popularity", "transitions", "graph", "content", "counter+content"]
    floor = max(valid, key=valid.get)
    assert {row["floor"] for row in rows.values()} == {floor}
    assert [name for name in rows if "ndcg@10_above_floor" not in rows[name]] == [floor]
    above = memory["ndcg@10_above_floor"]
    assert above["difference"] == pytest.approx(memory["ndcg@10"] - rows[floor]["ndcg@10"])
    assert {"recall@10_ties_won", "ndcg@10_ties_won", "reachable", "note"} <= rows["transitions"].keys()


def test_lists_are_those_of_the_baseline(evaluated):
    dataset = Dataset.load(evaluated / "dataset")
    lists = np.array(pq.read_table(evaluated / "evaluation/lists.parquet")["transitions"].to_pylist())
    model = counting.Transitions(dataset, counting.TransitionSettings(window=2))
    assert lists.tolist() == counting.recommend(model, dataset.examples("test"), 20).tolist()


def test_lists_without_the_trie(evaluated):
    """They have as many invalid IDs as the row says."""
    rows = {row["system"]: row for row in json.loads((evaluated / "evaluation/metrics.json").read_text())}
    table = pq.read_table(evaluated / "evaluation/unconstrained.parquet")
    assert table.column_names == ["user", "target", "history", "tiger", "tiger+memory"]
    lists = np.array(table["tiger"].to_pylist())
    assert lists.shape == (50, 20) and (lists[:, :10] < 0).mean() == pytest.approx(rows["tiger"]["invalid@10"])


def test_the_memory_is_chosen_on_validation_and_saved(evaluated):
    folder = evaluated / "students/tiger+memory"
    manifest, facts = (json.loads((folder / name).read_text()) for name in ("manifest.json", "config.json"))
    tried = manifest["facts"]["valid"]
    best = max(tried, key=lambda one: one["ndcg@10"])
    assert best["ndcg@10"] > tried[0]["ndcg@10"]  # of the student alone
    for name in ("weight", "discount"):
        assert manifest["facts"][name] == facts["memory"][name] == best[name]
    assert facts["memory"]["window"] == 2
    student = Recommender.from_pretrained(folder)
    dataset = Dataset.load(evaluated / "dataset")
    values, offsets = dataset.training_sequences()
    counts = counting.count_transitions(values, offsets, N_ITEMS, 2, 0.7)
    assert (student.transition_memory.counts != counts).nnz == 0
    code, _, error = command("add_memory.py", "--run", evaluated, "--student", evaluated / "students/tiger", *COUNTED)
    assert code == 0 and "finished, at" in error


def test_a_weight_of_ones_own_and_counts_with_validation(evaluated, tmp_path):
    counted = tmp_path / "students/counted"
    words = ("--run", evaluated, "--student", evaluated / "students/tiger", *COUNTED, "--output", counted)
    code, _, error = command("add_memory.py", *words, "--weight", "0.25", "--with_validation", "true")
    assert code == 0, error
    student = Recommender.from_pretrained(counted)
    assert student.transition_memory.weight == 0.25
    assert (
        student.transition_memory.counts.sum()
        > Recommender.from_pretrained(evaluated / "students/tiger+memory").transition_memory.counts.sum()
    )
    assert "expected a number from 0 to 1" in refused("add_memory.py", *words, "--weight", "2")
    words = (
        "--run",
        evaluated,
        "--students",
        counted.parent,
        *COUNTED,
        "--split",
        "valid",
        "--output",
        tmp_path / "out",
    )
    error = refused("evaluate.py", *words, "--systems", "[transitions, counted]")
    assert f"{counted} has counted the validation targets; evaluate it with --split test" in error
    code, _, error = command("evaluate.py", *words)
    assert code == 0 and "counted is left out: its memory has counted the validation targets" in error
    assert "counted" not in systems_of(tmp_path / "out")


def test_a_memory_of_three(evaluated, tmp_path):
    """The content memory is chosen with the counter's, saved, loaded and evaluated."""
    words = ("--run", evaluated, "--student", evaluated / "students/tiger", *COUNTED)
    students = tmp_path / "students"
    code, _, error = command("add_memory.py", *words, "--content", "true", "--output", students / "three")
    assert code == 0, error
    manifest, facts = (json.loads((students / "three" / name).read_text()) for name in ("manifest.json", "config.json"))
    tried = manifest["facts"]["valid"]
    best = max(tried, key=lambda choice: choice["ndcg@10"])
    assert manifest["inputs"].keys() >= {"dataset", "embeddings"}
    assert facts["memory"]["weight"] == best["weight"] and facts["memory"]["discount"] == best["discount"]
    content = facts["content_memory"]
    assert [content["weight"], content["temperature"]] == [best["content_weight"], best["temperature"]]
    assert len(tried) < 300 and len({(choice["weight"], choice["content_weight"]) for choice in tried}) > 60
    two = json.loads((evaluated / "students/tiger+memory/manifest.json").read_text())["facts"]["valid"]
    alone = [choice["ndcg@10"] for choice in tried if not choice["content_weight"]]
    assert alone == pytest.approx([choice["ndcg@10"] for choice in two])
    code, _, error = command("add_memory.py", *words, "--content", "true", "--content_weight", "0.3", "--weight", "0.5",
                             "--discount", "0.1", "--output", students / "fixed")  # fmt: skip
    assert code == 0, error
    memory = Recommender.from_pretrained(students / "fixed")
    assert memory.content_memory.weight == 0.3 and memory.transition_memory.weight == 0.5
    again = ("--run", evaluated, "--student", students / "fixed", *COUNTED, "--output", tmp_path / "counter")
    code, _, error = command("add_memory.py", *again)
    assert code == 0, error
    counter, first = (
        Recommender.from_pretrained(path) for path in (tmp_path / "counter", evaluated / "students/tiger+memory")
    )
    assert counter.content_memory is None  # the memories that it had are left out
    assert counter.transition_memory.weight == first.transition_memory.weight
    words = ("--run", evaluated, "--students", students, *COUNTED, "--exact_users", "5", "--output", tmp_path / "out")
    code, _, error = command("evaluate.py", *words, "--systems", "[transitions, three, fixed]")
    assert code == 0, error
    assert systems_of(tmp_path / "out") == ["transitions", "fixed", "three"]
    rows = {row["system"]: row for row in json.loads((tmp_path / "out/metrics.json").read_text())}
    assert rows["three"]["ndcg@10"] > 0.2 and rows["three"]["cold_users"] >= 0


def test_content_memories_that_are_refused(evaluated, tmp_path):
    words = ("--run", evaluated, "--student", evaluated / "students/tiger", *COUNTED, "--output", tmp_path / "out")
    assert "content_weight has no effect without --content true" in refused("add_memory.py", *words,
                                                                           "--content_weight", "0.2")  # fmt: skip
    error = refused("add_memory.py", *words, "--content", "true", "--weight", "0.7", "--content_weight", "0.5")
    assert "weight and content_weight add up to 1.2; together they may be at most 1" in error
    error = refused("add_memory.py", *words, "--content", "true", "--embeddings", tmp_path / "none")
    assert "No embeddings at" in error
    assert not (tmp_path / "out").exists()


def test_compare(evaluated, tmp_path):
    words = ("--evaluation", evaluated / "evaluation", "--a", "tiger+memory", "--b", "tiger")
    code, out, error = command("compare.py", *words, "--json", tmp_path / "figures")
    assert code == 0, error
    figures = json.loads((tmp_path / "figures").read_text())["metrics"]
    rows = {row["system"]: row for row in json.loads((evaluated / "evaluation/metrics.json").read_text())}
    for key in ("recall@1", "ndcg@10", "recall@20"):
        assert figures[key]["a"] == pytest.approx(rows["tiger+memory"][key])
        assert figures[key]["difference"] == pytest.approx(rows["tiger+memory"][key] - rows["tiger"][key])
    assert figures["ndcg@10"]["low"] > 0 and figures["ndcg@10"]["p"] < 1e-3 and "ndcg@10" in out
    assert "Did you mean 'tiger'?" in refused("compare.py", *words[:-1], "tigr")


def test_figures_are_not_written_anywhere(evaluated, tmp_path):
    words = ("--evaluation", evaluated / "evaluation", "--a", "tiger+memory", "--b", "tiger", "--json")
    assert "is a folder; name a file" in refused("compare.py", *words, tmp_path)
    assert "there is no folder" in refused("compare.py", *words, tmp_path / "none/figures.json")
    before = sorted((evaluated / "evaluation").iterdir())
    for name in ("metrics.json", "figures.json"):
        assert "lies inside the artifact" in refused("compare.py", *words, evaluated / "evaluation" / name)
    assert sorted((evaluated / "evaluation").iterdir()) == before
    assert "cannot be written" in refused("compare.py", *words, "/proc/figures.json")  # read-only, for root too


def test_different_users_are_not_compared(evaluated, tmp_path):
    words = ("--run", evaluated, *COUNTED, "--exact_users", "0", "--users", "30", "--output", tmp_path / "fewer")
    code, _, error = command("evaluate.py", *words, "--systems", "[tiger]")
    assert code == 0, error
    rows = json.loads((tmp_path / "fewer/metrics.json").read_text())
    assert [row["system"] for row in rows] == [*NOT_LEARNED, "tiger"]
    assert all(row["beam_missed@10"] is None for row in rows)
    words = ("--evaluation", evaluated / "evaluation", "--a", "tiger", "--other", tmp_path / "fewer", "--b", "tiger")
    assert "evaluated on different users or targets (50 and 30" in refused("compare.py", *words)


def test_lists_of_other_systems(evaluated, tmp_path):
    """A row from lists that hold the target at rank 3 for half of the users and not at all for the others."""
    examples = Dataset.load(evaluated / "dataset").examples("test", 9)
    lists = []
    for user, (history, target) in enumerate(zip(examples.histories.tolist(), examples.targets.tolist(), strict=True)):
        others = [item for item in range(N_ITEMS) if item not in (*history, target)]
        lists.append(others[:2] + [target] * (user % 2))
    table = {"user_id": [f"u{user}" for user in range(50)], "items": [[IDS[item] for item in row] for row in lists]}
    pq.write_table(pa.table(table), tmp_path / "peer.parquet")
    words = ("--run", evaluated, *COUNTED, "--output", tmp_path / "out", "--lists", tmp_path / "peer.parquet")
    code, _, error = command("evaluate.py", *words, "--systems", "[popularity]")
    assert code == 0, error
    row = json.loads((tmp_path / "out/metrics.json").read_text())[-1]
    assert systems_of(tmp_path / "out") == ["popularity", "peer"]
    assert row["recall@1"] == 0 and row["recall@5"] == row["recall@20"] == 0.5
    assert row["ndcg@10"] == pytest.approx(0.25) and row["mrr@20"] == pytest.approx(0.5 / 3)  # 1 / log2(4), 1 / 3
    assert row["note"] == "ranked outside this project" and row["users_per_s"] is row["parameters"] is None
    assert row["ndcg@10_above_floor"].keys() >= {"difference", "low", "high", "p"} and len(row["by_popularity"]) == 6
    code, _, error = command("evaluate.py", *words, "--systems", "[popularity]")
    assert code == 0 and "finished, at" in error
    pq.write_table(pa.table(table | {"items": table["items"][::-1]}), tmp_path / "peer.parquet")
    code, _, error = command("evaluate.py", *words, "--systems", "[popularity]")
    assert code == 0 and "made again, because lists/peer changed" in error
    (tmp_path / "peer.parquet").rename(tmp_path / "tiger.parquet")
    error = refused("evaluate.py", *words[:-1], tmp_path / "tiger.parquet")
    assert "would be the row 'tiger', which there is already" in error


def systems_of(folder):
    return [row["system"] for row in json.loads((folder / "metrics.json").read_text())]


def test_without_any_student(tmp_path):
    """What learns nothing can be evaluated before anything is trained."""
    make_run(tmp_path)
    for kind in ("students", "baselines"):
        shutil.rmtree(tmp_path / kind)
    code, _, error = command("evaluate.py", "--run", tmp_path, *COUNTED)
    assert code == 0, error
    assert systems_of(tmp_path / "evaluation") == [*NOT_LEARNED]
    # semantic IDs are needed only by systems that generate them, and where there are no embeddings
    shutil.rmtree(tmp_path / "semantic_ids")
    code, _, error = command("evaluate.py", "--run", tmp_path, *COUNTED, "--output", tmp_path / "no_ids")
    assert code == 0, error
    assert systems_of(tmp_path / "no_ids") == [*NOT_LEARNED]
    shutil.rmtree(tmp_path / "embeddings")
    assert "No semantic_ids at" in refused("evaluate.py", "--run", tmp_path, *COUNTED, "--output", tmp_path / "none")


def test_systems_that_learn_nothing_by_name(evaluated, tmp_path):
    words = ("--run", evaluated, *COUNTED, "--exact_users", "0", "--output", tmp_path / "chosen")
    code, _, error = command("evaluate.py", *words, "--systems", "[popularity]")
    assert code == 0, error
    assert systems_of(tmp_path / "chosen") == ["popularity"]
    code, _, error = command("evaluate.py", *words, "--systems", "[tiger, content, transitions]", "--overwrite")
    assert code == 0, error
    rows = json.loads((tmp_path / "chosen/metrics.json").read_text())
    assert systems_of(tmp_path / "chosen") == ["transitions", "content", "tiger"]
    assert {row["floor"] for row in rows} == {"transitions"}


def test_students_of_different_labels(evaluated, tmp_path):
    """They are refused side by side, since one of them is usually out of date, unless they are asked for."""
    for name in ("dwr", "other"):
        shutil.copytree(evaluated / "students/tiger", tmp_path / "students" / name)
        path = tmp_path / "students" / name / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["inputs"] |= {"soft_labels": f"of {name}", "teacher": f"of {name}"}
        path.write_text(json.dumps(seal(manifest)))
    words = ("--run", evaluated, "--students", tmp_path / "students", "--systems", "[transitions,dwr,other]")
    error = refused("evaluate.py", *words, *COUNTED, "--output", tmp_path / "evaluation")
    assert "made from soft_labels of dwr" in error and "add --different_labels true" in error
    command("evaluate.py", *words, *COUNTED, "--different_labels", "true", "--output", tmp_path / "evaluation")
    assert systems_of(tmp_path / "evaluation") == ["transitions", "dwr", "other"]
    make_run(tmp_path / "elsewhere", seed=1)
    shutil.copytree(tmp_path / "elsewhere/students/tiger", tmp_path / "students/foreign")
    words = (*words[:-1], "[dwr,foreign]", *COUNTED, "--output", tmp_path / "evaluation2")
    error = refused("evaluate.py", *words, "--different_labels", "true")
    assert "made from dataset" in error  # of another data set it is refused in any case
    error = refused("evaluate.py", *words)
    assert "made from dataset" in error and "different_labels" not in error


def test_names_without_their_inputs(evaluated, tmp_path):
    words = ("--run", evaluated, "--output", tmp_path / "evaluation", "--systems")
    assert "Unknown system 'oracle'" in refused("evaluate.py", *words, "[oracle]")  # no simulator
    assert "Unknown system 'teacher'" in refused("evaluate.py", *words, "[teacher]")
    assert "Unknown system 'content'" in refused("evaluate.py", *words, "[content]", "--content", "false")
    words = (*words, "[transitions+valid]", "--split", "valid")
    assert "Did you mean 'transitions'?" in refused("evaluate.py", *words)


def test_bad_input(evaluated, tmp_path):
    words = ("--run", evaluated, "--output", tmp_path / "evaluation")
    assert "cutoffs asks for lists of 20, but the beams are 10 wide" in refused("evaluate.py", *words, "--width", "10")
    assert "Did you mean 'tiger'?" in refused("evaluate.py", *words, "--systems", "[tigre]")
    assert "--widths is 0" in refused("evaluate.py", *words, "--widths", "[0]")
    assert "--users is 0" in refused("evaluate.py", *words, "--users", "0")
    assert "cutoffs is empty" in refused("evaluate.py", *words, "--cutoffs", "[]")
    assert "--split is dev; expected valid or test." in refused("evaluate.py", *words, "--split", "dev")
    assert "--ray_actors is for --launcher ray" in refused("evaluate.py", *words, "--ray_actors", "2")
    nobody = "--launcher", "ray", "--ray_address", "127.0.0.1:1"
    assert "No Ray cluster answers at 127.0.0.1:1" in refused("evaluate.py", *words, *COUNTED, *nobody)
    make_run(tmp_path / "short", n_vectors=N_ITEMS - 1)
    error = refused("evaluate.py", "--run", tmp_path / "short")
    assert f"holds {N_ITEMS - 1} embeddings, the catalogue {N_ITEMS} items" in error
    make_run(tmp_path / "other", seed=1)
    error = refused("evaluate.py", *words, "--students", tmp_path / "other/students")
    assert "do not belong together" in error
    error = refused("evaluate.py", *words, "--students", tmp_path / "none")
    assert "No student in" in error
    assert not (tmp_path / "evaluation").exists() and not (tmp_path / "evaluation.partial").exists()


@pytest.mark.parametrize(("name", "textual_ids"), [("bigrec", 0), ("idgenrec", 1)])
def test_a_teacher_that_writes_titles_is_a_baseline(tmp_path, name, textual_ids):
    make_run(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TeacherConfig(
        run=tmp_path, sizes=sizes, vocab_size=280, tasks={"titles": 1.0}, prompt="titles", textual_ids=textual_ids,
        title_tokens=8, title_beams=2, epochs=1, valid_users=10, checkpoint_every=0, tracker="none",
    )  # fmt: skip
    finetune.main(config)
    finetune.main(replace(config, tasks={"stream": 1.0}, prompt="stream", textual_ids=0))
    shutil.copytree(tmp_path / "teacher", tmp_path / "baselines/x")
    words = "--run", tmp_path, *COUNTED, "--users", "9", "--exact_users", "0", "--mixture_users", "0"
    code, _, error = command("evaluate.py", *words, "--systems", f"[{name},teacher,popularity]")
    assert code == 0, error
    rows = {row["system"]: row for row in json.loads((tmp_path / "evaluation/metrics.json").read_text())}
    assert list(rows) == ["popularity", name, "teacher"]
    assert rows[name]["parameters"] > 0 and rows[name]["invalid@10"] is None and rows[name]["users"] == 9
    lists = pq.read_table(tmp_path / "evaluation/lists.parquet")
    for items, history in zip(lists[name].to_pylist(), lists["history"].to_pylist(), strict=True):
        # none twice, and none that was bought
        recommended = [item for item in items if item >= 0]
        assert len(recommended) == min(20, N_ITEMS - len(set(history))) == len(set(recommended) - set(history))

    folder, other = tmp_path / "baselines" / name, tmp_path / "other"
    error = refused("evaluate.py", *words, "--systems", "[teacher]", "--teacher", folder, "--output", other)
    assert f"The teacher at {folder} writes titles; it is evaluated as a baseline" in error
    error = refused("evaluate.py", *words, "--systems", "[x]", "--output", other)
    assert "baselines/x is a teacher that is asked for IDs, not a baseline" in error
