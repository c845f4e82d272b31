"""SETRec (EMNLP 2025): an item is a set of tokens without an order, generated at once."""

from student.models.setrec.network import SETRec, SETRecConfig

__all__ = ["SETRec", "SETRecConfig"]
