"""What the codewords' rows start from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distill.runtime.errors import UserError
from distill.semantic_ids import quantisers
from distill.semantic_ids.quantisers.codebooks import Codebooks
from teacher.base_model import init_from_codebook, quantiser_vectors

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
    with pytest.raises(UserError, match=r"was imported: it has no quantiser.*--init_codewords mean"):
        quantiser_vectors(ids_of(tmp_path))
    made = codebooks(5)
    quantisers.save(made, tmp_path)
    for level, vectors in enumerate(quantiser_vectors(ids_of(tmp_path))):
        np.testing.assert_array_equal(vectors, made.words(level))
    quantisers.save(codebooks(5, levels=2), tmp_path)
    with pytest.raises(UserError, match="has 2 levels of 8 codewords, the IDs 3 of 8"):
        quantiser_vectors(ids_of(tmp_path))
