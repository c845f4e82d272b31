"""QLoRA on a tiny base: what trains, what stays, and that it goes on training after a validation."""

import sys

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM

from distill.runtime.errors import UserError
from teacher.base_model import extend_vocabulary
from teacher.config import Config
from teacher.lora import PROJECTIONS, load_quantised
from teacher.model import adapt

OLD, NEW = 40, 8
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


class Words:
    """In place of a tokenizer: as many tokens as there are rows."""

    def __len__(self):
        return OLD + NEW


def build(folder, kind, tied, **changes):
    """A base model in 4 bits with new rows and adapters."""
    config = AutoConfig.for_model(kind, **SIZES, vocab_size=OLD, tie_word_embeddings=tied, initializer_range=0.3)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    config = Config(mode="qlora", base=str(folder), precision="no", **changes)
    model = load_quantised(config.base, config.precision)
    extend_vocabulary(model, Words(), NEW)
    return adapt(model, config, list(range(OLD, OLD + NEW)))


def state(model):
    """All that the network is: parameters, packed weights and their scales, and the tables as they are used."""
    values = {name: value.detach().clone() for name, value in model.state_dict().items()}
    bare = model.get_base_model()
    with torch.no_grad():
        values["embeddings"] = bare.get_input_embeddings()(torch.arange(OLD + NEW)).clone()
    return values


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True), ("mistral", False)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_and_new_rows_train_and_nothing_else(tmp_path, kind, tied, checkpointing):
    model = build(tmp_path, kind, tied)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    packed = [part for part in model.modules() if isinstance(part, Linear4bit)]
    assert len(packed) == 2 * len(PROJECTIONS)
    assert {part.weight.quant_state.quant_type for part in packed} == {"nf4"}
    assert all(part.weight.quant_state.nested for part in packed)  # double quantisation
    assert not isinstance(model.get_base_model().get_output_embeddings(), Linear4bit)
    before = state(model)
    tokens = torch.randint(OLD, OLD + NEW, (4, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, ::3] = 7
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.02)
    losses = []
    for step in range(12):
        if step == 6:  # a validation: it must not repack what the training reads
            with torch.no_grad():
                model.eval()(input_ids=tokens)
        loss = model.train()(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, missing
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0] and losses[-1] < losses[6]
    after = state(model)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])} - {"embeddings"}
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in moved), moved
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained <= moved and len(trained) == 2 * 2 * len(PROJECTIONS) + (1 if tied else 2)
    rows = (after["embeddings"] != before["embeddings"]).any(1)
    assert not rows[:OLD].any() and rows[OLD:].all()


def test_the_base_but_for_its_rounding(tmp_path):
    """The base with its projections rounded to 4 bits has the same logits: the adapters start at nothing."""
    model = build(tmp_path, "llama", False).eval()
    base = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        for name, part in model.get_base_model().named_modules():
            if isinstance(part, Linear4bit):
                exact = base.get_submodule(name.removesuffix(".base_layer")).weight
                rounded = dequantize_4bit(part.weight, part.weight.quant_state)
                assert 0.01 < ((rounded - exact).norm() / exact.norm()) < 0.5  # few scales: rounded roughly
                exact.copy_(rounded)
        found, same = (m(input_ids=tokens).logits[..., :OLD] for m in (model, base))
    torch.testing.assert_close(found, same, rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_engines_that_shard(tmp_path, monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(UserError, match=f"does not run under {engine}"):
        load_quantised(str(tmp_path), "no")


def test_without_bitsandbytes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(UserError, match="pip install 'lohrec-distill"):
        load_quantised(str(tmp_path), "no")
