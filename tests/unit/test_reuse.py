"""Labels of the changed targets alone: what is copied of an earlier day's labels, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import two_days

from distill import export_soft_labels as export
from distill.data.dataset import Dataset
from distill.labels.labeller import Labels, no_progress
from distill.labels.reuse import same_titles
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError

K = 4


class Named:
    """A labeller whose labels follow from the ids of history and target; its candidates are items of the first day."""

    def __init__(self, dataset, labelled):
        self.names, self.labelled = dataset.items["item_id"].to_pylist(), labelled

    def label(self, examples, request, progress):
        candidates, log_probs = [], []
        for history, target in zip(examples.histories, examples.targets, strict=True):
            words = [int(self.names[item][1:]) for item in (*history[history >= 0], target)]
            rng = np.random.default_rng(words)
            others = [f"i{number}" for number in rng.permutation(20) if number != words[-1]][: request.keep - 1]
            candidates.append([target, *(self.names.index(name) for name in others)])
            candidates[-1][-1] = -1 if words[-1] % 3 == 0 else candidates[-1][-1]  # some lists are short
            log_probs.append(np.log(0.9 * rng.dirichlet(np.ones(two_days.SIZE), two_days.LEVELS)))
        self.labelled += zip(examples.users.tolist(), examples.positions.tolist(), strict=True)
        progress(len(examples))
        scores = np.tile(-np.arange(request.keep, dtype=np.float32), (len(examples), 1))
        return Labels(np.array(candidates), scores, np.array(log_probs, np.float32))

    def facts(self):
        return {"engine": "named"}


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Both days' folders; the first has a teacher, which holds no model."""
    day1, day2 = two_days.make_days(tmp_path_factory.mktemp("days"))
    inputs = [artifacts.read(day1 / kind, kind) for kind in ("dataset", "semantic_ids")]
    with ArtifactJob("teacher", two_days.Nothing(), day1 / "teacher", inputs).write() as folder:
        write_json(folder / "teacher.json", {"max_history": 4})
    return day1, day2


@pytest.fixture
def make(days, monkeypatch):
    """Export by `Named`; returns the store, and which examples were labelled."""

    def export_labels(output, day=1, **changes):
        labelled = []
        monkeypatch.setattr(export, "open_labeller", lambda _, dataset, *__: (Named(dataset, labelled), 4))
        settings = {"width": 6, "keep": K, "shard_rows": 7, "teacher": days[0] / "teacher"} | changes
        export.main(export.Config(run=days[day], output=output, **settings))
        return None if settings.get("dry_run") else LabelStore.open(output), labelled

    return export_labels


def by_name(folder):
    """(user, position) to (user id, position, ids of history and target), of a day's training examples."""
    dataset = Dataset.load(folder / "dataset")
    users, items = dataset.user_ids.to_pylist(), dataset.items["item_id"].to_pylist()
    rows = {}
    for user, name in enumerate(users):
        sequence = [items[item] for item in dataset.sequence(user)]
        for position in range(1, len(sequence) - 2):
            rows[user, position] = (name, position, *sequence[max(position - 4, 0) : position + 1])
    return rows


def data_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


@pytest.mark.parametrize("encoding", ["u8", "fp16", "topk+tail"])
def test_copied_rows_are_those_of_a_full_export(days, make, tmp_path, encoding):
    """Byte for byte, where the labels of both days follow from the same candidates; only the others are labelled."""
    make(tmp_path / "day1", 0, shard_rows=5, encoding=encoding)
    _, everything = make(tmp_path / "full", encoding=encoding)
    reused, labelled = make(tmp_path / "reused", encoding=encoding, reuse=tmp_path / "day1")
    old, new = set(by_name(days[0]).values()), by_name(days[1])
    changed = {key for key, row in new.items() if row not in old}
    assert set(labelled) == changed and len(labelled) == len(changed)
    assert set(everything) == set(new) and 0 < len(changed) < len(new)
    assert len({bool(row[0].startswith("v")) for key, row in new.items() if key in changed}) == 2  # new and old users
    assert data_of(tmp_path / "reused") == data_of(tmp_path / "full")
    day1 = artifacts.read(tmp_path / "day1", "soft_labels")
    assert reused.index["reused"] == {
        "soft_labels": day1.fingerprint, "dataset": day1.inputs["dataset"], "copied": len(new) - len(changed),
    }  # fmt: skip
    manifest = reused.artifact.manifest
    assert manifest["facts"]["copied"] == len(new) - len(changed) and manifest["facts"]["computed"] == len(changed)
    assert manifest["identity"]["extra"] == {"reuse": day1.fingerprint}
    report = json.loads((tmp_path / "reused/report.json").read_text())
    assert (report["targets"], report["copied"]) == (len(changed), len(new) - len(changed))


def test_some_users_of_the_earlier_day(days, make, tmp_path):
    """What the earlier set did not label is labelled now."""
    make(tmp_path / "day1", 0, users="3:7", limit=8)
    _, labelled = make(tmp_path / "reused", reuse=tmp_path / "day1")
    make(tmp_path / "full")
    rows = [row for key, row in sorted(by_name(days[0]).items()) if 3 <= key[0] < 7][:8]
    assert set(labelled) == {key for key, row in by_name(days[1]).items() if row not in rows}
    assert data_of(tmp_path / "reused") == data_of(tmp_path / "full")


def test_a_third_day_on_top_of_reused_labels(make, tmp_path):
    make(tmp_path / "day1", 0)
    make(tmp_path / "day2", reuse=tmp_path / "day1")
    again, labelled = make(tmp_path / "day3", reuse=tmp_path / "day2")
    assert not labelled and data_of(tmp_path / "day3") == data_of(tmp_path / "day2")
    assert json.loads((tmp_path / "day3/report.json").read_text())["targets"] == 0
    assert again.artifact.manifest["facts"]["computed"] == 0


def test_a_dry_run_counts_what_is_left(days, make, tmp_path, capsys):
    make(tmp_path / "day1", 0)
    new, old = by_name(days[1]), set(by_name(days[0]).values())
    make(tmp_path / "none", reuse=tmp_path / "day1", dry_run=True)
    assert f"; {sum(row in old for row in new.values())} are copied from earlier labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 7}, "made by --width 6, not 7"),
        ({"encoding": "fp16"}, "made by --encoding u8, not fp16"),
        ({"exclude_bought": False}, "made by --exclude_bought True, not False"),
        ({"mix": {"llm": 0.5, "transitions": 0.5}}, "counts change with every interaction"),
        ({"folds": 2}, "folds go by the users' numbers"),
    ],
)
def test_other_settings_are_refused(make, tmp_path, changes, words):
    make(tmp_path / "day1", 0)
    with pytest.raises(UserError, match=words):
        make(tmp_path / "out", reuse=tmp_path / "day1", **changes)
    assert not list(tmp_path.glob("out*"))


def test_other_inputs_are_refused(days, make, tmp_path):
    make(tmp_path / "day1", 0)
    with ArtifactJob("teacher", two_days.Nothing(), tmp_path / "teacher").write() as folder:
        write_json(folder / "teacher.json", {"max_history": 3})
    with pytest.raises(UserError, match=r"made by the teacher [0-9a-f]+, not [0-9a-f]+"):
        make(tmp_path / "out", reuse=tmp_path / "day1", teacher=tmp_path / "teacher")
    with pytest.raises(UserError, match=r"it is another one .*--reuse_dataset"):
        make(tmp_path / "out", reuse=tmp_path / "day1", reuse_dataset=days[1] / "dataset")
    make(tmp_path / "day2")
    with pytest.raises(UserError, match=r"semantic IDs that .* does not extend"):  # the days the other way round
        make(tmp_path / "out", 0, reuse=tmp_path / "day2")
    assert not list(tmp_path.glob("out*"))


def test_a_data_set_that_moved(days, make, tmp_path):
    shutil.copytree(days[0], tmp_path / "moved")
    make(tmp_path / "day1", 0, dataset=tmp_path / "moved/dataset")
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"moved/dataset it is not there. Name its folder with --reuse_dataset"):
        make(tmp_path / "out", reuse=tmp_path / "day1")
    _, labelled = make(tmp_path / "out", reuse=tmp_path / "day1", reuse_dataset=tmp_path / "elsewhere/dataset")
    assert len(labelled) < len(by_name(days[1]))


def test_a_damaged_earlier_shard_ends_the_export(make, tmp_path):
    make(tmp_path / "day1", 0)
    shard = tmp_path / "day1/data/00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"The shard .*day1/data/00000.parquet is damaged"):
        make(tmp_path / "out", reuse=tmp_path / "day1")
    assert not (tmp_path / "out").exists()


def test_actors_of_a_cluster_copy_as_one_process_does(days, make, tmp_path, monkeypatch):
    """An actor works in another folder, where the earlier data set's relative path means nothing."""
    monkeypatch.chdir(days[0].parent)
    make(tmp_path / "day1", 0, dataset=Path("day1/dataset"))
    make(tmp_path / "alone", reuse=tmp_path / "day1")
    settings = {"width": 6, "keep": K, "shard_rows": 7, "teacher": days[0] / "teacher", "reuse": tmp_path / "day1"}
    config = export.Config(run=Path("day2"), output=tmp_path / "out", launcher="ray", **settings)
    driver = export.open_ray_exporter(config, export.read_inputs(config))
    monkeypatch.chdir(tmp_path)
    actor = driver.open_exporter()
    shards = {
        f"{number:05d}.parquet": bytes(actor.label_shard(number, no_progress)[0])
        for number in range(len(actor.bounds) - 1)
    }
    assert shards == data_of(tmp_path / "alone") and driver.earlier.store.artifact.folder == tmp_path / "day1"


def test_titles_that_changed(days):
    """A teacher that reads titles: an item with another title, description, or none now."""
    then, now = (Dataset.load(day / "dataset") for day in days)
    number = {name: place for place, name in enumerate(now.items["item_id"].to_pylist())}
    item_now = np.array([number[name] for name in then.items["item_id"].to_pylist()])
    assert same_titles(then, now, item_now).all()
    titles = now.items["title"].to_pylist()
    titles[item_now[3]], item_now[5] = "another", -2
    place = now.items.column_names.index("title")
    changed = replace(now, items=now.items.set_column(place, "title", [titles]))
    assert np.flatnonzero(~same_titles(then, changed, item_now)).tolist() == [3, 5]
