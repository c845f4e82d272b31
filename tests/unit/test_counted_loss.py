"""The loss at counted positions, a chunk at a time, equals the loss from all logits: values and gradients."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from teacher.batching import collate, make_batches
from teacher.loss import ChunkedCrossEntropy, use_counted_loss
from teacher.model import output_logits
from teacher.samples import Sample, Samples

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50, "initializer_range": 0.3, "pad_token_id": None,
}  # fmt: skip
KINDS = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 1.5, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
}


def network(kind, seed=0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind.split("-")[0], **SIZES | KINDS[kind])
    return AutoModelForCausalLM.from_config(config).double().train()


def samples(weighted=False):
    rng = np.random.default_rng(1)
    drawn = []
    for length in rng.integers(2, 13, 12):
        counted = (rng.random(length) < 0.6) & (np.arange(length) > 0)
        counted[-1] = True
        weights = np.where(rng.random(length) < 0.5, np.float32(1), np.float32(0.3)) * counted
        drawn.append(Sample(rng.integers(1, 50, length), weights.astype(np.float32) if weighted else counted))
    return Samples.of(drawn)


def inputs_of(packing, weighted=False):
    rows = samples(weighted)
    batch = max(make_batches(rows, 60, np.random.default_rng(0), packing), key=len)
    return {name: torch.from_numpy(array) for name, array in collate(rows, batch, 0).items()}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def same(model, plain, counted):
    torch.testing.assert_close(counted, plain, rtol=1e-10, atol=0)
    expected, found = gradients(model, plain), gradients(model, counted)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loss_of_all_logits(kind, packing, monkeypatch):
    """Transformers casts logits to float32 before its loss; here they stay float64."""
    model, inputs = network(kind), inputs_of(packing)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    plain = model(**inputs, use_cache=False).loss
    use_counted_loss(model, chunk=7)
    out = model(**inputs, use_cache=False)
    assert out.logits is None
    same(model, plain, out.loss)


@pytest.mark.parametrize("tied", [False, True])
def test_under_lora(tied, monkeypatch):
    """Adapters and the trained rows of embeddings and head get the same gradients."""
    model, inputs = network("llama-tied" if tied else "llama"), inputs_of(False)
    tables = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.0, task_type="CAUSAL_LM", init_lora_weights=False,
        trainable_token_indices={name: list(range(30, 50)) for name in tables},
    )  # fmt: skip
    model = get_peft_model(model, config).double().train()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    plain = model(**inputs, use_cache=False).loss
    use_counted_loss(model, chunk=7)
    counted = model(**inputs, use_cache=False)
    assert counted.logits is None
    same(model, plain, counted.loss)


@pytest.mark.parametrize("packing", [False, True])
def test_weights_of_tokens(packing):
    """Against the weighted mean written out."""
    model, inputs = network("llama"), inputs_of(packing, weighted=True)
    weights = inputs.pop("loss_weights")
    labels = inputs["labels"][:, 1:]
    position_ids = {name: inputs[name] for name in inputs if name == "position_ids"}
    logits = model(input_ids=inputs["input_ids"], **position_ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    used = weights[:, 1:].double() * (labels >= 0)
    plain = (losses * used).sum() / used.sum()
    use_counted_loss(model, chunk=7)
    same(model, plain, model(**inputs, loss_weights=weights, use_cache=False).loss)


def test_with_bias_and_soft_cap():
    """Against the formula written out."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((9, 5), (11, 5), (11,))
    )
    labels, weights = torch.randint(11, (9,), generator=generator), torch.rand(9, generator=generator).double()
    logits = 0.8 * torch.tanh((hidden @ weight.T + bias) / 0.8)
    plain = (functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    chunked = ChunkedCrossEntropy.apply(hidden, weight, bias, labels, weights, 0.8, 4)
    torch.testing.assert_close(chunked, plain)
    pairs = zip(*(torch.autograd.grad(3 * loss, (hidden, weight, bias)) for loss in (chunked, plain)), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)


def test_logits_of_few_positions_exist_at_once():
    """No tensor of the pass has more rows of the vocabulary than a chunk."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() > 1 and 50 in out.shape:
                seen.append(out.numel() // 50)
            return out

    model, inputs = network("llama"), inputs_of(False)
    use_counted_loss(model, chunk=3)
    with Watch():
        model(**inputs, use_cache=False).loss.backward()
    assert inputs["labels"].ge(0).sum() == 20
    assert max(rows for rows in seen if rows != SIZES["hidden_size"]) == 3


def test_without_labels_the_forward_pass_is_the_models():
    model, inputs = network("gemma2"), inputs_of(False)
    use_counted_loss(model)
    logits = model(input_ids=inputs["input_ids"]).logits
    hidden = model.base_model(input_ids=inputs["input_ids"]).last_hidden_state
    torch.testing.assert_close(output_logits(model, hidden), logits.float())


def test_bf16_is_near_float32():
    model, inputs = network("llama").float(), inputs_of(False)
    use_counted_loss(model, chunk=7)
    plain = gradients(model, model(**inputs, use_cache=False).loss)
    loss = model(**inputs, use_cache=False).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half_loss = model(**inputs, use_cache=False).loss
    assert half_loss.dtype == torch.float32 and half_loss.item() == pytest.approx(loss.item(), rel=0.02)
    for name, gradient in gradients(model, half_loss).items():
        similarity = functional.cosine_similarity(gradient.flatten(), plain[name].flatten(), dim=0)
        assert gradient.dtype == torch.float32 and similarity > 0.99, name
