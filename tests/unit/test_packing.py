"""Packed samples train a network as padded ones do, whatever its architecture."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from teacher.batching import collate, make_batches
from teacher.samples import Sample, Samples

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50,
}  # fmt: skip
KINDS = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 5},  # some samples are longer
}


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 13, 40)
    return Samples.of([Sample(rng.integers(1, 50, n), (rng.random(n) < 0.6) & (np.arange(n) > 0)) for n in lengths])


def network(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.split("-")[0], **SIZES, **KINDS[kind], initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config)


def summed(model, samples, packing, checkpointing=False):
    """Sum of the losses of all counted tokens, its gradients, and how many forward passes it took."""
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train().zero_grad()
    total, groups = 0.0, make_batches(samples, 40, np.random.default_rng(0), packing)
    assert any(len(row) > 1 for group in groups for row in group) == packing
    for group in groups:
        inputs = {name: torch.from_numpy(array) for name, array in collate(samples, group, 0).items()}
        loss = model(**inputs, use_cache=False).loss * int((inputs["labels"] >= 0).sum())
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad for name, parameter in model.named_parameters()}, len(groups)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_padded_losses_and_gradients(samples, kind, checkpointing):
    loss, gradients, n_padded = summed(network(kind), samples, False)
    packed_loss, packed_gradients, n_packed = summed(network(kind), samples, True, checkpointing)
    assert n_packed <= n_padded
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        assert scale > 0
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=0, atol=1e-5 * float(scale), msg=name)


def test_a_packed_sample_sees_its_own_only(samples):
    """Other neighbours in the row, the same logits; without the positions they would differ."""
    model = network("llama").eval()
    inputs = collate(samples, [[3, 7, 5]], 0)
    tokens, positions = (torch.from_numpy(inputs[name]) for name in ("input_ids", "position_ids"))
    start = int(samples.lengths[3])
    changed = tokens.clone()
    changed[:, :start] = 1 + tokens[:, :start] % 49
    with torch.no_grad():
        before, after = (model(input_ids=t, position_ids=positions, use_cache=False).logits for t in (tokens, changed))
        torch.testing.assert_close(after[:, start:], before[:, start:], rtol=0, atol=1e-6)
        seen = model(input_ids=changed, use_cache=False).logits
    assert (seen[:, start:] - before[:, start:]).abs().max() > 0.01
