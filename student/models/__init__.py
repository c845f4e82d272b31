"""The students' networks by name."""

from student.models import causal, nested, seq2seq

BACKBONES = {
    "seq2seq": (seq2seq.Seq2Seq, seq2seq.Seq2SeqConfig, seq2seq.PRESETS),
    "causal": (causal.Causal, causal.CausalConfig, causal.PRESETS),
    "nested": (nested.Nested, nested.NestedConfig, nested.PRESETS),
}


def network_of(backbone: str) -> tuple[type, type]:
    """A saved student's network and its config; "large" needs transformers."""
    if backbone == "large":
        from student.models.large import Large, LargeConfig

        return Large, LargeConfig
    return BACKBONES[backbone][:2]
