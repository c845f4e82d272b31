"""The training tasks as token sequences: LC-Rec's six, BIGRec's `titles`, and `stream`.

A sample is the token numbers of one sequence and, for each token, whether the loss counts it: the response only, or,
for `stream`, every codeword of the user's sequence. One forward pass over a stream trains every prefix. A weight of
titles in the loss (`title_loss`) makes "counted" a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.data.dataset import Dataset
from distill.data.examples import ragged_range
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from teacher import templates
from teacher.augmentation import augmented_sequences
from teacher.config import (
    TASKS,
    AugmentationSettings,
    InstructionSettings,
    SampleSettings,
    StreamSettings,
    TitleSettings,
)
from teacher.questions import INSTRUCTIONS, Question, Questions
from teacher.samples import Sample, Samples, Sizes, TaskDraw
from teacher.stream import StreamWriter
from teacher.tokenizer import codeword_tokens

PLACEHOLDER = "CONTENT"  # stands for the prompt while the text around it is read from a chat template


class Amount(NamedTuple):
    """How many samples of a task an epoch has: a number, or passes over all of them."""

    weight: float
    number: int | None = None


class TaskData:
    """Draws samples of every task. A draw depends on (seed, epoch, task, sample) alone, not on the process.

    Args:
        dataset: items and sequences.
        ids: the items' semantic IDs.
        tokenizer: knows the codewords.
        max_history: items of history.
        max_tokens: longest prompt with its response.
        augmentation: of the streams (`token_dropout` is applied to batches); None: nothing is changed.
        stream: the text in streams; None: codewords alone.
        forms: of the instruction tasks; None: the defaults.
        intentions_file: intentions and preferences in LC-Rec's form; None: derived from the items' texts.
        prompt_text: the text of the prompt "file" (`prompt_file.py`).
        title_settings: of the task `titles`; None: the defaults.

    Attributes:
        token_of: token number of every codeword [levels, codebook_size].
        gaps: which codewords the vocabulary lacks, bool [levels, codebook_size]; no item has them.
        item_tokens: token numbers of every item's ID [n_items, levels].
        writer: writes streams.
        questions: of the other tasks.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: SemanticIDs,
        tokenizer,
        max_history: int,
        max_tokens: int,
        augmentation: AugmentationSettings | None = None,
        intentions_file: Path | None = None,
        stream: StreamSettings | None = None,
        forms: InstructionSettings | None = None,
        prompt_text: str = "",
        title_settings: TitleSettings | None = None,
    ):
        self.dataset, self.ids, self.tokenizer = dataset, ids, tokenizer
        self.augmentation, self.stream = augmentation or AugmentationSettings(), stream or StreamSettings()
        self.forms, self.title_settings = forms or InstructionSettings(), title_settings or TitleSettings()
        self.max_history, self.max_tokens, self.prompt_text = max_history, max_tokens, prompt_text
        self.token_of, self.gaps = codeword_tokens(tokenizer, ids)
        self.item_tokens = np.take_along_axis(self.token_of.T, ids.codes, axis=0)
        self.writer = StreamWriter.build(self.stream, dataset, tokenizer, self.item_tokens)
        self.questions = Questions(
            dataset, ids, tokenizer, max_history, self.forms, self.title_settings, intentions_file
        )
        self.before_prompt, self.after_prompt = self._prompt_frame()

    @staticmethod
    def of(settings: SampleSettings, dataset: Dataset, ids: SemanticIDs, tokenizer) -> TaskData:
        """The data of a training; under cross-fitting without the users of its fold."""
        if settings.folds:
            dataset = dataset.without_fold(settings.folds, settings.fold)
        limits = settings.max_history, settings.max_tokens
        return TaskData(
            *(dataset, ids, tokenizer, *limits, settings, settings.intentions, settings, settings),
            title_settings=settings,
        )

    def sizes(self) -> dict[str, int]:
        """Samples of each task in one full pass."""
        windows = -(-self.dataset.training_lengths() // self.max_history)
        return {"stream": int(windows.sum())} | {name: size(self.questions) for name, (size, _) in INSTRUCTIONS.items()}

    def epoch(
        self,
        weights: dict[str, float],
        seed: int,
        epoch: int,
        numbers: dict[str, int] | None = None,
        learned: Sequence[Sizes | None] | None = None,
    ) -> Samples:
        """Draw one epoch's samples; a weight is the share (or multiple) of a task's full pass.

        Args:
            weights: by task name.
            seed: of the run.
            epoch: templates and subsets change with it.
            numbers: by task name; a task's number of samples, in place of its weight.
            learned: the attribute of the same samples, where they were drawn before.

        Raises:
            UserError: a task has no samples, or a stream does not fit `max_tokens`.
        """
        draws = []
        for position, task in enumerate(TASKS):
            amount = Amount(weights.get(task, 0.0), (numbers or {}).get(task))
            if amount.weight > 0 or amount.number:
                generator = [seed, epoch, position]
                draw_task = _draw_stream if task == "stream" else partial(_draw_instructions, task)
                draws.append(draw_task(self, amount, generator))
        return Samples(draws, learned)

    def to_samples(self, questions: list[Question]) -> list[Sample]:
        """Tokenise prompts and their responses, the prompts cut so that both fit `max_tokens`.

        Responses that are texts end with EOS, IDs only under `id_eos`.
        """
        if not questions:
            return []
        eos = self.tokenizer.eos_token_id
        texts = [answer for _, answer in questions if isinstance(answer, str)]
        encoded = iter(self.encode(texts)) if texts else iter(())
        samples = []
        for words, (_, answer) in zip(self.encode([prompt for prompt, _ in questions]), questions, strict=True):
            if isinstance(answer, str):
                response = np.array([*next(encoded)[: self.max_tokens // 2], eos])
            else:
                response = np.array([*self.item_tokens[answer], *([eos] if self.forms.id_eos else [])])
            prompt = np.array(self.framed(words, len(response)), dtype=np.int64)
            counted = np.concatenate([np.zeros(len(prompt), bool), np.ones(len(response), bool)])
            samples.append(Sample(np.concatenate([prompt, response]), counted))
        return samples

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token numbers of each text, without special tokens."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def seqrec_prompt(self, history: np.ndarray) -> list[int]:
        """Token numbers of the prompt that asks a `seqrec` teacher after training: always the first template."""
        prompt = templates.SEQREC[0].format(history=self.questions.history_text(history))
        return self.framed(self.encode([prompt])[0], self.ids.levels)

    def titles_prompt(self, history: np.ndarray) -> list[int]:
        """Token numbers of the prompt that asks a `titles` teacher after training: always the first template."""
        prompt = templates.TITLES[0].format(history=self.questions.item_titles.history_text(history))
        return self.framed(self.encode([prompt])[0], self.title_settings.title_tokens + 1)

    def framed(self, words: list[int], response_length: int) -> list[int]:
        """Put BOS, or the chat template's text, around a prompt's tokens.

        Where the response would not fit `max_tokens`, the beginning of the prompt is cut, never the text around it.
        """
        fit = max(self.max_tokens - response_length - len(self.before_prompt) - len(self.after_prompt), 0)
        return [*self.before_prompt, *words[max(len(words) - fit, 0) :], *self.after_prompt]

    def _prompt_frame(self) -> tuple[list[int], list[int]]:
        """Token numbers before and after a prompt: BOS alone, or the chat template's text (`use_chat_template`)."""
        if not self.tokenizer.init_kwargs.get("chat_prompts"):
            return [self.tokenizer.bos_token_id], []
        chat = [{"role": "user", "content": PLACEHOLDER}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        before, placeholder, after = text.partition(PLACEHOLDER)
        if not placeholder:
            raise UserError("The tokenizer's chat template leaves the user's words out; run with --chat false.")
        return tuple(self.encode([part])[0] if part else [] for part in (before, after))


def _draw_instructions(task: str, data: TaskData, amount: Amount, generator: list[int]) -> TaskDraw:
    """Draw the samples of an instruction task; `generator` seeds its random numbers."""
    size, make = INSTRUCTIONS[task]
    n = size(data.questions)
    if n == 0:
        raise UserError(
            f"The task {task!r} needs texts, and {data.questions.intentions_file or data.dataset.artifact.folder} "
            f"has none for it. Leave {task} out of the tasks, or give the data set titles and categories."
        )
    rows = _subset(n, amount, np.random.default_rng(generator))
    # row i of a pass's draws belongs to sample i, whatever else is drawn
    draws = np.random.default_rng([*generator, 1]).random((len(rows) // n * n + n, 3))

    def write(numbers: np.ndarray) -> list[Sample]:
        places = numbers // n * n + rows[numbers]
        pairs = zip(rows[numbers].tolist(), draws[places], strict=True)
        return data.to_samples([make(data.questions, row, draw) for row, draw in pairs])

    return TaskDraw(len(rows), write)


def _draw_stream(data: TaskData, amount: Amount, generator: list[int]) -> TaskDraw:
    """Draw users' training sequences in windows that share one item; `generator` seeds the random numbers."""
    title_loss, levels, width = data.stream.title_loss, data.ids.levels, data.max_history
    lengths = data.dataset.training_lengths()
    longest = min(width + 1, int(lengths.max(initial=0)))
    most_tokens = data.writer.longest(longest, title_loss > 0)
    if most_tokens > data.max_tokens:
        titles = " or --stream_titles" if data.stream.stream_titles else ""
        raise UserError(
            f"A stream of {longest} items takes {most_tokens} tokens, --max_tokens is "
            f"{data.max_tokens}; raise it or lower --max_history{titles}."
        )
    rng = np.random.default_rng(generator)
    values, first, lengths = augmented_sequences(data.dataset, lengths, data.augmentation, rng)
    # the windows begin `width` items apart; one of a single item that the window before has trained is left out
    user, place = ragged_range(np.where(lengths > 0, 1 + np.maximum((lengths - 2) // width, 0), 0))
    starts = first[user] + place * width
    ends = np.minimum(starts + width + 1, (first + lengths)[user])
    rows = _subset(len(starts), amount, rng)
    starts, ends, is_first = starts[rows], ends[rows], place[rows] == 0

    def write(number: int) -> Sample:
        stream = data.writer.sequence(values[starts[number] : ends[number]], last_title=title_loss > 0)
        counted = stream.codewords
        if title_loss:
            counted = np.where(counted, np.float32(1), np.float32(title_loss))
            counted[0] = 0
        if not is_first[number]:  # the window before has trained this item, with its history
            counted[: np.flatnonzero(stream.codewords)[levels]] = 0
        return Sample(stream.tokens, counted)

    n_items = ends - starts
    codewords = Sizes(1 + levels * n_items, levels * (n_items - ~is_first))  # BOS is not counted
    sizes = None if data.stream.stream_titles else codewords
    return TaskDraw(len(rows), lambda numbers: [write(number) for number in numbers.tolist()], sizes)


def _subset(n: int, amount: Amount, rng: np.random.Generator) -> np.ndarray:
    """As many passes over n rows as `amount` says: whole ones, and a random part for the fraction."""
    weight = amount.number / max(n, 1) if amount.number else amount.weight
    whole, part = int(weight), weight - int(weight)
    return np.concatenate([np.tile(np.arange(n), whole), rng.permutation(n)[: round(part * n)]])
