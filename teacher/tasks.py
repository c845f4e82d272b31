"""What the teacher is tuned on: LC-Rec's tasks as token sequences, and `stream`, ours.

A sample is the token numbers of one sequence and, for each token, whether the loss counts it: the response only, or,
for `stream`, every codeword of the user's running sequence. One forward pass over a stream trains every prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill.catalog import Dataset
from distill.semantic_ids import SemanticIDs

SEQREC = [
    "The user bought these items, oldest first: {history}. What comes next? Answer: ",
    "Purchases in order of time: {history}. Predict the next item. Answer: ",
    "Here is a shopping history: {history}. Which item will be chosen now? Answer: ",
    "After {history}, the user will most likely buy: ",
]
ITEM2INDEX = [
    "Which item is described as follows? {text} Answer: ",
    "Item description: {text} Its identifier is: ",
    "{text} Name the item: ",
]
INDEX2ITEM = [
    "Describe the item {item}. Answer: ",
    "What is {item}? Answer: ",
    "The item {item} is called: ",
]


@dataclass(frozen=True)
class Sample:
    """One training sequence: token numbers, and which of them the loss counts; both [length]."""

    tokens: np.ndarray
    counted: np.ndarray


class TaskData:
    """Draws samples of every task; the draw depends on (seed, epoch) alone, not on who draws."""

    def __init__(
        self, dataset: Dataset, ids: SemanticIDs, tokenizer, max_history: int, max_tokens: int, crop: float = 0.0
    ):
        self.dataset, self.ids, self.tokenizer, self.crop = dataset, ids, tokenizer, crop
        self.max_history, self.max_tokens = max_history, max_tokens
        first = np.array(tokenizer.convert_tokens_to_ids(ids.tokens()))
        self.token_of = first.reshape(ids.levels, ids.codebook_size)
        self.item_tokens = np.take_along_axis(self.token_of.T, ids.codes, axis=0)  # [n_items, levels]
        self.texts = dataset.texts()
        self.titles = dataset.items["title"].to_pylist()
        self.values, self.offsets = dataset.training_sequences()
        self.examples = dataset.examples("train", max_history)

    def sizes(self) -> dict[str, int]:
        """Samples of each task in one full pass."""
        with_text = sum(bool(text) for text in self.texts)
        windows = -(-np.diff(self.offsets) // self.max_history)
        return {
            "stream": int(windows.sum()),
            "seqrec": len(self.examples),
            "item2index": with_text,
            "index2item": with_text,
        }

    def epoch(self, weights: dict[str, float], seed: int, epoch: int) -> list[Sample]:
        """One epoch's samples; a weight is the share (or multiple) of a task's full pass.

        Args:
            weights: by task name.
            seed: of the run.
            epoch: templates and subsets change with it.
        """
        samples: list[Sample] = []
        for number, (task, make) in enumerate(TASKS.items()):
            weight = weights.get(task, 0.0)
            if weight > 0:
                rng = np.random.default_rng([seed, epoch, number])
                samples += make(self, weight, rng)
        return samples

    def ask(self, prompt: str, response: np.ndarray) -> Sample:
        """A prompt and its response, the prompt cut so that both fit `max_tokens`."""
        question = np.array(self.question(prompt, len(response)), dtype=np.int64)
        counted = np.concatenate([np.zeros(len(question), bool), np.ones(len(response), bool)])
        return Sample(np.concatenate([question, response]), counted)

    def encode(self, text: str) -> list[int]:
        """Token numbers without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def history_text(self, history: np.ndarray) -> str:
        """IDs of the items of a padded history, separated by commas."""
        return ", ".join(self.ids.text(item) for item in history if item >= 0)

    def seqrec_prompt(self, history: np.ndarray, template: int = 0) -> list[int]:
        """The prompt that `seqrec` teachers are asked with, as token numbers."""
        return self.question(SEQREC[template].format(history=self.history_text(history)), self.ids.levels)

    def question(self, prompt: str, room: int) -> list[int]:
        """Token numbers of a prompt, its beginning cut away (but for BOS) where `room` more would not fit."""
        return [self.tokenizer.bos_token_id, *self.encode(prompt)[-(self.max_tokens - room - 1) :]]


def _stream(data: TaskData, weight: float, rng: np.random.Generator) -> list[Sample]:
    samples = []
    for start, end in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        if data.crop and rng.random() < data.crop:  # begin anywhere that leaves two items
            start += rng.integers(max(end - start - 1, 1))
        for first in range(start, end, data.max_history):
            items = data.values[first : min(first + data.max_history + 1, end)]  # windows share one item
            if first > start and len(items) < 2:
                continue
            tokens = np.append(data.tokenizer.bos_token_id, data.item_tokens[items])
            counted = np.ones(len(tokens), bool)
            counted[0] = False
            if first > start:
                counted[1 : 1 + data.ids.levels] = False  # the window before has trained this item, with its history
            samples.append(Sample(tokens, counted))
    return _subset(samples, weight, rng)


def _seqrec(data: TaskData, weight: float, rng: np.random.Generator) -> list[Sample]:
    rows = _subset(list(range(len(data.examples))), weight, rng)
    samples = []
    for row in rows:
        prompt = SEQREC[rng.integers(len(SEQREC))].format(history=data.history_text(data.examples.histories[row]))
        samples.append(data.ask(prompt, data.item_tokens[data.examples.targets[row]]))
    return samples


def _item2index(data: TaskData, weight: float, rng: np.random.Generator) -> list[Sample]:
    items = _subset([item for item, text in enumerate(data.texts) if text], weight, rng)
    return [
        data.ask(ITEM2INDEX[rng.integers(len(ITEM2INDEX))].format(text=data.texts[item]), data.item_tokens[item])
        for item in items
    ]


def _index2item(data: TaskData, weight: float, rng: np.random.Generator) -> list[Sample]:
    items = _subset([item for item, text in enumerate(data.texts) if text], weight, rng)
    samples = []
    for item in items:
        answer = data.encode(data.titles[item] or data.texts[item])[: data.max_tokens // 2]
        response = np.array([*answer, data.tokenizer.eos_token_id], dtype=np.int64)
        prompt = INDEX2ITEM[rng.integers(len(INDEX2ITEM))].format(item=data.ids.text(item))
        samples.append(data.ask(prompt, response))
    return samples


def _subset(rows: list, weight: float, rng: np.random.Generator) -> list:
    """`weight` passes over the rows: whole ones, and a random part for the fraction."""
    whole, part = int(weight), weight - int(weight)
    extra = rng.permutation(len(rows))[: round(part * len(rows))]
    return rows * whole + [rows[index] for index in extra]


TASKS: dict[str, Callable[[TaskData, float, np.random.Generator], list[Sample]]] = {
    "stream": _stream,
    "seqrec": _seqrec,
    "item2index": _item2index,
    "index2item": _index2item,
}


def batches(samples: list[Sample], max_tokens: int, rng: np.random.Generator) -> list[list[int]]:
    """Row numbers of batches of like lengths, each at most `max_tokens` with its padding, in random order."""
    lengths = np.array([len(sample.tokens) for sample in samples])
    order = np.argsort(lengths + rng.random(len(lengths)), kind="stable")  # random among equals
    groups: list[list[int]] = [[]]
    for row in order:
        if groups[-1] and (len(groups[-1]) + 1) * lengths[row] > max_tokens:
            groups.append([])
        groups[-1].append(int(row))
    return [groups[index] for index in rng.permutation(len(groups))]


def collate(samples: list[Sample], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens padded on the right, and labels with −100 where the loss counts nothing; both [batch, length]."""
    length = max(len(sample.tokens) for sample in samples)
    tokens = np.full((len(samples), length), pad, dtype=np.int64)
    labels = np.full((len(samples), length), -100, dtype=np.int64)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.tokens)] = sample.tokens
        labels[row, : len(sample.tokens)] = np.where(sample.counted, sample.tokens, -100)
    return tokens, labels
