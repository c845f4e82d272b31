"""What the instruction tasks ask and answer: LC-Rec's six tasks and BIGRec's `titles`, in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from distill.data.dataset import PAD, Dataset, Examples
from distill.semantic_ids.ids import SemanticIDs
from teacher import templates, user_intents
from teacher.config import InstructionSettings, TitleSettings
from teacher.titles import ItemTitles

Answer = int | str  # an item, or a text
Question = tuple[str, Answer]
T = TypeVar("T")


class Questions:
    """Writes the question of each sample of a task, and its answer.

    A task numbers the samples of one pass over its data; three uniform numbers choose template, fields and texts.

    Args:
        dataset: items and sequences.
        ids: the items' semantic IDs.
        tokenizer: cuts the titles of the task `titles`.
        max_history: items of history.
        forms: of the tasks.
        title_settings: of the task `titles`.
        intentions_file: intentions and preferences in LC-Rec's form; None: derived from the items' texts.

    Attributes:
        with_text: the items that have a text.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: SemanticIDs,
        tokenizer,
        max_history: int,
        forms: InstructionSettings,
        title_settings: TitleSettings,
        intentions_file: Path | None,
    ):
        self.dataset, self.ids, self.tokenizer, self.max_history = dataset, ids, tokenizer, max_history
        self.forms, self.title_settings, self.intentions_file = forms, title_settings, intentions_file
        self.texts = dataset.texts()
        self.titles = dataset.items["title"].to_pylist()
        self.descriptions = dataset.items["description"].to_pylist()
        self.with_text = [item for item, text in enumerate(self.texts) if text]

    @cached_property
    def training_sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """A copy of the training part: item numbers [n] and the start of each sequence [users + 1]."""
        return self.dataset.training_sequences()

    @cached_property
    def examples(self) -> Examples:
        """All training examples, which streams and engines do not need."""
        return self.dataset.examples("train", self.max_history)

    @cached_property
    def fusion_rows(self) -> np.ndarray:
        """Training examples whose target has a text."""
        return np.flatnonzero(np.array([bool(text) for text in self.texts])[self.examples.targets])

    @cached_property
    def item_titles(self) -> ItemTitles:
        """The items' texts in the task `titles`."""
        return ItemTitles(self.dataset, self.tokenizer, self.title_settings)

    @cached_property
    def title_rows(self) -> np.ndarray:
        """Training examples whose target has a text in the task `titles`."""
        return np.flatnonzero(np.array([bool(text) for text in self.item_titles.texts])[self.examples.targets])

    @cached_property
    def intents(self) -> tuple[list[user_intents.Intention], list[user_intents.Preference]]:
        """Intentions for `itemsearch` and preferences for `preferenceobtain`."""
        if self.intentions_file:
            where = (self.dataset, *self.training_sequences, self.max_history)
            return user_intents.read_intentions(self.intentions_file, *where)
        words = user_intents.ItemWords(self.dataset)
        examples, with_preferences = self.examples, self.forms.search_preferences
        intentions = user_intents.derived_intentions(words, examples.histories, examples.targets, with_preferences)
        return intentions, user_intents.derived_preferences(words, *self.training_sequences, self.max_history)

    def history_text(self, history: np.ndarray) -> str:
        """IDs of the items of a padded history, separated by commas."""
        return ", ".join(self.ids.text(item) for item in history if item != PAD)

    def history_titles(self, history: np.ndarray) -> str:
        """Titles of the items of a padded history, separated by semicolons; IDs where there is no title."""
        return "; ".join(self.titles[item] or self.ids.text(item) for item in history if item != PAD)

    def seqrec(self, row: int, draw: np.ndarray) -> Question:
        """IDs of the history → ID of the next item."""
        prompt = pick(templates.SEQREC, draw[0]).format(history=self.history_text(self.examples.histories[row]))
        return prompt, int(self.examples.targets[row])

    def item2index(self, row: int, draw: np.ndarray) -> Question:
        """Text → ID."""
        item = self.with_text[row]
        if self.forms.item_fields == "all":
            return pick(templates.ITEM2INDEX, draw[0]).format(text=self.texts[item]), item
        title, description = self._drawn_fields(item, draw[1])
        by_one = templates.ITEM2INDEX_TITLE if title else templates.ITEM2INDEX_DESCRIPTION
        lines = templates.ITEM2INDEX_BOTH if title and description else by_one
        return pick(lines, draw[0]).format(title=title, description=description), item

    def index2item(self, row: int, draw: np.ndarray) -> Question:
        """ID → title, or all of the text where there is none; under `item_fields: lcrec` also → description, → both."""
        item = self.with_text[row]
        code_text = self.ids.text(item)
        if self.forms.item_fields == "all":
            return pick(templates.INDEX2ITEM, draw[0]).format(item=code_text), self.titles[item] or self.texts[item]
        title, description = self._drawn_fields(item, draw[1])
        of_one = templates.INDEX2ITEM_TITLE if title else templates.INDEX2ITEM_DESCRIPTION
        lines = templates.INDEX2ITEM_BOTH if title and description else of_one
        return pick(lines, draw[0]).format(item=code_text), "\n\n".join(filter(None, (title, description)))

    def _drawn_fields(self, item: int, draw: float) -> tuple[str, str]:
        """Title and description of an item with text: by chance both, or one of them empty (LC-Rec).

        An item without a description always has its title alone, one without a title its description; one with
        neither has the rest of its text as its title.
        """
        title, description = self.titles[item] or "", self.descriptions[item] or ""
        if not (title and description):
            return (title or self.texts[item], "") if title or not description else ("", description)
        return pick([(title, ""), ("", description), (title, description)], draw)

    def fusionseqrec(self, row: int, draw: np.ndarray) -> Question:
        """Half of the samples: IDs of the history → next title or description; the other half: titles → next ID."""
        example = self.fusion_rows[row]
        history, target = self.examples.histories[example], int(self.examples.targets[example])
        if draw[1] < 0.5:
            return pick(templates.FUSION_TO_ITEM, draw[0]).format(history=self.history_titles(history)), target
        title, description = self.titles[target] or self.texts[target], self.descriptions[target]
        field, answer = ("description", description) if description and draw[2] < 0.5 else ("title", title)
        return pick(templates.FUSION_TO_TEXT, draw[0]).format(history=self.history_text(history), field=field), answer

    def itemsearch(self, row: int, draw: np.ndarray) -> Question:
        """Query, in half of the templates with history → ID; under `search_preferences` perhaps with preferences."""
        intent = self.intents[0][row]
        history = self.history_text(intent.history)
        fitting = [template for template in templates.ITEMSEARCH if history or "{history}" not in template]
        preference = ""
        if self.forms.search_preferences and history and intent.preferences:
            fitting, preference = fitting + templates.ITEMSEARCH_PREFERENCE, pick(intent.preferences, draw[2])
        parts = {"query": pick(intent.queries, draw[1]), "history": history, "preference": preference}
        return pick(fitting, draw[0]).format(**parts), intent.item

    def preferenceobtain(self, row: int, draw: np.ndarray) -> Question:
        """IDs of the history → preferences in words."""
        intent = self.intents[1][row]
        prompt = pick(templates.PREFERENCEOBTAIN, draw[0]).format(history=self.history_text(intent.history))
        return prompt, pick(intent.texts, draw[1])

    def next_title(self, row: int, draw: np.ndarray) -> Question:
        """Titles of the history → title of the next item."""
        example = self.title_rows[row]
        prompt = pick(templates.TITLES, draw[0]).format(
            history=self.item_titles.history_text(self.examples.histories[example])
        )
        return prompt, self.item_titles.texts[self.examples.targets[example]]


def pick(choices: list[T], draw: float) -> T:
    """The choice that a uniform number in [0, 1) falls on."""
    return choices[int(draw * len(choices))]


# task -> (samples of a full pass, function that makes one from its number and three uniform numbers)
INSTRUCTIONS: dict[str, tuple[Callable[[Questions], int], Callable[[Questions, int, np.ndarray], Question]]] = {
    "seqrec": (lambda questions: len(questions.examples), Questions.seqrec),
    "item2index": (lambda questions: len(questions.with_text), Questions.item2index),
    "index2item": (lambda questions: len(questions.with_text), Questions.index2item),
    "fusionseqrec": (lambda questions: len(questions.fusion_rows), Questions.fusionseqrec),
    "itemsearch": (lambda questions: len(questions.intents[0]), Questions.itemsearch),
    "preferenceobtain": (lambda questions: len(questions.intents[1]), Questions.preferenceobtain),
    "titles": (lambda questions: len(questions.title_rows), Questions.next_title),
}
