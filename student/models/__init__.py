"""The students' networks by name."""

from student.models import causal, nested, seq2seq

BACKBONES = {  # name -> (network, its config, sizes by preset)
    "seq2seq": (seq2seq.Seq2Seq, seq2seq.Seq2SeqConfig, seq2seq.PRESETS),
    "causal": (causal.Causal, causal.CausalConfig, causal.PRESETS),
    "nested": (nested.Nested, nested.NestedConfig, nested.PRESETS),
}
BACKBONE_NAMES = (*BACKBONES, "large")


def network_of(backbone: str) -> tuple[type, type]:
    """Return network and config of a saved student's backbone; "large" needs transformers."""
    if backbone == "large":
        from student.models.large import Large, LargeConfig

        return Large, LargeConfig
    return BACKBONES[backbone][:2]
