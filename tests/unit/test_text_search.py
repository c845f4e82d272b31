"""The search for texts against one written with lists, and against Transformers' `generate`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import text_search_naive
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from unit.test_beam_search import Table

from distill.decoding.text_search import search_texts
from teacher.engines.tree_step import TreeStep, encode

END = 1


def table_step(seed, size, k):
    """A model without parameters that names the k likeliest tokens of each beam."""
    table = Table(seed, 2, size)
    return table, lambda *state: table(*state).topk(min(k, size))


@given(
    st.integers(0, 10**6),
    st.integers(1, 5),
    st.integers(2, 6),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_the_search_equals_the_naive_one(seed, max_tokens, size, width, stop_early, penalty):
    table, step = table_step(seed, size, 2 * width)
    texts, scores = search_texts(step, END, max_tokens, 2, width, length_penalty=penalty, stop_early=stop_early)
    assert texts.shape == (2, width, max_tokens)
    for user in range(2):
        expected = text_search_naive.search_texts(
            lambda prefix, user=user: table.log_prob(user, prefix), END, max_tokens, width, penalty
        )
        padded = [[*tokens, *[END] * (max_tokens - len(tokens))] for tokens, _ in expected]
        assert texts[user, : len(padded)].tolist() == padded
        np.testing.assert_allclose(scores[user, : len(padded)], [score for _, score in expected], atol=1e-5)
        assert (scores[user, len(padded) :] == -torch.inf).all()


def test_by_hand():
    """Token 1 ends. "2 1" has log P −.6 − .1, a mean of −.35; "1" has −.9; "2 2", cut at two tokens, (−.6 − 3) / 2.

    With a last token of −.4 the mean of "2 1", −.5, is better than −.9, but its log P, −1, is not.
    """
    rows = {(): [-9.0, -0.9, -0.6], (2,): [-9.0, -0.1, -3.0]}

    class Step:
        prefixes = ((),)

        def __call__(self, length, parents, tokens):
            if tokens is not None:
                pairs = zip(parents[0].tolist(), tokens[0].tolist(), strict=True)
                self.prefixes = [(*self.prefixes[parent], token) for parent, token in pairs]
            table = torch.tensor([[rows.get(tuple(prefix), [-9.0] * 3) for prefix in self.prefixes]])
            return table, torch.arange(3).expand(table.shape)

    texts, scores = search_texts(Step(), 1, 2, 1, 2)
    assert texts.tolist() == [[[2, 1], [1, 1]]]
    assert scores.tolist() == [pytest.approx([-0.35, -0.9])]
    texts, scores = search_texts(Step(), 1, 2, 1, 1)  # "1" is not the best candidate of its step, so it does not end
    assert texts.tolist() == [[[2, 1]]] and scores.item() == pytest.approx(-0.35)
    rows[(2,)] = [-9.0, -0.4, -3.0]
    texts, scores = search_texts(Step(), 1, 2, 1, 2)
    assert texts.tolist() == [[[2, 1], [1, 1]]] and scores.tolist() == [pytest.approx([-0.5, -0.9])]
    texts, scores = search_texts(Step(), 1, 2, 1, 2, length_penalty=0)
    assert texts.tolist() == [[[1, 1], [2, 1]]] and scores.tolist() == [pytest.approx([-0.9, -1.0])]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_texts_of_transformers(seed, penalty):
    """Its `generate` expands each prompt into beams and reorders a cache; here the beams share the prompt."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=12, **sizes, initializer_range=0.6)).eval()
    prompts, lengths = torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0]]), torch.tensor([4, 2])
    step = TreeStep(model, None, encode(model, prompts, lengths))
    width, longest = 3, 8
    texts, scores = search_texts(
        lambda _, parents, tokens: step.likeliest_tokens(parents, tokens, 2 * width),
        *(END, longest, 2, width),
        length_penalty=penalty,
    )
    options = {
        "length_penalty": penalty,
        "num_beams": width,
        "num_return_sequences": width,
        "max_new_tokens": longest,
        "do_sample": False,
    }
    config = GenerationConfig(**options, bos_token_id=2, eos_token_id=END, pad_token_id=END)
    for user, length in enumerate(lengths.tolist()):
        out = model.generate(
            prompts[user : user + 1, :length],
            generation_config=config,
            return_dict_in_generate=True,
            output_scores=True,
        )
        expected = torch.nn.functional.pad(
            out.sequences[:, length:], (0, length + longest - out.sequences.shape[1]), value=END
        )
        assert texts[user].tolist() == expected.tolist()
        np.testing.assert_allclose(scores[user], out.sequences_scores, atol=1e-5)
