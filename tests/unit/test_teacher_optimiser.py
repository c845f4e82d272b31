"""The teacher's optimiser: the codewords' rows may have a learning rate of their own."""

import pytest
import torch
from test_teacher_trainer import SIZES
from transformers import LlamaConfig, LlamaForCausalLM

from teacher.config import OptimiserSettings
from teacher.lora import add_lora
from teacher.optimiser import build_optimizer

CODEWORDS = [11, 12, 13, 14]


def network(tied: bool):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=15, tie_word_embeddings=tied, **SIZES)).eval()


def steps(model, settings: OptimiserSettings, n: int = 2) -> dict[str, torch.Tensor]:
    """What n optimiser steps on fixed gradients change, by parameter."""
    optimizer = build_optimizer(model, settings, CODEWORDS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    for step in range(n):
        for number, parameter in enumerate(trained.values()):
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return {name: p.detach() - before[name] for name, p in trained.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_codeword_rows_take_longer_steps(tied):
    """Without weight decay, AdamW's steps are proportional to the learning rate; all other rows move as before."""
    plain = steps(network(tied), OptimiserSettings(lr=1e-3, weight_decay=0))
    fast = steps(network(tied), OptimiserSettings(lr=1e-3, weight_decay=0, codeword_lr=5e-3))
    assert fast.keys() == plain.keys()
    tables = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    for name, change in plain.items():
        expected = change.clone()
        if name in tables:
            expected[CODEWORDS] *= 5
        assert torch.allclose(fast[name], expected, atol=1e-7), name


def test_the_rows_of_adapters():
    fast = OptimiserSettings(lr=1e-3, weight_decay=0, codeword_lr=5e-3)
    changes = [steps(add_lora(network(True), CODEWORDS, 2, 4, 0.0), settings)
               for settings in (OptimiserSettings(lr=1e-3, weight_decay=0), fast)]  # fmt: skip
    rows = [name for name in changes[0] if "trainable_tokens_delta" in name]
    assert len(rows) == 1
    for name, change in changes[0].items():
        assert torch.allclose(changes[1][name], change * (5 if name in rows else 1), atol=1e-7), name
