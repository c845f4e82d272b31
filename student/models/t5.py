"""Convert the `seq2seq` network to Hugging Face's T5, to compare them; needs transformers."""

from __future__ import annotations

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from student.models.seq2seq import Seq2Seq, Seq2SeqConfig

SIZES = {  # Seq2SeqConfig's field -> T5Config's
    "d_model": "d_model",
    "d_ff": "d_ff",
    "heads": "num_heads",
    "d_head": "d_kv",
    "encoder_layers": "num_layers",
    "decoder_layers": "num_decoder_layers",
    "dropout": "dropout_rate",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
}


def to_t5(model: Seq2Seq) -> T5ForConditionalGeneration:
    """Build a T5 with the same weights and logits.

    Vocabulary: 0 is the pad token and opens the decoder, then level after level of codewords. Row 0 of T5's head, which
    the student lacks, is zero.

    Raises:
        ValueError: the table of recencies is not zero, or texts are read; T5 has neither.
    """
    if model.text is not None:
        raise ValueError("The student reads texts of the items, and T5 has no such input.")
    if model.recency.weight.abs().max() > 0:
        raise ValueError("The student's table of recencies is not zero, and T5 has none: its logits would differ.")
    c = model.config
    config = T5Config(
        vocab_size=1 + c.levels * c.codebook_size,
        **{t5_name: getattr(c, name) for name, t5_name in SIZES.items()},
        feed_forward_proj="relu",
        tie_word_embeddings=False,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    t5 = T5ForConditionalGeneration(config).eval()
    t5.lm_head.weight = nn.Parameter(torch.empty_like(t5.lm_head.weight))  # some versions tie it regardless
    student_weights = model.state_dict()
    weights = {t5_name: student_weights[name] for t5_name, name in _weight_names(c).items()}
    for name in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        weights[name] = weights[name] * model.input_scale
    head = model.output_table()
    weights["lm_head.weight"] = torch.cat([head.new_zeros(1, c.d_model), head.flatten(0, 1)])
    t5.load_state_dict(weights)  # strict: every weight of T5 is one of the student's
    return t5


def _weight_names(c: Seq2SeqConfig) -> dict[str, str]:
    """T5's names of all weights but the head -> the student's."""
    names = {"shared.weight": "embedding.weight"}
    for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
        names[f"{side}.embed_tokens.weight"] = "embedding.weight"
        names[f"{side}.final_layer_norm.weight"] = f"{side}_norm.weight"
        names[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = f"{side}_bias.weight"
        attentions = [("SelfAttention", "attention"), ("EncDecAttention", "cross")][: 1 + (side == "decoder")]
        for n in range(layers):
            for place, (t5_name, name) in enumerate(attentions):
                block = f"{side}.block.{n}.layer.{place}"
                names[f"{block}.layer_norm.weight"] = f"{side}.{n}.norm{place + 1}.weight"
                names |= {f"{block}.{t5_name}.{part}.weight": f"{side}.{n}.{name}.{part}.weight" for part in "qkvo"}
            last = f"{side}.block.{n}.layer.{len(attentions)}"
            names[f"{last}.layer_norm.weight"] = f"{side}.{n}.norm{len(attentions) + 1}.weight"
            names |= {f"{last}.DenseReluDense.{part}.weight": f"{side}.{n}.ff.{part}.weight" for part in ("wi", "wo")}
    return names
