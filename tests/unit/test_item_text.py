"""Students that read texts of the items: input rows by hand, saved students, cold items, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from item_texts import DIM, text_network
from safetensors.torch import load_file
from student_shop import ITEMS, Nothing, make_shop

from distill.data.dataset import write_dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, check_agreement
from distill.runtime.errors import UserError
from distill.semantic_ids import embeddings
from student import baseline, train
from student.config import BaselineConfig, Config
from student.item_recommender import ItemRecommender
from student.models import BACKBONES
from student.models.causal import Causal, CausalConfig
from student.models.item_models.items import TextItemEmbedding
from student.models.item_text import HistoryText, ProjectedText, TextConfig, text_of_ids, unit_vectors
from student.models.nested import Nested, NestedConfig
from student.models.seq2seq import Seq2Seq, Seq2SeqConfig
from student.recommender import Recommender

SIZES = {"d_model": 8, "d_ff": 12, "heads": 2, "d_head": 4}
USERS = np.array([[3, 1, 4, 7], [8, 2, -1, -1]])


# two items [1, 0] and [0, 1], projected by W = [[2, 3], [5, 7]] to [2, 5] and [3, 7]
def by_hand(module):
    module.set_vectors(np.eye(2))
    with torch.no_grad():
        module.projection.weight.copy_(torch.tensor([[2.0, 3.0], [5.0, 7.0]]))
    return module


@torch.no_grad()
def test_rows_of_items_by_hand():
    for only, learned in ((True, [[0, 0], [0, 0]]), (False, [[10, 20], [30, 40]])):
        items = TextItemEmbedding(2, 2, TextConfig(2, 2, only))
        by_hand(items.text)
        if not only:
            items.learned.copy_(torch.tensor(learned))
        rows = torch.tensor([[2.0, 5.0], [3.0, 7.0]]) + torch.tensor(learned)
        torch.testing.assert_close(items.weight, rows)
        torch.testing.assert_close(items(torch.tensor([1, 0])), rows[[1, 0]] * 2**0.5)
        states = torch.tensor([[1.0, -1.0]])
        torch.testing.assert_close(items(None, states), (states @ rows.T).log_softmax(-1))


@torch.no_grad()
def test_rows_of_a_history_by_hand():
    text = by_hand(HistoryText(TextConfig(2, 2), 2, codebook_size=10))
    text.ids.copy_(torch.tensor([34, 81]))  # the items 3-4 and 8-1
    history = torch.tensor([[[8, 1], [3, 4], [3, 5], [-1, -1]], [[9, 9], [-1, -1], [-1, -1], [-1, -1]]])
    assert text(history).tolist() == [[[3, 7], [2, 5], [0, 0], [0, 0]], [[0, 0]] * 4]  # unknown IDs have no text
    text.check_catalogue(torch.tensor([[3, 4], [8, 1]]))
    with pytest.raises(UserError, match="2 of 3 items of this catalogue have none"):
        text.check_catalogue(torch.tensor([[3, 4], [3, 5], [0, 0]]))


def test_items_of_one_id_share_their_mean():
    codes = np.array([[1, 1], [0, 2], [1, 1]])
    ids, vectors = text_of_ids(codes, np.array([[1.0, 0], [0.6, 0.8], [0, 1]]), 10)
    assert ids.tolist() == [2, 11]
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0.5**0.5, 0.5**0.5]])
    with pytest.raises(UserError, match="8 levels of 256 codewords"):
        text_of_ids(np.zeros((1, 8), np.int64), np.ones((1, 2)), 256)


def test_vectors_are_centred_and_of_length_one():
    unit = unit_vectors(np.array([[4.0, 5], [2, 1], [3, 3]]))  # less the mean (3, 3): (1, 2), (-1, -2), (0, 0)
    np.testing.assert_allclose(unit, np.array([[1, 2], [-1, -2], [0, 0]]) / 5**0.5, atol=1e-6)


HISTORY = torch.tensor([[[0, 1], [2, 2], [1, 0]], [[2, 1], [-1, -1], [-1, -1]]])  # two levels


@torch.no_grad()
def test_texts_are_added_where_the_networks_read_items():
    """Tokens of a history: codewords are numbered from 1, the second level's from 4."""
    table, sizes = {}, {"levels": 2, "codebook_size": 3, **SIZES}
    for name, model in {
        "seq2seq": text_network(Seq2Seq, Seq2SeqConfig(**sizes)),
        "causal": text_network(Causal, CausalConfig(**sizes)),
        "nested": text_network(Nested, NestedConfig(**sizes)),
    }.items():
        tokens = model.embedding(torch.tensor([[1, 5, 3, 6, 2, 4], [3, 5, 0, 0, 0, 0]])).unflatten(1, (3, 2))
        table[name] = model, tokens, model.text(HISTORY)
    model, tokens, text = table["seq2seq"]
    embedded, present = model.embed_history(HISTORY)
    ages = model.recency(torch.tensor([[2, 1, 0], [0, 0, 0]]))
    torch.testing.assert_close(embedded.unflatten(1, (3, 2)), tokens + (text + ages)[:, :, None])
    assert present.sum(1).tolist() == [6, 2]
    model, tokens, text = table["causal"]
    embedded = model.embed_history(HISTORY, torch.tensor([[1, 5, 3, 6, 2, 4], [3, 5, 0, 0, 0, 0]])).unflatten(1, (3, 2))
    torch.testing.assert_close(embedded[:, :, 0], tokens[:, :, 0])
    torch.testing.assert_close(embedded[:, :, 1], tokens[:, :, 1] + text)
    model, tokens, text = table["nested"]
    torch.testing.assert_close(model.embed_items(HISTORY), tokens.sum(2) + text)


@torch.no_grad()
def test_texts_in_place_of_the_codewords():
    sizes = {"levels": 2, "codebook_size": 3, **SIZES}
    model = text_network(Seq2Seq, Seq2SeqConfig(**sizes), only=True)
    embedded, present = model.embed_history(HISTORY)  # a token an item
    ages = model.recency(torch.tensor([[2, 1, 0], [0, 0, 0]]))
    torch.testing.assert_close(embedded, model.text(HISTORY) + ages)
    assert present.tolist() == [[True, True, True], [True, False, False]]
    model = text_network(Nested, NestedConfig(**sizes), only=True)
    torch.testing.assert_close(model.embed_items(HISTORY), model.text(HISTORY))


def write_embeddings(root, vectors, name="embeddings", dataset="dataset"):
    """Write an embeddings artifact of the data set."""
    data = artifacts.read(root / dataset, "dataset")
    with ArtifactJob("embeddings", Nothing(), root / name, [data], overwrite=True).write() as folder:
        embeddings.write(folder, vectors, [f"i{number}" for number in range(len(vectors))])
    return artifacts.read(root / name, "embeddings")


def random_vectors(seed, count=ITEMS):
    return np.random.default_rng(seed).normal(size=(count, DIM))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A shop whose items have texts, and small networks."""
    make_shop(tmp_path, [3, 4, 5, 6, 9, 4, 7, 3])
    write_embeddings(tmp_path, random_vectors(1))
    layers = {"seq2seq": {"encoder_layers": 1, "decoder_layers": 1}, "causal": {"layers": 1}, "nested": {"outer": 1}}
    for name in BACKBONES:
        monkeypatch.setitem(BACKBONES[name][2], "demo", SIZES | layers[name])
    return tmp_path


FEW = {"epochs": 1, "batch_size": 8, "max_history": 4, "valid_users": 4, "tracker": "none", "checkpoint_every": 0}


def train_student(root, name="student", **changes):
    """Train a student over codewords; returns its artifact."""
    train.main(Config(run=root, output=root / name, width=5, ranker_epochs=1, candidates=5, **(FEW | changes)))
    return artifacts.read(root / name, "student")


def train_item_model(root, name="sasrec", **changes):
    """Train a network over items; returns its artifact."""
    small = {"dim": 8, "layers": 1}
    baseline.main(BaselineConfig(run=root, output=root / name, **(FEW | small | changes)))
    return artifacts.read(root / name, "baseline")


@pytest.mark.parametrize(
    ("backbone", "item_text", "variant"),
    [("seq2seq", "add", "dtr"), ("seq2seq", "only", "tiger"), ("causal", "add", "dwr"), ("nested", "add", "tiger"),
     ("nested", "only", "dwr")],
)  # fmt: skip
def test_a_saved_student_needs_nothing_else(root, backbone, item_text, variant):
    student = train_student(root, backbone=backbone, item_text=item_text, variant=variant)
    shutil.rmtree(root / "embeddings")
    loaded = Recommender.from_pretrained(student.folder)
    assert loaded.model.text.only == (item_text == "only") and (loaded.ranker is not None) == (variant == "dtr")
    unit = unit_vectors(random_vectors(1)).astype(np.float16)
    rows, known = loaded.model.text.rows(loaded.codes)
    assert known.all()
    np.testing.assert_allclose(loaded.model.text.vectors[rows].float(), unit, atol=1e-3)
    lists, scores = loaded.rank_items(USERS, 8)
    (root / "again").mkdir()
    loaded.save_pretrained(root / "again")  # the embeddings are float16 in both files
    for name in ("model.safetensors", "config.json"):
        assert (root / "again" / name).read_bytes() == (student.folder / name).read_bytes()
    assert load_file(student.folder / "model.safetensors")["text.vectors"].dtype == torch.float16
    again = Recommender.from_pretrained(root / "again")
    np.testing.assert_array_equal(again.rank_items(USERS, 8)[0], lists)
    with torch.no_grad():
        (again.ranker or again.model).text.projection.weight.zero_()  # the network whose scores are returned
    assert np.abs(np.sort(again.rank_items(USERS, 8)[1]) - np.sort(scores)).max() > 1e-4


@pytest.mark.parametrize("network", ["sasrec", "gru4rec", "fmlp", "lite-llm4rec"])
@pytest.mark.parametrize("item_text", ["add", "only"])
def test_a_saved_item_model_needs_nothing_else(root, network, item_text):
    model = train_item_model(root, network=network, item_text=item_text)
    shutil.rmtree(root / "embeddings")
    loaded = ItemRecommender.from_pretrained(model.folder)
    unit = unit_vectors(random_vectors(1)).astype(np.float16)
    np.testing.assert_allclose(loaded.model.items.text.vectors.numpy(), unit, atol=1e-3)
    assert ("items.learned" in load_file(model.folder / "model.safetensors")) == (item_text == "add")
    loaded.save_pretrained(root)
    again = ItemRecommender.from_pretrained(root)
    np.testing.assert_array_equal(again.score_items(USERS), loaded.score_items(USERS))


def test_the_frozen_vectors_are_not_trained(root):
    text = ProjectedText(TextConfig(3, DIM), 4)
    assert [name for name, _ in text.named_parameters()] == ["projection.weight"]
    text.set_vectors(random_vectors(0, 3))
    assert text.double().state_dict()["vectors"].dtype == torch.float16
    student = train_student(root, backbone="nested", item_text="only")
    saved = load_file(student.folder / "model.safetensors")["text.vectors"]
    assert saved.shape == (ITEMS, DIM) and (saved.float().norm(dim=1) - 1).abs().max() < 1e-3


def test_without_texts_nothing_is_saved_of_them(root):
    for artifact in (train_student(root), train_item_model(root)):
        assert "text" not in json.loads((artifact.folder / "config.json").read_text())["model"]
        assert not any("text" in name for name in load_file(artifact.folder / "model.safetensors"))
        identity = artifact.manifest["identity"]
        assert not identity["extra"] and not {"item_text", "embeddings"} & identity["config"].keys()
        assert "embeddings" not in " ".join(artifact.inputs)


def test_texts_are_part_of_the_identity(root, capsys):
    changes = {"backbone": "nested", "item_text": "add"}
    first = train_student(root, **changes)
    train_student(root, **changes)
    assert "student: finished" in capsys.readouterr().err
    train_student(root, **(changes | {"item_text": "only"}))
    assert "because item_text changed" in capsys.readouterr().err
    shutil.copytree(root / "embeddings", root / "copied")
    train_student(root, **(changes | {"item_text": "only", "embeddings": root / "copied"}))
    assert "student: finished" in capsys.readouterr().err  # the same embeddings at another place
    write_embeddings(root, random_vectors(2), "other")
    other = train_student(root, "other-student", **changes, embeddings=root / "other")
    assert other.fingerprint != first.fingerprint
    check_agreement(first, other)  # both may stand in one table


# cold: item 11 is in no sequence; its text is nearly item 1's, and item 1 always follows item 0
COLD, BOUGHT_AFTER_0 = 11, 1


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    """Everybody walks round a circle of eleven items; the twelfth is cold."""
    folder, rng = tmp_path_factory.mktemp("circle"), np.random.default_rng(0)
    sequences = [(rng.integers(COLD) + np.arange(rng.integers(4, 8))) % COLD for _ in range(60)]
    with ArtifactJob("dataset", Nothing(), folder / "dataset").write() as output:
        items = pa.table({"item_id": [f"i{number}" for number in range(12)]})
        write_dataset(output, items, [f"u{number}" for number in range(60)], sequences)
    vectors = np.random.default_rng(1).normal(size=(12, 16))
    vectors[COLD] = vectors[BOUGHT_AFTER_0] + 0.05 * vectors[5]
    write_embeddings(folder, vectors)
    return folder


@pytest.mark.parametrize(("item_text", "recommended"), [("only", True), ("none", False)])
def test_a_cold_item_is_recommended_by_its_text(circle, tmp_path, item_text, recommended):
    changes = {"dim": 16, "dropout": 0.1, "epochs": 12, "batch_size": 16, "lr": 2e-2, "valid_users": 60}
    baseline.main(BaselineConfig(run=circle, output=tmp_path / "sasrec", item_text=item_text, **(FEW | changes)))
    model = ItemRecommender.from_pretrained(tmp_path / "sasrec")
    lists, _ = model.rank_items(np.array([[10, 0]]), 3)
    assert lists[0, 0] == BOUGHT_AFTER_0 or lists[0, 0] == COLD
    assert (COLD in lists[0, :2]) == recommended


def refused(root, make=train_student, **changes):
    """Train into a folder that must not appear; returns the message."""
    with pytest.raises(UserError) as error:
        make(root, "refused", **changes)
    assert not (root / "refused").exists() and not (root / "refused.partial").exists()
    return str(error.value)


@pytest.mark.parametrize("make", [train_student, train_item_model])
def test_embeddings_that_do_not_fit(root, make):
    add = {"item_text": "add"}
    message = refused(root, make, **add, embeddings=root / "nowhere")
    assert f"No embeddings at {root / 'nowhere'}" in message and "scripts/embed_items.py" in message
    assert "is read by --item_text add or only" in refused(root, make, embeddings=root / "embeddings")
    make_shop(root / "others", [3, 4, 5], seed=3)
    write_embeddings(root / "others", random_vectors(1))
    assert "do not belong together" in refused(root, make, **add, embeddings=root / "others/embeddings")
    write_embeddings(root, random_vectors(1, ITEMS - 1), "short")
    assert f"{ITEMS - 1} embeddings, the catalogue {ITEMS} items" in refused(
        root, make, **add, embeddings=root / "short"
    )


def test_networks_that_read_no_texts(root):
    assert "take --item_text add, or --backbone nested" in refused(root, backbone="causal", item_text="only")
    message = refused(root, backbone="causal", item_text="add", init=root / "base")
    assert "a large student reads codewords alone" in message


def test_a_grown_catalogue_is_refused(root):
    student = Recommender.from_pretrained(train_student(root, backbone="nested", item_text="add").folder)
    codes = student.codes.numpy()
    used = {tuple(row) for row in codes.tolist()}
    new = next(code for code in np.ndindex(6, 6, 6) if code not in used)
    names = [*student.item_ids, "new"]
    with pytest.raises(UserError, match="1 of 41 items of this catalogue have none"):
        Recommender(student.model, np.vstack([codes, new]), names, names, facts=student.facts)
    without = Recommender.from_pretrained(train_student(root, "plain", backbone="nested").folder)
    Recommender(without.model, np.vstack([codes, new]), names, names, facts=without.facts)


def test_the_search_is_one_graph(root):
    """`fullgraph` fails where the look-up of the texts returns to Python."""
    student = Recommender.from_pretrained(train_student(root, backbone="nested", item_text="add").folder)
    items, scores = student.rank_items(USERS, 8)
    compiled = student.compile(backend=lambda graph, _: graph.forward)
    again, same = compiled.rank_items(USERS, 8)
    assert again.tolist() == items.tolist()
    np.testing.assert_allclose(same, scores, atol=1e-5)


def test_both_commands_take_texts(root):
    """student/train.py --backbone sasrec trains what student/baseline.py trains."""
    options = {name: getattr(BaselineConfig(), name) for name in ("dropout", "lr", "weight_decay", "patience")}
    config = Config(run=root, backbone="sasrec", item_text="only", dim=8, layers=1, **(FEW | options))
    train.main(dataclasses.replace(config, output=root / "other"))
    expected = train_item_model(root, item_text="only", **options)
    assert artifacts.read(root / "other", "baseline").fingerprint == expected.fingerprint
