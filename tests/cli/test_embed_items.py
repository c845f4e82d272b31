"""From texts to embeddings: every embedder, resumption, sharding, co-occurrence, items added later, bad input."""

import shutil

import numpy as np
import pytest
from by_command import KINDS, LINES, TITLES, command, make_dataset, real_command, refused
from safetensors.numpy import load_file, save_file
from student_shop import write_network

from distill.data.dataset import Dataset
from distill.semantic_ids import cooccurrence, embeddings
from distill.semantic_ids.embedding_shards import write_shard
from student.models.item_models import SASRec, SASRecConfig


def rows(root, name="embeddings"):
    return load_file(root / name / "embeddings.safetensors")["embeddings"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A LLaMA of random weights with a tokenizer that knows the shop's words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["[UNK]", *KINDS, *LINES, "number"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).eval().save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_tfidf(tmp_path):
    make_dataset(tmp_path, TITLES)
    code, _, error = real_command("embed_items.py", tmp_path, "--dim", "8")
    assert code == 0, error
    found = rows(tmp_path)
    assert found.shape == (20, 8) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    names = embeddings.item_ids(tmp_path / "embeddings")
    np.testing.assert_array_equal(embeddings.load(tmp_path / "embeddings", names), found)


def test_items_without_text(tmp_path):
    make_dataset(tmp_path, [""] * 20)
    assert "build_semantic_ids.py --index" in refused("embed_items.py", tmp_path, kind="embeddings")


def test_some_items_without_text(tmp_path):
    make_dataset(tmp_path, [*TITLES[:5], "", "  ", *TITLES[7:]])
    error = refused("embed_items.py", tmp_path, kind="embeddings")
    assert "2 of 20 items have no text, the first is item 5 ('item5')" in error
    code, _, error = command("embed_items.py", tmp_path, "--empty_text", "keep")
    assert code == 0, error
    found = rows(tmp_path)
    np.testing.assert_array_equal(found[5], found[6])
    assert np.linalg.norm(found[5]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--embedder", "hf"], "Embedder hf needs a model"),
        (["--embedder", "sentence"], "Embedder sentence needs a model"),
        (["--embedder", "hf", "--model", "empty"], "is not a model that transformers can load"),
        (["--embedder", "sentence", "--model", "empty"], "is no model that sentence-transformers can load"),
        (
            ["--collaborative_weight", "1.5"],
            "--collaborative_weight is 1.5; expected a number of at least 0 and below 1",
        ),
        (["--like", "nowhere"], "No embeddings at nowhere"),
    ],
)
def test_refusals(tmp_path, words, message):
    make_dataset(tmp_path, TITLES)
    (tmp_path / "empty").mkdir()
    assert message in refused("embed_items.py", tmp_path, *words, kind="embeddings")


def test_hf_embeddings_are_means_over_the_tokens(tmp_path, tiny_model):
    import torch
    from transformers import AutoModel, AutoTokenizer

    titles = [*TITLES[:5], "aurora"]
    make_dataset(tmp_path, titles)
    code, _, error = command(
        "embed_items.py", tmp_path, "--embedder", "hf", "--model", str(tiny_model), "--batch_size", "4"
    )
    assert code == 0, error
    found = rows(tmp_path)
    assert found.shape == (6, 16)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModel.from_pretrained(tiny_model)
    texts = Dataset.load(tmp_path / "dataset").texts()
    for row in (0, 5):
        tokens = tokenizer(texts[row], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            expected = model(**tokens).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found[row], expected.numpy(), atol=1e-5)


def test_minilm_knows_what_words_mean(tmp_path):
    titles = ["a teapot for two", "kettle, stainless steel", "running shoes", "sneakers for joggers"]
    make_dataset(tmp_path, titles)
    code, _, error = command("embed_items.py", tmp_path, "--embedder", "minilm")
    assert code == 0, error
    found = rows(tmp_path)
    assert found.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = found @ found.T
    assert min(cosines[0, 1], cosines[2, 3]) > max(cosines[0, 2], cosines[0, 3], cosines[1, 2], cosines[1, 3]) + 0.2
    # any sentence-transformers folder is loaded likewise
    from distill.semantic_ids.embedders import minilm_folder

    words = ["--embedder", "sentence", "--model", minilm_folder(), "--output", "again"]
    assert command("embed_items.py", tmp_path, *words)[0] == 0
    np.testing.assert_array_equal(rows(tmp_path, "again"), found)


def test_a_killed_command_goes_on_and_processes_share_the_work(tmp_path, tiny_model):
    make_dataset(tmp_path, TITLES)
    words = ["--embedder", "hf", "--model", str(tiny_model), "--batch_size", "3", "--shard_rows", "4"]
    code, _, error = command("embed_items.py", tmp_path, *words, "--output", "once")
    assert code == 0, error
    expected = rows(tmp_path, "once")
    assert sorted(path.name for path in (tmp_path / "once").iterdir()) == [
        "embeddings.safetensors",
        "items.parquet",
        "manifest.json",
        "space.json",
    ]

    killed = tmp_path / "embeddings.partial" / "shards"
    import distill.semantic_ids.embedders as module

    real = module.hidden_state_encoder

    def breaks_after_three_batches(*settings):
        encode, calls = real(*settings), []

        def encode_some(texts):
            calls.append(texts)
            if len(calls) > 4:
                raise KeyboardInterrupt
            return encode(texts)

        return encode_some

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "hidden_state_encoder", breaks_after_three_batches)
        code, _, error = command("embed_items.py", tmp_path, *words)
    assert code == 130 and not (tmp_path / "embeddings").exists()
    done = sorted(killed.glob("*.npy"))
    assert len(done) == 2
    write_shard(killed, int(done[1].stem), np.load(done[1]) + 100)  # what is finished is not made again
    done[0].write_bytes(done[0].read_bytes()[:-1] + b"?")  # but what was altered
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    code, _, error = real_command("embed_items.py", tmp_path, *words, launcher=launcher)
    assert code == 0, error
    found = rows(tmp_path)
    changed = np.abs(found - expected).max(1) > 50
    assert changed.sum() == 4 and f"{done[0].name} was cut or altered: made again" in error
    np.testing.assert_allclose(found[~changed], expected[~changed], atol=1e-5)
    assert not (tmp_path / "embeddings" / "shards").exists()


@pytest.mark.parametrize("how", ["concat", "average"])
def test_what_is_bought_together_joins_the_texts(tmp_path, how):
    make_dataset(tmp_path, TITLES)
    assert command("embed_items.py", tmp_path, "--dim", "8", "--output", "text")[0] == 0
    words = ["--dim", "8", "--collaborative", how, "--collaborative_weight", "0.4", "--collaborative_dim", "3"]
    code, _, error = command("embed_items.py", tmp_path, *words)
    assert code == 0, error
    assert "2 of 20 items were bought together" in error  # training parts: (0), (2, 1)
    dataset = Dataset.load(tmp_path / "dataset")
    company = cooccurrence.embed(*dataset.training_sequences(), 20, 3, 20, 0)
    expected, _ = cooccurrence.join(rows(tmp_path, "text"), company, how, 0.4)
    np.testing.assert_allclose(rows(tmp_path), expected, atol=1e-5)


def make_sasrec(root, name, n_items=20):
    """Write a SASRec, untrained, into the folder of a run; returns its item embeddings."""
    model = SASRec(SASRecConfig(n_items, dim=4))
    write_network(root / name, model, root / "dataset")
    return model.items.weight.detach().numpy()


@pytest.mark.parametrize("how", ["concat", "average"])
def test_a_networks_item_embeddings_join_the_texts(tmp_path, how):
    make_dataset(tmp_path, TITLES)
    weight = make_sasrec(tmp_path, "sasrec")
    assert command("embed_items.py", tmp_path, "--dim", "8", "--output", "text")[0] == 0
    words = ["--dim", "8", "--collaborative", how, "--collaborative_weight", "0.4", "--item_model", "sasrec"]
    code, _, error = command("embed_items.py", tmp_path, *words)
    assert code == 0, error
    assert "3 of 20 items were bought in the training part" in error
    joining = np.zeros((20, 4), np.float32)
    for item in (0, 1, 2):
        joining[item] = weight[item] / np.sqrt(np.sum(weight[item] ** 2))
    expected, _ = cooccurrence.join(rows(tmp_path, "text"), joining, how, 0.4)
    np.testing.assert_allclose(rows(tmp_path), expected, atol=1e-5)
    assert "finished, at" in command("embed_items.py", tmp_path, *words)[2]
    make_sasrec(tmp_path, "other")  # of other weights
    code, _, error = command("embed_items.py", tmp_path, *words[:-1], "other")
    assert code == 0 and "made again, because input baseline/item_model-" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--item_model joins the texts as --collaborative says: concat or average, found none"),
        (["--collaborative", "concat"], "--item_model network has 12 items, the data set 20"),
        (["--collaborative", "concat", "--like", "text"], "--item_model: with --like old items keep their embeddings"),
    ],
)
def test_networks_that_cannot_join(tmp_path, words, message):
    make_dataset(tmp_path, TITLES)
    make_sasrec(tmp_path, "network", 12)
    assert command("embed_items.py", tmp_path, "--dim", "8", "--output", "text")[0] == 0
    assert message in refused("embed_items.py", tmp_path, *words, "--item_model", "network", kind="embeddings")


def test_a_model_trained_again_in_place_is_another(tmp_path, tiny_model):
    """Of the same path and sizes; its shards must not be mixed, nor its vectors added to those of before."""
    make_dataset(tmp_path, TITLES)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    words = ["--embedder", "hf", "--model", str(model), "--shard_rows", "4"]
    assert command("embed_items.py", tmp_path, *words)[0] == 0
    before = rows(tmp_path)
    shutil.copytree(tiny_model, model, dirs_exist_ok=True)
    assert "finished, at" in command("embed_items.py", tmp_path, *words)[2]
    weights = load_file(model / "model.safetensors")
    save_file({name: value * 2 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    code, _, error = command("embed_items.py", tmp_path, "--like", "embeddings", "--output", "more")
    assert code == 2 and f"--like: the model {model} is not what it was" in error and not (tmp_path / "more").exists()
    code, _, error = command("embed_items.py", tmp_path, *words)
    assert code == 0 and "made again, because model files changed" in error
    assert np.abs(rows(tmp_path) - before).max() > 1e-3
    assert command("embed_items.py", tmp_path, "--like", "embeddings", "--output", "more")[0] == 0


@pytest.mark.parametrize("how", ["none", "concat"])
def test_items_added_later_lie_in_the_same_space(tmp_path, how):
    make_dataset(tmp_path, TITLES)
    words = ["--dim", "8", "--collaborative", how]
    assert command("embed_items.py", tmp_path, *words)[0] == 0
    old = rows(tmp_path)
    # a longer catalogue in another order: a twin of item 9, an unknown word, no text at all
    ids = [f"item{i}" for i in (22, *range(20), 20, 21)]
    make_dataset(tmp_path, ["", *TITLES, TITLES[9], "zzz"], ids, "longer")
    words = ["--dataset", "longer", "--like", "embeddings", "--output", "more", "--empty_text", "keep"]
    code, _, error = command("embed_items.py", tmp_path, *words)
    assert code == 0, error
    assert "20 items keep their embeddings, 3 are new" in error
    found = rows(tmp_path, "more")
    np.testing.assert_array_equal(found[1:21], old)
    np.testing.assert_allclose(found[21, :8], old[9, :8], atol=1e-5)
    np.testing.assert_array_equal(found[21, 8:], 0)  # nobody bought it yet
    np.testing.assert_allclose(found[0], found[22], atol=1e-6)  # the mean
    (tmp_path / "more" / "space.json").rename(tmp_path / "space.json")
    words = ["--dataset", "longer", "--like", "more", "--output", "same"]
    assert "does not record its space" in refused("embed_items.py", tmp_path, *words, kind="same")
    (tmp_path / "space.json").rename(tmp_path / "more" / "space.json")
    # and once more, with nothing new
    assert command("embed_items.py", tmp_path, *words)[0] == 0
    np.testing.assert_array_equal(rows(tmp_path, "same"), found)


def test_fields_of_the_texts(tmp_path):
    """Categories alone: items of a kind are equal. The default's manifest is that of before the option."""
    titles = [" ".join(reversed(title.split()[:2])) for title in TITLES]  # "tent aurora": the category is the line
    make_dataset(tmp_path, titles)
    every = ["--fields", "title,brand,categories,description"]
    for words in (["--dim", "8"], ["--dim", "8", *every]):
        code, _, error = command("embed_items.py", tmp_path, *words)
        assert code == 0, error
    assert "finished, at" in error
    whole = rows(tmp_path)
    code, _, error = command("embed_items.py", tmp_path, "--dim", "8", "--fields", "categories")
    assert code == 0 and "made again, because fields changed" in error
    by_category = rows(tmp_path).reshape(len(KINDS), len(LINES), -1)
    np.testing.assert_allclose(by_category, np.broadcast_to(by_category[:1], by_category.shape), atol=1e-6)
    assert np.abs(whole[0] - whole[len(LINES)]).max() > 0.01  # another kind of the same line
    for value, said in (("name", "--fields"), ("[]", "--fields is empty")):
        code, _, error = command("embed_items.py", tmp_path, "--fields", value)
        assert code == 2 and said in error
