"""A student around any Hugging Face causal language model; import it only where transformers is installed."""

from student.models.large.loading import load
from student.models.large.lora import add_lora
from student.models.large.network import EncodedHistory, Large, LargeConfig

__all__ = ["EncodedHistory", "Large", "LargeConfig", "add_lora", "load"]
