"""What the teacher is tuned on: LC-Rec's six tasks as token sequences, and `stream`, ours.

A sample is the token numbers of one sequence and, for each token, whether the loss counts it: the response only, or,
for `stream`, every codeword of the user's running sequence. One forward pass over a stream trains every prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill.data.dataset import PAD, Dataset
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from teacher import templates, user_intents

if TYPE_CHECKING:
    from teacher.finetune import Config

CONTENT = "CONTENT"  # stands for the prompt while a chat template is taken apart
Answer = int | str  # an item, or a text


@dataclass(frozen=True)
class Sample:
    """One training sequence: token numbers, and which of them the loss counts; both [length]."""

    tokens: np.ndarray
    counted: np.ndarray


class Samples:
    """Many samples in three flat arrays: all epochs of a large data set fit into memory.

    Attributes:
        lengths: tokens of each sample [n].
    """

    def __init__(self, samples: list[Sample]):
        self.lengths = np.array([len(sample.tokens) for sample in samples], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.tokens = np.concatenate([np.zeros(0, np.int32), *(s.tokens.astype(np.int32) for s in samples)])
        self.counted = np.concatenate([np.zeros(0, bool), *(sample.counted for sample in samples)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Sample:
        part = slice(self.ends[row] - self.lengths[row], self.ends[row])
        return Sample(self.tokens[part], self.counted[part])


class TaskData:
    """Draws samples of every task; what is drawn depends on (seed, epoch, task, sample) alone, not on who draws.

    Args:
        dataset: items and sequences.
        ids: the items' semantic IDs.
        tokenizer: knows the codewords.
        max_history: items of history.
        max_tokens: longest prompt with its response.
        crop: share of the streams that begin at a random item.
        reverse: share of the streams that run backwards.
        drop: share of the streams' items that are left out.
        intentions_file: intentions and preferences in LC-Rec's form; None: derived from the items' texts.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: SemanticIDs,
        tokenizer,
        max_history: int,
        max_tokens: int,
        crop: float = 0.0,
        reverse: float = 0.0,
        drop: float = 0.0,
        intentions_file: Path | None = None,
    ):
        self.dataset, self.ids, self.tokenizer = dataset, ids, tokenizer
        self.crop, self.reverse, self.drop = crop, reverse, drop
        self.max_history, self.max_tokens, self.intentions_file = max_history, max_tokens, intentions_file
        first = np.array(tokenizer.convert_tokens_to_ids(ids.tokens()))
        self.token_of = first.reshape(ids.levels, ids.codebook_size)
        self.item_tokens = np.take_along_axis(self.token_of.T, ids.codes, axis=0)  # [n_items, levels]
        self.texts = dataset.texts()
        self.titles = dataset.items["title"].to_pylist()
        self.descriptions = dataset.items["description"].to_pylist()
        self.with_text = [item for item, text in enumerate(self.texts) if text]
        self.values, self.offsets = dataset.training_sequences()
        self.examples = dataset.examples("train", max_history)
        self.head, self.tail = self._frame()

    @staticmethod
    def of(config: Config, dataset: Dataset, ids: SemanticIDs, tokenizer) -> TaskData:
        """The tasks' data as a config asks for it; under cross-fitting without the users of its fold."""
        if config.folds:
            dataset = dataset.without_fold(config.folds, config.fold)
        augmented = config.crop, config.reverse, config.drop_items
        return TaskData(dataset, ids, tokenizer, config.max_history, config.max_tokens, *augmented, config.intentions)

    @cached_property
    def fusion_rows(self) -> np.ndarray:
        """Training examples whose target has a text."""
        return np.flatnonzero(np.array([bool(text) for text in self.texts])[self.examples.targets])

    @cached_property
    def wishes(self) -> tuple[list[user_intents.Intention], list[user_intents.Preference]]:
        """What `itemsearch` and `preferenceobtain` are about."""
        if self.intentions_file:
            where = (self.dataset, self.values, self.offsets, self.max_history)
            return user_intents.read_intentions(self.intentions_file, *where)
        words = user_intents.ItemWords(self.dataset)
        searches = user_intents.derived_intentions(words, self.examples.histories, self.examples.targets)
        return searches, user_intents.derived_preferences(words, self.values, self.offsets, self.max_history)

    def sizes(self) -> dict[str, int]:
        """Samples of each task in one full pass."""
        windows = -(-np.diff(self.offsets) // self.max_history)
        return {"stream": int(windows.sum())} | {name: size(self) for name, (size, _) in INSTRUCTIONS.items()}

    def epoch(self, weights: dict[str, float], seed: int, epoch: int) -> Samples:
        """One epoch's samples; a weight is the share (or multiple) of a task's full pass.

        Args:
            weights: by task name.
            seed: of the run.
            epoch: templates and subsets change with it.

        Raises:
            UserError: a task has nothing to be tuned on, or a stream does not fit `max_tokens`.
        """
        samples: list[Sample] = []
        for number, task in enumerate(TASKS):
            weight = weights.get(task, 0.0)
            if weight > 0:
                rng = np.random.default_rng([seed, epoch, number])
                if task == "stream":
                    samples += _stream(self, weight, rng)
                    continue
                size, make = INSTRUCTIONS[task]
                n = size(self)
                if n == 0:
                    raise UserError(
                        f"The task {task!r} needs texts, and {self.intentions_file or self.dataset.artifact.folder} "
                        f"has none for it. Leave tasks.{task} out, or give the data set titles and categories."
                    )
                rows = _subset(list(range(n)), weight, rng)
                # row i of this table belongs to sample i, whatever else is drawn and by whom
                draws = np.random.default_rng([seed, epoch, number, 1]).random((len(rows) // n * n + n, 3))
                passes = np.arange(len(rows)) // n
                asked = [make(self, row, draws[turn * n + row]) for row, turn in zip(rows, passes, strict=True)]
                samples += self.ask(asked)
        return Samples(samples)

    def ask(self, asked: list[tuple[str, Answer]]) -> list[Sample]:
        """Prompts and their responses, the prompts cut so that both fit `max_tokens`; texts end with EOS."""
        if not asked:
            return []
        texts = [answer for _, answer in asked if isinstance(answer, str)]
        encoded = iter(self.encode(texts)) if texts else iter(())
        samples = []
        for words, (_, answer) in zip(self.encode([prompt for prompt, _ in asked]), asked, strict=True):
            if isinstance(answer, str):
                response = np.array([*next(encoded)[: self.max_tokens // 2], self.tokenizer.eos_token_id])
            else:
                response = self.item_tokens[answer]
            question = np.array(self.question(words, len(response)), dtype=np.int64)
            counted = np.concatenate([np.zeros(len(question), bool), np.ones(len(response), bool)])
            samples.append(Sample(np.concatenate([question, response]), counted))
        return samples

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token numbers of each text, without special tokens."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def history_text(self, history: np.ndarray) -> str:
        """IDs of the items of a padded history, separated by commas."""
        return ", ".join(self.ids.text(item) for item in history if item != PAD)

    def history_titles(self, history: np.ndarray) -> str:
        """Titles of the items of a padded history, separated by semicolons; IDs where there is no title."""
        return "; ".join(self.titles[item] or self.ids.text(item) for item in history if item != PAD)

    def seqrec_prompt(self, history: np.ndarray) -> list[int]:
        """The prompt that `seqrec` teachers are asked with, as token numbers: always the first template."""
        prompt = templates.SEQREC[0].format(history=self.history_text(history))
        return self.question(self.encode([prompt])[0], self.ids.levels)

    def question(self, words: list[int], room: int) -> list[int]:
        """A prompt from its token numbers, their beginning cut away where `room` more would not fit `max_tokens`.

        What frames it stays: BOS, or what the chat template puts around a user's words.
        """
        fit = max(self.max_tokens - room - len(self.head) - len(self.tail), 0)
        return [*self.head, *words[max(len(words) - fit, 0) :], *self.tail]

    def _frame(self) -> tuple[list[int], list[int]]:
        """Token numbers before and after a prompt: BOS alone, or the chat template's (`models.use_chat_template`)."""
        if not self.tokenizer.init_kwargs.get("chat_prompts"):
            return [self.tokenizer.bos_token_id], []
        chat = [{"role": "user", "content": CONTENT}]
        framed = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        head, found, tail = framed.partition(CONTENT)
        if not found:
            raise UserError("The tokenizer's chat template leaves the user's words out; run with --chat false.")
        return tuple(self.encode([text])[0] if text else [] for text in (head, tail))


def _stream(data: TaskData, weight: float, rng: np.random.Generator) -> list[Sample]:
    items = min(data.max_history + 1, int(np.diff(data.offsets).max(initial=0)))
    if 1 + items * data.ids.levels > data.max_tokens:
        raise UserError(
            f"A stream of {items} items takes {1 + items * data.ids.levels} tokens, --max_tokens is "
            f"{data.max_tokens}; raise it or lower --max_history."
        )
    samples = []
    for start, end in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        if data.crop and rng.random() < data.crop:  # begin anywhere that leaves two items
            start += rng.integers(max(end - start - 1, 1))
        sequence = data.values[start:end]
        if data.reverse and rng.random() < data.reverse:
            sequence = sequence[::-1]
        if data.drop:
            kept = rng.random(len(sequence)) >= data.drop
            sequence = sequence[kept] if kept.sum() > 1 else sequence
        for first in range(0, len(sequence), data.max_history):
            items = sequence[first : first + data.max_history + 1]  # windows share one item
            if first > 0 and len(items) < 2:
                continue
            tokens = np.append(data.tokenizer.bos_token_id, data.item_tokens[items])
            counted = np.ones(len(tokens), bool)
            counted[0] = False
            if first > 0:
                counted[1 : 1 + data.ids.levels] = False  # the window before has trained this item, with its history
            samples.append(Sample(tokens, counted))
    return _subset(samples, weight, rng)


def _seqrec(data: TaskData, row: int, draw: np.ndarray) -> tuple[str, Answer]:
    """IDs of the history → ID of the next item."""
    prompt = pick(templates.SEQREC, draw[0]).format(history=data.history_text(data.examples.histories[row]))
    return prompt, int(data.examples.targets[row])


def _item2index(data: TaskData, row: int, draw: np.ndarray) -> tuple[str, Answer]:
    """Text → ID."""
    item = data.with_text[row]
    return pick(templates.ITEM2INDEX, draw[0]).format(text=data.texts[item]), item


def _index2item(data: TaskData, row: int, draw: np.ndarray) -> tuple[str, Answer]:
    """ID → title, or all of the text where there is no title."""
    item = data.with_text[row]
    return pick(templates.INDEX2ITEM, draw[0]).format(item=data.ids.text(item)), data.titles[item] or data.texts[item]


def _fusionseqrec(data: TaskData, row: int, draw: np.ndarray) -> tuple[str, Answer]:
    """Half of the samples: IDs of the history → next title or description; the other half: titles → next ID."""
    example = data.fusion_rows[row]
    history, target = data.examples.histories[example], int(data.examples.targets[example])
    if draw[1] < 0.5:
        return pick(templates.FUSION_TO_ITEM, draw[0]).format(history=data.history_titles(history)), target
    title, description = data.titles[target] or data.texts[target], data.descriptions[target]
    field, answer = ("description", description) if description and draw[2] < 0.5 else ("title", title)
    return pick(templates.FUSION_TO_TEXT, draw[0]).format(history=data.history_text(history), field=field), answer


def _itemsearch(data: TaskData, row: int, draw: np.ndarray) -> tuple[str, Answer]:
    """What the user asks for, in half of the templates with the history → ID."""
    wish = data.wishes[0][row]
    history = data.history_text(wish.history)
    fitting = [template for template in templates.ITEMSEARCH if history or "{history}" not in template]
    return pick(fitting, draw[0]).format(query=pick(wish.queries, draw[1]), history=history), wish.item


def _preferenceobtain(data: TaskData, row: int, draw: np.ndarray) -> tuple[str, Answer]:
    """IDs of the history → what the user prefers, in words."""
    wish = data.wishes[1][row]
    prompt = pick(templates.PREFERENCEOBTAIN, draw[0]).format(history=data.history_text(wish.history))
    return prompt, pick(wish.texts, draw[1])


def pick(choices: list[str], draw: float) -> str:
    """The choice that a uniform number in [0, 1) falls on."""
    return choices[int(draw * len(choices))]


def _subset(rows: list, weight: float, rng: np.random.Generator) -> list:
    """`weight` passes over the rows: whole ones, and a random part for the fraction."""
    whole, part = int(weight), weight - int(weight)
    extra = rng.permutation(len(rows))[: round(part * len(rows))]
    return rows * whole + [rows[index] for index in extra]


# task -> (samples of a full pass, how one is made from its number and three uniform draws)
INSTRUCTIONS: dict[str, tuple[Callable[[TaskData], int], Callable[[TaskData, int, np.ndarray], tuple[str, Answer]]]] = {
    "seqrec": (lambda data: len(data.examples), _seqrec),
    "item2index": (lambda data: len(data.with_text), _item2index),
    "index2item": (lambda data: len(data.with_text), _index2item),
    "fusionseqrec": (lambda data: len(data.fusion_rows), _fusionseqrec),
    "itemsearch": (lambda data: len(data.wishes[0]), _itemsearch),
    "preferenceobtain": (lambda data: len(data.wishes[1]), _preferenceobtain),
}
TASKS = ("stream", *INSTRUCTIONS)  # the order numbers their random generators: append only


Batch = list[list[int]]  # rows of samples, by number: one a row, or several packed


def batches(samples: Samples, max_tokens: int, rng: np.random.Generator, packing: bool = False) -> list[Batch]:
    """Batches of at most `max_tokens` with their padding (but one row at least), in random order.

    Args:
        samples: of an epoch.
        max_tokens: rows times the longest row.
        rng: decides the order, and who goes with whom among samples of like lengths.
        packing: several samples a row; else one, batched with samples of like length.
    """
    if packing:
        longest = int(samples.lengths.max(initial=1))
        at_once = max(max_tokens // longest, 1)
        rows = pack(samples.lengths, max(max_tokens // at_once, longest), rng)
        rows = [rows[index] for index in rng.permutation(len(rows))]
        return [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    lengths = samples.lengths
    order = np.argsort(lengths + rng.random(len(lengths)), kind="stable")  # random among equals
    groups: list[Batch] = [[]]
    for row in order:
        if groups[-1] and (len(groups[-1]) + 1) * lengths[row] > max_tokens:
            groups.append([])
        groups[-1].append([int(row)])
    return [groups[index] for index in rng.permutation(len(groups))]


def pack(lengths: np.ndarray, space: int, rng: np.random.Generator) -> list[list[int]]:
    """Rows of at most `space` tokens, by best fit decreasing: each sample goes where it leaves least room.

    Little more than the longest sample is space enough: attention costs the square of a row where masks are dense.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(space + 1)]  # rows by what is free in them
    open_rooms = 0  # bit r: there are rows with r tokens free
    for sample in np.argsort(-(lengths + rng.random(len(lengths)))).tolist():  # random among equals
        length = int(lengths[sample])
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                open_rooms ^= 1 << room
            rows[row].append(sample)
        else:
            row, room = len(rows), space
            rows.append([sample])
        with_room[room - length].append(row)
        open_rooms |= 1 << (room - length)
    return rows


def padded_size(samples: Samples, batch: Batch) -> int:
    """Tokens of a batch, padding included: rows times the longest row."""
    return len(batch) * max(int(samples.lengths[row].sum()) for row in batch)


def collate(samples: Samples, batch: Batch, pad: int) -> dict[str, np.ndarray]:
    """The network's inputs: rows padded on the right, all [rows, length].

    Labels are −100 where the loss counts nothing. Where rows hold several samples, `position_ids` begin anew with each
    (and with the padding): transformers reads the boundaries from them and lets no sample see another, as long as it is
    given neither an attention mask nor a cache (`use_cache=False`).
    """
    shape = len(batch), max(int(samples.lengths[row].sum()) for row in batch)
    tokens, labels = np.full(shape, pad, dtype=np.int64), np.full(shape, -100, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for line, row in enumerate(batch):
        end = 0
        for sample in (samples[number] for number in row):
            part = slice(end, end := end + len(sample.tokens))
            tokens[line, part] = sample.tokens
            labels[line, part] = np.where(sample.counted, sample.tokens, -100)
            labels[line, part.start] = -100  # not for the sample before to predict
            positions[line, part] = np.arange(len(sample.tokens))
        positions[line, end:] = np.arange(shape[1] - end)
    inputs = {"input_ids": tokens, "labels": labels}
    return inputs | {"position_ids": positions} if any(len(row) > 1 for row in batch) else inputs
