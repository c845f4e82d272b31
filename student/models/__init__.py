"""The students' networks by name."""

from student.models import causal, seq2seq

BACKBONES = {
    "seq2seq": (seq2seq.Seq2Seq, seq2seq.Seq2SeqConfig, seq2seq.PRESETS),
    "causal": (causal.Causal, causal.CausalConfig, causal.PRESETS),
}
