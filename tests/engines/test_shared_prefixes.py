"""Searches behind prefixes of one encoded sequence, against a prompt for each prefix."""

import numpy as np
import pytest
import torch
from test_hf_engine import LEVELS, MAX_HISTORY, MAX_TOKENS, SIZE, SIZES, new_teacher, shop  # noqa: F401
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.data.dataset import PAD
from distill.labels.labeller import LabelRequest
from distill.teachers.language_model import EngineLabeller
from teacher.config import StreamSettings
from teacher.engines.hf import HFEngine
from teacher.engines.tree_step import codeword_log_probs
from teacher.model import output_logits
from teacher.tasks import TaskData

SEQUENCES = np.array([[3, 1, 3, 1, 5], [2, 6, PAD, PAD, PAD], [7, 8, 9, PAD, PAD]])  # ragged, with repeated items
USERS, PLACES = np.array([0, 0, 0, 0, 1, 2, 2]), np.array([1, 2, 3, 4, 1, 1, 2])


class PromptByPrompt(HFEngine):
    """The engine without shared prefixes."""

    shares_prefixes = False


def build(shop, network, titles, title_items=0):  # noqa: F811
    llama, tokenizer = new_teacher(shop)
    if network == "qwen2":
        torch.manual_seed(0)
        config = Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, **SIZES)
        llama = Qwen2ForCausalLM(config).eval()
    stream = StreamSettings(titles, title_items)
    return llama, TaskData(*shop, tokenizer, MAX_HISTORY, MAX_TOKENS, stream=stream)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("exclude_bought", [True, False])
@pytest.mark.parametrize("titles", [0, 9])
@pytest.mark.parametrize("network", ["llama", "qwen2"])
def test_prefixes_of_a_sequence_are_prompts(shop, network, titles, exclude_bought, constrained):  # noqa: F811
    engine = HFEngine(*build(shop, network, titles), "stream")
    assert engine.shares_prefixes
    asked = (5, exclude_bought, constrained)
    items, scores, log_probs = engine.label_streams(SEQUENCES, USERS, PLACES, *asked)
    histories = np.full((len(USERS), 4), PAD)
    for row, (user, place) in enumerate(zip(USERS, PLACES, strict=True)):
        histories[row, :place] = SEQUENCES[user, :place]
    expected_items, expected_scores = engine.beams(histories, *asked)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    expected = engine.codeword_logprobs(histories, SEQUENCES[USERS, PLACES])
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["level", "all"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_labels_equal_those_of_separate_prompts(shop, batch_size, scope):  # noqa: F811
    parts = build(shop, "llama", 9)
    examples = shop[0].examples("train", MAX_HISTORY)
    request, told = LabelRequest(width=6, keep=5, scope=scope), []
    engine, separate = HFEngine(*parts, "stream"), PromptByPrompt(*parts, "stream")
    labels = EngineLabeller(engine, shop[0], batch_size).label(examples, request, told.append)
    expected = EngineLabeller(separate, shop[0], batch_size).label(examples, request, lambda n: None)
    assert sum(told) == len(examples)
    assert engine.counters["tokens"] < separate.counters["tokens"]
    for name in ("candidates", "ranks", "invalid"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(expected, name))
    np.testing.assert_allclose(labels.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(labels.log_probs, expected.log_probs, atol=1e-5)


def test_where_prefixes_are_not_shared(shop):  # noqa: F811
    """Last titles move with the history; a sliding window drops keys that earlier prefixes need."""
    assert not HFEngine(*build(shop, "llama", 9, title_items=2), "stream").shares_prefixes
    assert not HFEngine(*build(shop, "llama", 0), "seqrec").shares_prefixes
    model, data = build(shop, "llama", 0)
    model.config.sliding_window = MAX_TOKENS - 1
    assert not HFEngine(model, data, "stream").shares_prefixes


def test_bfloat16_keeps_the_normalisation(shop):  # noqa: F811
    """Codewords' logits of about 30, which bfloat16 rounds by up to .06: the log-probabilities are right to .01."""
    model, data = build(shop, "llama", 0)
    model = model.to(torch.bfloat16)
    token_of = torch.from_numpy(data.token_of)
    torch.manual_seed(0)
    hidden = torch.randn(300, SIZES["hidden_size"]).to(torch.bfloat16)  # more rows than are multiplied at once
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[token_of.flatten()] = 4 * head.weight[token_of.flatten()]
        log_probs = codeword_log_probs(model, hidden, token_of)
        exact = (hidden.double() @ head.weight.double().T).log_softmax(-1)[:, token_of]
        rounded = output_logits(model, hidden).log_softmax(-1)[:, token_of]
    assert log_probs.shape == (300, LEVELS, SIZE) and log_probs.dtype == torch.float32
    error, rounded_error = ((values - exact).abs().max() for values in (log_probs, rounded))
    assert error < 0.01 < rounded_error
