"""LLaMA's slow tokenizer of transformers before 4.34, written from its definition."""

import re


def encode(text, sentencepiece, added):
    """Token numbers of a text, without BOS.

    Added tokens are split off first. Blanks on both sides of them are cut off. Every other piece is encoded alone, and
    sentencepiece puts a blank before each.

    Args:
        text: any.
        sentencepiece: the trained model.
        added: number of every added token.
    """
    pieces = re.split("(" + "|".join(map(re.escape, sorted(added))) + ")", text)
    numbers = []
    for place, piece in enumerate(pieces):
        if piece in added:
            numbers.append(added[piece])
            continue
        if place > 0:
            piece = piece.lstrip()
        if place < len(pieces) - 1:
            piece = piece.rstrip()
        if piece:
            numbers.extend(sentencepiece.encode(piece))
    return numbers
