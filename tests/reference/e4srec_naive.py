"""Slow, readable version of student/models/item_models/e4srec.py: one history, one item after the other."""

import torch


def scores(history, vectors, reader, head, language_model):
    """Log-probabilities of all items after a history of item numbers [n_items].

    Each item's frozen vector is projected to an input of the language model; the last state of its last layer meets a
    row of the head for each item.
    """
    inputs = torch.stack([reader @ vectors[item] for item in history])
    state = language_model(inputs_embeds=inputs[None], output_hidden_states=True).hidden_states[-1][0, -1]
    logits = torch.stack([row @ state for row in head])
    return logits - logits.exp().sum().log()
