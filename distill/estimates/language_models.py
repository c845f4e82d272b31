"""Sizes of LLaMA-type teachers, and the arithmetic of training them: parameters, FLOPs, bytes.

Sources: 6·N FLOPs a trained token, 2 of them forward (Kaplan et al., 2020, appendix B); states of AdamW under ZeRO
(Rajbhandari et al., 2020); adapters (Hu et al., 2022); NF4 (Dettmers et al., 2023); the sizes in `MODELS` are those of
the models' published config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.runtime.config import suggest
from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object

HALF, SINGLE = 2, 4  # bytes of a bf16 and of a float32 number
NF4 = 0.5 + 1 / 64 + 4 / 64 / 256  # bytes a weight in 4 bits, with both levels of scales
KEPT = 53.5  # bytes that autograd keeps for a token, layer and unit of width: counted by `bench.py large`
STATES = ("weights", "gradients", "optimiser")


@dataclass(frozen=True)
class LanguageModel:
    """Sizes of a LLaMA-type network.

    Attributes:
        vocabulary: rows of the input table, without codewords.
        width: hidden size.
        feed_forward: intermediate size.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads.
        tied: whether the output head is the input table.
    """

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool = False

    @property
    def kv_width(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.kv_heads * (self.width // self.heads)

    @property
    def layer_products(self) -> int:
        """Parameters of the matrix products of all layers, which every token passes."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_width
        return self.layers * (attention + 3 * self.width * self.feed_forward)

    def parameters(self, codewords: int = 0) -> int:
        """Count all parameters.

        Args:
            codewords: rows that are added to the vocabulary's tables.
        """
        tables = (1 if self.tied else 2) * (self.vocabulary + codewords) * self.width
        return tables + self.layer_products + (2 * self.layers + 1) * self.width

    def in_products(self, codewords: int = 0) -> int:
        """Count the parameters of matrix products and norms: all but an input table that is not also the head."""
        return self.parameters(codewords) - (0 if self.tied else (self.vocabulary + codewords) * self.width)

    def adapters(self, rank: int) -> int:
        """Count LoRA's parameters on all seven linear maps of a layer."""
        attention = 2 * (self.width + self.width) + 2 * (self.width + self.kv_width)
        return self.layers * rank * (attention + 3 * (self.width + self.feed_forward))

    def codeword_rows(self, codewords: int) -> int:
        """Count the trained parameters of the codewords' rows."""
        return (1 if self.tied else 2) * codewords * self.width

    def kv_bytes(self) -> int:
        """Bytes of a token's keys and values in half precision."""
        return 2 * self.layers * self.kv_width * HALF


MODELS = {
    "smollm2-135m": LanguageModel(49152, 576, 1536, 30, 9, 3, tied=True),
    "llama-7b": LanguageModel(32000, 4096, 11008, 32, 32, 32),
    "llama-13b": LanguageModel(32000, 5120, 13824, 40, 40, 40),
    "llama-3-8b": LanguageModel(128256, 4096, 14336, 32, 32, 8),
    "llama-70b": LanguageModel(32000, 8192, 28672, 80, 64, 8),  # Llama 2
}

CONFIG_FIELDS = {
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
}


def language_model(name: str) -> LanguageModel:
    """Look up a model by name, or read its sizes from a config.json of Hugging Face.

    Raises:
        UserError: unknown name; a file that is missing or damaged.
    """
    if name in MODELS:
        return MODELS[name]
    if not name.endswith(".json"):
        raise UserError(f"Unknown teacher {name!r}. {suggest(name, list(MODELS))} Or give the path of a config.json.")
    values = read_object(Path(name), CONFIG_FIELDS, "Expected the config.json of a LLaMA-type model.")
    sizes = [values[field] for field in CONFIG_FIELDS]
    kv_heads = values.get("num_key_value_heads", sizes[-1])
    if not isinstance(kv_heads, int) or min(*sizes, kv_heads) < 1:
        raise UserError(f"{name}: expected sizes of at least 1, got {sizes} and {kv_heads!r} key and value heads.")
    vocabulary, width, feed_forward, layers, heads = sizes
    tied = bool(values.get("tie_word_embeddings", False))
    return LanguageModel(vocabulary, width, feed_forward, layers, heads, kv_heads, tied)


def training_state(
    parameters: float, trainable: float, trainable_tensors: int, stage: int, gpus: int, half: bool
) -> dict[str, float]:
    """Count the bytes a GPU for weights, gradients and AdamW's state under a ZeRO stage (0: DDP).

    Args:
        parameters: all parameters.
        trainable: those that train.
        trainable_tensors: tensors that train; each has a step counter.
        stage: 1 divides the optimiser by the GPUs, 2 the gradients too, 3 the weights too.
        gpus: how many share.
        half: DeepSpeed's half precision, which keeps a float32 copy of trained weights.
    """
    weights, gradients = parameters * (HALF if half else SINGLE), trainable * (HALF if half else SINGLE)
    # AdamW: two moments, one step counter a tensor; DeepSpeed's half precision also a fp32 copy
    optimiser = trainable * (12 if half else 8) + 4 * trainable_tensors
    return {
        "weights": weights / (gpus if stage >= 3 else 1),
        "gradients": gradients / (gpus if stage >= 2 else 1),
        "optimiser": optimiser / (gpus if stage >= 1 else 1),
    }


def training_flops(in_products: int, adapters: int, trained_head: int, full: bool, checkpointing: bool) -> int:
    """Count the FLOPs of one token's training, without attention scores.

    Args:
        in_products: N, parameters of matrix products.
        adapters: A, LoRA's parameters.
        trained_head: H, parameters of an output head that trains as a whole beside adapters.
        full: 6·N; else 4·N for forward and the activations' gradients, 6·A, and 2·H for the head's gradient.
        checkpointing: the forward pass is repeated, 2·(N + A) more.
    """
    recomputed = 2 * (in_products + adapters) if checkpointing else 0
    return (6 * in_products if full else 4 * in_products + 6 * adapters + 2 * trained_head) + recomputed


def activation_bytes(model: LanguageModel, tokens: int, checkpointing: bool) -> float:
    """Count the bytes of the activations of a batch, without logits.

    With checkpointing each layer's input in half precision, and everything of one layer at a time.
    """
    everything = KEPT * model.width * tokens
    return HALF * model.width * tokens * model.layers + everything if checkpointing else everything * model.layers
