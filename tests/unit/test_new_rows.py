"""What the codewords' rows start from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distill.runtime.errors import UserError
from distill.semantic_ids import quantisers
from distill.semantic_ids.quantisers.codebooks import Codebooks
from teacher.base_model import init_from_codebook, init_from_text, item_texts, quantiser_vectors

LEVELS, SIZE, OLD, WIDTH = 3, 8, 40, 16


def network(tied):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=OLD + LEVELS * SIZE, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def codebooks(dim, levels=LEVELS):
    rng = np.random.default_rng(0)
    words = rng.normal(size=(levels, SIZE, dim)) * np.array([9.0, 3.0, 0.1])[:levels, None, None]
    return Codebooks(np.zeros(dim), words, "rkmeans")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dim", [5, WIDTH, 400])
def test_like_codewords_start_alike(tied, dim):
    model, words = network(tied), [codebooks(dim).words(level) for level in range(LEVELS)]
    tables = [table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    before = [table.detach().clone() for table in tables]
    init_from_codebook(model, words, 0)
    assert (tables[0] is tables[1]) == tied
    for table, old in zip(tables, before, strict=True):
        assert torch.equal(table[:OLD], old[:OLD])
        spread = table[OLD:] - old[:OLD].mean(0)
        for level, vectors in enumerate(words):
            rows = (spread / old[:OLD].std(0))[level * SIZE : (level + 1) * SIZE].detach()
            assert rows.square().mean() == pytest.approx(1, abs=1e-4)  # the old rows' spread, on every level
            found, given = (torch.pdist(torch.as_tensor(x)) for x in (rows, vectors))
            if dim <= WIDTH:  # distances are kept, but for the scale
                torch.testing.assert_close(found / found.mean(), given / given.mean(), rtol=1e-4, atol=0)
    again = network(tied)
    init_from_codebook(again, words, 0)
    assert torch.equal(again.get_input_embeddings().weight, tables[0])


def ids_of(folder):
    return SimpleNamespace(artifact=SimpleNamespace(folder=folder), levels=LEVELS, codebook_size=SIZE)


def test_the_quantisers_vectors(tmp_path):
    with pytest.raises(UserError, match=r"was imported or numbered: it has no quantiser.*--init_codewords mean"):
        quantiser_vectors(ids_of(tmp_path))
    made = codebooks(5)
    quantisers.save(made, tmp_path)
    for level, vectors in enumerate(quantiser_vectors(ids_of(tmp_path))):
        np.testing.assert_array_equal(vectors, made.words(level))
    quantisers.save(codebooks(5, levels=2), tmp_path)
    with pytest.raises(UserError, match="has 2 levels of 8 codewords, the IDs 3 of 8"):
        quantiser_vectors(ids_of(tmp_path))


TEXTS = ["red tent", "blue tent", "oil lamp", "", "oil lamp red"]
WORDS = ["red", "blue", "tent", "oil", "lamp"]
CODES = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 0], [2, 2, 2], [1, 3, 0]])


def tokenise(texts, add_special_tokens):
    assert not add_special_tokens
    return {"input_ids": [[WORDS.index(word) for word in text.split()] for text in texts]}


@pytest.mark.parametrize("tied", [False, True])
def test_rows_from_the_texts_of_a_codewords_items(tied):
    model = network(tied)
    tables = [table.weight.detach() for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    before = [table.clone() for table in tables]
    init_from_text(model, TEXTS, SimpleNamespace(codes=CODES, levels=LEVELS, codebook_size=SIZE), tokenise)
    for table, old in zip(tables, before, strict=True):
        rows = old[:OLD]
        assert torch.equal(table[:OLD], rows)
        red, blue, tent, oil, lamp = rows[:5]
        item = {0: (red + tent) / 2, 1: (blue + tent) / 2, 2: (oil + lamp) / 2, 4: (oil + lamp + red) / 3}
        first = torch.stack([(item[0] + item[1]) / 2, (item[2] + item[4]) / 2])  # level 0: codewords 0 and 1
        second = torch.stack([item[0], (item[1] + item[2]) / 2, torch.zeros(WIDTH), item[4]])[[0, 1, 3]]
        for start, codewords, means in ((OLD, [0, 1], first), (OLD + SIZE, [0, 1, 3], second)):
            found = table[start : start + SIZE][codewords]
            spread, expected = found - rows.mean(0), means - means.mean(0)
            torch.testing.assert_close(spread / spread.norm(), expected / expected.norm())
            # the base's mean squared norm
            assert found.square().sum(1).mean() == pytest.approx(rows.square().sum(1).mean().item(), rel=1e-4)
        # the codeword of the item without a text, and those of no item
        assert torch.equal(table[OLD + 2 : OLD + SIZE], old[OLD + 2 : OLD + SIZE])
        assert torch.equal(table[OLD + 2 * SIZE + 1 :], old[OLD + 2 * SIZE + 1 :])
        assert torch.isfinite(table).all()
        # the one codeword that all items share says nothing of them: the mean
        torch.testing.assert_close(table[OLD + 2 * SIZE], rows.mean(0))


def test_rows_from_texts_that_are_not_there():
    dataset = SimpleNamespace(texts=lambda: ["", ""], artifact=SimpleNamespace(folder="shop"))
    with pytest.raises(UserError, match="--init_codewords text: no item of shop has a text"):
        item_texts(dataset)
