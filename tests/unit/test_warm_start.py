"""A student that starts from the weights of an earlier one."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from student_shop import ITEMS, SIZE, K, Nothing, make_shop

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, write_codes
from student.config import Config
from student.train import main

SETTINGS = {
    "variant": "dwr", "epochs": 1, "batch_size": 8, "candidates": K, "max_history": 4, "valid_users": 5, "width": 5,
    "margin": 0.3, "tracker": "none", "checkpoint_every": 0,
}  # fmt: skip


@pytest.fixture(scope="module", params=["causal", "nested"])
def first_day(request, tmp_path_factory):
    """A trained student, and its config."""
    root = tmp_path_factory.mktemp("run")
    make_shop(root, [5, 6, 7, 5, 6, 8])
    config = Config(run=root, backbone=request.param, output=root / "first", **SETTINGS)
    main(config)
    return config


def later(config, folder, item_codes):
    """Write the IDs of a later day; returns their folder."""
    data = artifacts.read(config.run / "dataset", "dataset")
    with ArtifactJob("semantic_ids", Nothing(), folder, [data]).write() as partial:
        write_codes(partial, [f"i{number}" for number in range(len(item_codes))], item_codes)
        write_json(partial / "report.json", {"codebook_size": SIZE})
    return folder


def test_the_training_starts_from_the_weights(first_day, tmp_path):
    """With a learning rate of almost nothing they stay; without the start they are the seed's."""
    settings = replace(first_day, lr=1e-12, seed=1, dropout=0.0, output=tmp_path / "warm")
    main(replace(settings, warm_start=first_day.output))
    main(replace(settings, output=tmp_path / "cold"))
    warm, cold, old = (
        load_file(path / "model.safetensors") for path in (settings.output, tmp_path / "cold", first_day.output)
    )
    assert warm.keys() == old.keys()
    for name, value in old.items():
        np.testing.assert_allclose(warm[name], value, atol=1e-6, err_msg=name)
    assert max(np.abs(cold[name] - value).max() for name, value in old.items()) > 0.01


def test_another_start_is_other_work(first_day, tmp_path):
    config = replace(first_day, output=tmp_path / "warm", warm_start=first_day.output)
    main(config)
    extra = artifacts.read(config.output, "student").manifest["identity"]["extra"]
    assert extra["warm_start"] == artifacts.read(first_day.output, "student").fingerprint


def test_items_with_other_codes_are_refused(first_day, tmp_path):
    codes = SemanticIDs.load(first_day.run / "semantic_ids", ITEMS).codes.copy()
    codes[[0, 1]] = codes[[1, 0]]
    moved = later(first_day, tmp_path / "moved", codes)
    # labels of the first IDs do not fit these, tiger needs none
    config = replace(
        first_day, variant="tiger", semantic_ids=moved, output=tmp_path / "out", warm_start=first_day.output
    )
    with pytest.raises(UserError, match=r"2 of the 40 items .* have other semantic IDs now.*--extend OLD_IDS"):
        main(replace(config, warm_start=first_day.output))
    assert not list(tmp_path.glob("out*"))


def test_another_network_is_refused(first_day, tmp_path):
    config = replace(first_day, preset="small", output=tmp_path / "out", warm_start=first_day.output)
    with pytest.raises(UserError, match="is another network than this student"):
        main(config)


@pytest.mark.parametrize(
    "change", [{"init": "base", "backbone": "causal"}, {"item_text": "add"}, {"backbone": "sasrec"}]
)
def test_students_that_know_items_are_refused(first_day, tmp_path, change):
    config = replace(first_day, output=tmp_path / "out", warm_start=first_day.output, **change)
    with pytest.raises(UserError, match="--warm_start is for students over codewords alone"):
        main(config)
