"""Teachers of earlier semantic IDs: what labels items that were launched since, and what goes on from their weights."""

from dataclasses import replace

import numpy as np
import pytest
import two_days
from safetensors.numpy import load_file

from distill import export_soft_labels as export
from distill.data.dataset import Dataset
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.semantic_ids.lineage import adopt_teacher, ancestors
from teacher import finetune
from teacher.config import Config


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Both days' folders; the first has a teacher."""
    day1, day2 = two_days.make_days(tmp_path_factory.mktemp("days"))
    finetune.main(Config(run=day1, **two_days.TEACHER))
    return day1, day2


def export_config(days, output, **changes):
    day1, day2 = days
    config = export.Config(run=day2, teacher=day1 / "teacher", width=12, keep=13, device="cpu", output=output)
    return replace(config, **changes)


def unrelated_ids(days, folder):
    """The second day's IDs once more, without the record of what they extend."""
    data = artifacts.read(days[1] / "dataset", "dataset")
    with ArtifactJob("semantic_ids", two_days.Nothing(), folder, [data]).write() as partial:
        for name in ("codes.parquet", "report.json"):
            (partial / name).write_bytes((days[1] / "semantic_ids" / name).read_bytes())
        (partial / "note.txt").write_text("another fingerprint")
    return folder


def test_a_teacher_labels_items_that_it_was_not_tuned_on(days, tmp_path):
    day1, day2 = days
    export.main(export_config(days, tmp_path / "labels"))
    store = LabelStore.open(tmp_path / "labels")
    dataset, block = Dataset.load(day2 / "dataset"), store.load()
    is_new = np.array([int(name[1:]) >= 20 for name in dataset.items["item_id"].to_pylist()])
    candidates = block.candidates()[:, 1:]
    assert is_new[candidates[candidates >= 0]].any()  # the trie is that of the new IDs
    inputs = store.artifact.inputs
    assert inputs["semantic_ids"] == artifacts.read(day2 / "semantic_ids", "semantic_ids").fingerprint
    assert inputs["dataset"] == dataset.artifact.fingerprint
    assert inputs["teacher"] == artifacts.read(day1 / "teacher", "teacher").fingerprint


def test_ids_that_extend_others_than_the_teachers_are_refused(days, tmp_path):
    config = export_config(days, tmp_path / "labels", semantic_ids=unrelated_ids(days, tmp_path / "ids"))
    with pytest.raises(UserError, match="do not belong together"):
        export.main(config)
    assert not list(tmp_path.glob("labels*"))


def test_ancestors_by_hand(days):
    ids = artifacts.read(days[1] / "semantic_ids", "semantic_ids")
    parent = artifacts.read(days[0] / "semantic_ids", "semantic_ids")
    assert ancestors(parent) == [] and ancestors(ids) == [parent.fingerprint]
    without_facts = {name: value for name, value in ids.manifest.items() if name != "facts"}
    assert ancestors(replace(ids, manifest=without_facts)) == [parent.fingerprint]  # as earlier versions wrote it
    teacher = artifacts.read(days[0] / "teacher", "teacher")
    assert adopt_teacher(teacher, ids).inputs == {} and adopt_teacher(teacher, parent) is teacher
    third = replace(ids, fingerprint="3", manifest={"facts": {"ancestors": ["2", parent.fingerprint]}})
    assert adopt_teacher(teacher, third).inputs == {}


def test_a_teacher_of_another_days_fold_is_refused(days):
    ids = artifacts.read(days[1] / "semantic_ids", "semantic_ids")
    teacher = artifacts.read(days[0] / "teacher", "teacher")
    with pytest.raises(UserError, match=r"without the users of fold 1 .*Tune the folds' teachers again"):
        adopt_teacher(replace(teacher, config={"folds": 3, "fold": 1}), ids)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_tuning_goes_on_from_the_weights(days, tmp_path, mode):
    """With a learning rate of almost nothing they stay; without the start they are the seed's."""
    day1, day2 = days
    config = Config(run=day2, output=tmp_path / "warm", lr=1e-12, seed=1, mode=mode, **two_days.TEACHER)
    finetune.main(replace(config, warm_start=day1 / "teacher"))
    finetune.main(replace(config, output=tmp_path / "cold"))
    warm, cold, old = (
        load_file(path / "model.safetensors") for path in (config.output, tmp_path / "cold", day1 / "teacher")
    )
    assert warm.keys() == old.keys()
    for name, value in old.items():
        np.testing.assert_allclose(warm[name], value, atol=1e-6, err_msg=name)
    same_shape = [name for name, value in old.items() if cold[name].shape == value.shape]  # but for the vocabulary
    assert max(np.abs(cold[name] - old[name]).max() for name in same_shape) > 0.01
    teacher = artifacts.read(config.output, "teacher")
    assert (
        teacher.manifest["identity"]["extra"]["warm_start"] == artifacts.read(day1 / "teacher", "teacher").fingerprint
    )
    assert teacher.manifest["facts"]["precision"] == "no"
    assert teacher.inputs["semantic_ids"] == artifacts.read(day2 / "semantic_ids", "semantic_ids").fingerprint


def test_a_tuning_from_weights_of_other_ids_is_refused(days, tmp_path):
    ids = unrelated_ids(days, tmp_path / "ids")
    config = Config(run=days[1], semantic_ids=ids, output=tmp_path / "warm", **two_days.TEACHER)
    with pytest.raises(UserError, match=r"does not extend them, so its weights mean nothing here.*--extend OLD_IDS"):
        finetune.main(replace(config, warm_start=days[0] / "teacher"))
    with pytest.raises(UserError, match="has seen the users of every fold"):
        finetune.main(replace(config, warm_start=days[0] / "teacher", folds=2))
    assert not list(tmp_path.glob("warm*"))
