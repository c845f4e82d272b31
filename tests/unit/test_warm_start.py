"""A student that starts from the weights of an earlier one."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from student_shop import ITEMS, SIZE, K, Nothing, make_shop
from tiny_llms import NETWORKS, checkpoint

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.semantic_ids import embeddings
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


def test_a_network_over_items_is_refused(first_day, tmp_path):
    config = replace(first_day, output=tmp_path / "out", warm_start=first_day.output, backbone="sasrec")
    with pytest.raises(UserError, match="--warm_start is for students over codewords"):
        main(config)


def write_embeddings(first_day, folder, vectors):
    """Embeddings of the shop's items; returns their folder."""
    data = artifacts.read(first_day.run / "dataset", "dataset")
    with ArtifactJob("embeddings", Nothing(), folder, [data]).write() as partial:
        embeddings.write(partial, vectors, [f"i{number}" for number in range(ITEMS)])
    return folder


def test_a_student_that_reads_texts(first_day, tmp_path):
    """The projection is the earlier one, the embeddings are this day's; those of another model are refused."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ITEMS, 6))
    old, new, other = (
        write_embeddings(first_day, tmp_path / name, vectors + change)
        for name, change in [("old", 0), ("new", 0.1 * rng.normal(size=vectors.shape)), ("other", 9 * vectors[::-1])]
    )
    reads = replace(first_day, item_text="add", dropout=0.0)
    main(replace(reads, embeddings=old, output=tmp_path / "first"))
    later = replace(reads, lr=1e-12, seed=1, warm_start=tmp_path / "first")
    main(replace(later, embeddings=new, output=tmp_path / "warm"))
    first, warm = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "warm"))
    for name, value in first.items():
        if name != "text.vectors":
            np.testing.assert_allclose(warm[name], value, atol=1e-6, err_msg=name)
    assert 0.01 < np.abs(first["text.vectors"] - warm["text.vectors"]).max() < 0.3
    with pytest.raises(UserError, match=r"are embedded otherwise now \(mean cosine .*--like OLD_EMBEDDINGS"):
        main(replace(later, embeddings=other, output=tmp_path / "out"))
    with pytest.raises(UserError, match="is another network than this student"):
        main(replace(later, item_text="none", output=tmp_path / "out"))


@pytest.mark.parametrize("first_day", ["causal"], indirect=True)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0)])
def test_a_large_student(first_day, tmp_path, before, after):
    """It starts from the saved weights, into which adapters are merged; new adapters change nothing at first."""
    ids = SemanticIDs.load(first_day.run / "semantic_ids", ITEMS)
    base = checkpoint(tmp_path / "base", NETWORKS["llama"], ids.tokens())
    # `no`: Accelerate knows one precision a process
    large = replace(first_day, init=base, dropout=0.0, precision="no")
    main(replace(large, lora_rank=before, lr=0.05, output=tmp_path / "first"))
    later = replace(large, lora_rank=after, lr=1e-12, seed=1, warm_start=tmp_path / "first")
    main(replace(later, output=tmp_path / "warm"))
    start, first, warm = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "first", "warm"))
    assert first.keys() == warm.keys()
    for name, value in first.items():
        np.testing.assert_allclose(warm[name], value, atol=1e-5, err_msg=name)
    layer = "layers.0.self_attn.q_proj.weight"
    assert np.abs(first[f"trunk.{layer}"] - start[f"model.{layer}"]).max() > 1e-3
