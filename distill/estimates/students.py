"""Arithmetic of the light students: parameters, and multiplications with weights for a target or a list.

The sizes are those of `student/models`; a test holds both equal. The counts are those of docs/results/speed.md,
"Students' training": on Instruments a target of `tiger-4m` costs `seq2seq` 58 M multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.runtime.config import suggest
from distill.runtime.errors import UserError

BACKBONES = ("seq2seq", "causal", "nested")
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "seq2seq": {
        "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "encoder_layers": 2, "decoder_layers": 2},
        "small": {"d_model": 128, "d_ff": 512, "heads": 4, "d_head": 32, "encoder_layers": 2, "decoder_layers": 2},
        "tiger-4m": {"d_model": 128, "d_ff": 1024, "heads": 6, "d_head": 64, "encoder_layers": 4, "decoder_layers": 4},
        "lohrec-13m": {"d_model": 384, "d_ff": 1024, "heads": 6, "d_head": 64, "encoder_layers": 4,
                       "decoder_layers": 3},
    },
    "causal": {
        "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "layers": 5},
        "small": {"d_model": 128, "d_ff": 512, "heads": 4, "d_head": 32, "layers": 5},
        "tiger-4m": {"d_model": 192, "d_ff": 1024, "heads": 6, "d_head": 64, "layers": 6},
        "lohrec-13m": {"d_model": 384, "d_ff": 1024, "heads": 6, "d_head": 64, "layers": 9},
    },
    "nested": {
        "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "outer": 4, "layers": 1},
        "small": {"d_model": 128, "d_ff": 512, "heads": 4, "d_head": 32, "outer": 4, "layers": 1},
        "tiger-4m": {"d_model": 192, "d_ff": 1024, "heads": 6, "d_head": 64, "outer": 5, "layers": 1},
        "lohrec-13m": {"d_model": 384, "d_ff": 1024, "heads": 6, "d_head": 64, "outer": 8, "layers": 1},
    },
}  # fmt: skip

# time of a training step against DISTILL's, measured: `bench.py train`, docs/results/speed.md
VARIANT_COST = {
    "tiger": {"seq2seq": 127 / 136, "causal": 421 / 429, "nested": 979 / 945},
    "distill": {"seq2seq": 1.0, "causal": 1.0, "nested": 1.0},
    "dwr": {"seq2seq": 2.5, "causal": 2.8, "nested": 1.7},
}


@dataclass(frozen=True)
class Student:
    """Sizes of a student.

    Attributes:
        backbone: a name of `BACKBONES`.
        sizes: of a preset.
        levels: codewords of an ID.
        codebook_size: codewords of a level.
    """

    backbone: str
    sizes: dict[str, int]
    levels: int
    codebook_size: int

    @property
    def attention(self) -> int:
        """Parameters of an attention: queries, keys, values, output."""
        return 4 * self.sizes["d_model"] * self.sizes["heads"] * self.sizes["d_head"]

    @property
    def feed_forward(self) -> int:
        """Parameters of a feed-forward layer."""
        return 2 * self.sizes["d_model"] * self.sizes["d_ff"]

    @property
    def tables(self) -> int:
        """Parameters of the codewords' rows, in the input and in the output."""
        return 2 * self.levels * self.codebook_size * self.sizes["d_model"]

    @property
    def head(self) -> int:
        """Multiplications of a token's logits over the codewords of its level."""
        return self.codebook_size * self.sizes["d_model"]

    def parameters(self) -> int:
        """Count the parameters of matrix products and tables; norms and position tables are left out."""
        layer, sizes = self.attention + self.feed_forward, self.sizes
        if self.backbone == "seq2seq":
            layers = sizes["encoder_layers"] * layer + sizes["decoder_layers"] * (layer + self.attention)
        else:
            layers = (sizes["layers"] + sizes.get("outer", 0)) * layer
        return layers + self.tables

    def history_products(self, items: float) -> float:
        """Count the multiplications that read a history of so many items."""
        layer, tokens = self.attention + self.feed_forward, items * self.levels
        if self.backbone == "seq2seq":  # the decoder's keys and values of the history too
            return tokens * (self.sizes["encoder_layers"] * layer + self.sizes["decoder_layers"] * self.attention / 2)
        if self.backbone == "causal":
            return tokens * self.sizes["layers"] * layer
        return items * self.sizes["outer"] * layer

    def token_products(self) -> int:
        """Count the multiplications of one codeword of the target, or of one beam's."""
        layer = self.attention + self.feed_forward
        if self.backbone == "seq2seq":  # of the second attention, keys and values belong to the history
            return self.sizes["decoder_layers"] * (layer + self.attention // 2) + self.head
        return self.sizes["layers"] * layer + self.head

    def target_products(self, history_items: float, items_a_target: float) -> float:
        """Count the multiplications of a training target's forward pass.

        Args:
            history_items: mean length of a history; `seq2seq` reads one a target.
            items_a_target: items of training sequences over their targets; `causal` and `nested` read a sequence once.
        """
        if self.backbone == "seq2seq":
            return self.history_products(history_items) + self.levels * self.token_products()
        if self.backbone == "causal":  # the sequence's codewords are the targets'
            return self.history_products(items_a_target) + self.levels * self.head
        return self.history_products(items_a_target) + self.levels * self.token_products()

    def list_products(self, history_items: float, beams: int) -> float:
        """Count the multiplications of one list: the history once, then the codewords of all beams."""
        start = 1 + beams * (self.levels - 1)
        return self.history_products(history_items) + start * self.token_products()


def student(backbone: str, preset: str, levels: int, codebook_size: int) -> Student:
    """Look up a student.

    Raises:
        UserError: unknown backbone or preset.
    """
    return Student(backbone, _choose(preset, _choose(backbone, PRESETS, "backbone"), "preset"), levels, codebook_size)


def variant_cost(variant: str, backbone: str) -> float:
    """Look up the time of a variant's training step against DISTILL's.

    Raises:
        UserError: unknown variant.
    """
    return _choose(variant, VARIANT_COST, "variant")[backbone]


def _choose(name: str, table: dict[str, Any], noun: str) -> Any:
    if name not in table:
        raise UserError(f"Unknown {noun} {name!r}. {suggest(name, list(table))}")
    return table[name]
