"""Tables 4 and 5 of the paper: what teacher and students recommend to some users, with titles.

The paper shows two users of Games and does not say how they were chosen. Here all evaluated users are sorted into four
groups, by whether TIGER and DWR have the target among their first ten, and the seed draws the users from each group.
The size of each group stands beside, so that a case can be weighed.

The paper's TIGER decodes without the trie: an ID that no item has is an "ERROR", and items of the same title may follow
each other. The same list stands here beside the constrained ones (`tiger, no trie`); each step of it ranks all
codewords of its level.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.evaluation.ranked_lists import ASKED, RankedLists, read_ranked_lists
from distill.evaluation.report.examples import Titles
from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.output import Output, Row
from distill.metrics import MISSED, hit_ranks
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.markdown import markdown_table
from distill.runtime.parquet import read_parquet

SHOWN, HISTORY_SHOWN, AT = 10, 20, 10
INVALID = "ERROR"  # the paper's word for an ID that no item has
NO_TRIE = "tiger, no trie"
# columns: name of the list -> what taught the system
SYSTEMS = {
    "teacher": "the teacher",
    NO_TRIE: "not distilled, as in the paper",
    "tiger": "not distilled",
    "distill": "distilled",
    "dtr": "distilled, ranked in a second stage",
    "dwr": "distilled and ranked",
}
# (TIGER has the target, DWR has it) -> name of the group, in the order of the cases
GROUPS = {
    (False, True): "only DWR finds the target",
    (True, False): "only TIGER finds the target",
    (True, True): "both find the target",
    (False, False): "neither finds the target",
}
COLOURS = {"target": "#cfe8cf", "repeated": "#fbe0bd", "invalid": "#f5c6c6"}


class Entry(NamedTuple):
    """A place of a list: the title, and whether it is the target, names no item, or repeats a title above it."""

    title: str
    mark: str = ""


class Case(NamedTuple):
    """One user.

    Attributes:
        group: a value of `GROUPS`.
        user: number of the user.
        history: titles, oldest first.
        target: title.
        lists: entries of each system, best first.
        ranks: place of the target in each system's whole list, from 1; None where the list lacks it.
    """

    group: str
    user: int
    history: list[str]
    target: str
    lists: dict[str, list[Entry]]
    ranks: dict[str, int | None]


def make_cases(runs: Sequence[Path], config: Config) -> Output:
    """Draw the cases of the first run and write them with titles.

    Raises:
        UserError: the data set or the evaluation is missing, or lacks TIGER or DWR.
    """
    evaluation = artifacts.read(runs[0] / "evaluation", "evaluation")
    lists = read_lists(evaluation)
    chosen, sizes = choose_users(lists, config.cases_per_group, config.seeds[0])
    titles = Titles(artifacts.read(runs[0] / "dataset", "dataset"), evaluation)
    column = read_parquet(evaluation.folder / "lists.parquet", ASKED)["history"]
    cases = [make_case(lists, row, group, column[int(row)].as_py(), titles) for group, row in chosen]
    markdown = render_cases(config, cases, sizes)
    return Output(markdown, list_rows(cases), lambda path: draw_cases(path, cases))


def read_lists(evaluation: Artifact) -> RankedLists:
    """Read the lists of an evaluation, and TIGER's without the trie where the evaluation has them.

    Raises:
        UserError: no lists of TIGER or DWR.
    """
    lists = read_ranked_lists(evaluation.folder / "lists.parquet")
    for system in ("tiger", "dwr"):
        if system not in lists.lists:
            raise UserError(f"{evaluation.folder} has no lists of {system}; the cases are drawn by tiger and dwr.")
    free = evaluation.folder / "unconstrained.parquet"
    if free.is_file():  # evaluations of older versions have none
        without_trie = read_ranked_lists(free).lists
        if "tiger" in without_trie:
            lists.lists[NO_TRIE] = without_trie["tiger"]
    return lists


def choose_users(lists: RankedLists, per_group: int, seed: int) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Draw users from each group.

    Args:
        lists: of all systems.
        per_group: users drawn from a group, or all of a smaller one.
        seed: of the draw.

    Returns:
        Group and row of each case, in the order of `GROUPS`; and the number of users in each group.
    """
    hits = [hit_ranks(lists.lists[system][:, :AT], lists.targets) < AT for system in ("tiger", "dwr")]
    rng = np.random.default_rng(seed)
    chosen, sizes = [], {}
    for (tiger, dwr), group in GROUPS.items():
        rows = np.flatnonzero((hits[0] == tiger) & (hits[1] == dwr))
        sizes[group] = len(rows)
        drawn = rng.permutation(rows)[:per_group]
        chosen += [(group, int(row)) for row in np.sort(drawn)]
    return chosen, sizes


def make_case(lists: RankedLists, row: int, group: str, history: Sequence[int], titles: Titles) -> Case:
    """Look up the titles of one user's lists.

    Args:
        lists: of all systems.
        row: of the user in the lists.
        group: of the case.
        history: item numbers, oldest first.
        titles: of the catalogue.
    """
    target = int(lists.targets[row])
    systems = [name for name in SYSTEMS if name in lists.lists]
    rows = {name: lists.lists[name][row] for name in systems}
    ranks = {name: int(hit_ranks(items[None], np.array([target]))[0]) for name, items in rows.items()}
    return Case(
        group,
        int(lists.users[row]),
        [titles.item(item).full for item in history],
        titles.item(target).full,
        {name: list_entries(items[:SHOWN], target, titles) for name, items in rows.items()},
        {name: None if rank == MISSED else rank + 1 for name, rank in ranks.items()},
    )


def list_entries(items: Sequence[int], target: int, titles: Titles) -> list[Entry]:
    """Look up the titles of a list of item numbers; -1 is an ID that no item has."""
    entries: list[Entry] = []
    for item in map(int, items):
        if item < 0:
            entries.append(Entry(INVALID, "invalid"))
            continue
        title = titles.item(item).full
        repeated = any(title == entry.title for entry in entries)
        entries.append(Entry(title, "target" if item == target else "repeated" if repeated else ""))
    return entries


def list_rows(cases: Sequence[Case]) -> list[Row]:
    """List every place of every list as a row of the csv, the history and the target first."""
    rows: list[Row] = []
    for number, case in enumerate(cases, 1):
        facts = {"case": number, "group": case.group, "user": case.user}
        listed = [("history", place, title, "") for place, title in enumerate(case.history, 1)]
        listed.append(("target", 1, case.target, ""))
        listed += [
            (system, place, *entry) for system, shown in case.lists.items() for place, entry in enumerate(shown, 1)
        ]
        rows += [
            facts | {"list": name, "place": place, "title": title, "mark": mark} for name, place, title, mark in listed
        ]
    return rows


def render_cases(config: Config, cases: Sequence[Case], sizes: dict[str, int]) -> str:
    """Render the cases as Markdown."""
    users = max(sum(sizes.values()), 1)
    shares = "; ".join(f"{group}: {size:,} users, {size / users:.1%}" for group, size in sizes.items())
    lines = [
        f"# cases: {config.dataset}, test, seed {config.seeds[0]}\n",
        f"Drawn at random by the seed, {config.cases_per_group} from each group of users by whether TIGER and DWR have "
        f"the target among their first {AT}. {shares}. The paper's Tables 4 and 5 are two users of Games, chosen by a "
        "rule that it does not give; theirs is a TIGER that decodes without the trie.\n",
        f"**Bold**: the target. *Italic*: a title that the list has already. {INVALID}: a semantic ID that no item "
        "has.\n",
    ]
    for number, case in enumerate(cases, 1):
        earlier = len(case.history) - HISTORY_SHOWN
        before = f"({earlier} earlier items) " if earlier > 0 else ""
        lines += [
            f"## Case {number}: {case.group} (user {case.user})\n",
            f"History: {before}{'; '.join(map(_plain, case.history[-HISTORY_SHOWN:]))}.\n",
            f"Target: **{_plain(case.target)}**\n",
        ]
        depth = max(len(shown) for shown in case.lists.values())
        table = [
            [str(place + 1), *(_cell(shown[place]) if place < len(shown) else "" for shown in case.lists.values())]
            for place in range(depth)
        ]
        table.append(["target's rank", *(str(case.ranks[name] or "–") for name in case.lists)])
        heads = ["", *(f"{name} ({SYSTEMS[name]})" if name != "teacher" else name for name in case.lists)]
        lines.append(markdown_table(heads, table, tuple(range(len(heads)))))
    return "\n".join(lines)


def _plain(title: str) -> str:
    """Keep a title from being read as Markdown."""
    return " ".join("".join(f"\\{letter}" if letter in "*_`[]<>#\\" else letter for letter in title).split())


def _cell(entry: Entry) -> str:
    text = _plain(entry.title)
    return {"target": f"**{text}**", "repeated": f"*{text}*"}.get(entry.mark, text)


def draw_cases(path: Path, cases: Sequence[Case]) -> None:
    """Draw the lists as tables: the target green, a repeated title orange, an invalid ID red."""
    from matplotlib.figure import Figure

    columns = max(len(case.lists) for case in cases)
    figure = Figure(figsize=(2.2 * columns, 3.2 * len(cases)), layout="constrained")
    for number, (axes, case) in enumerate(zip(figure.subplots(len(cases), squeeze=False)[:, 0], cases, strict=True), 1):
        axes.axis("off")
        last = "; ".join(textwrap.shorten(title, 40, placeholder=" …") for title in case.history[-3:])
        heading = f"Case {number}, {case.group}. Target: {textwrap.shorten(case.target, 60, placeholder=' …')}"
        axes.set_title(f"{heading}\nlast bought: {last}", loc="left", fontsize=8, parse_math=False)
        cells, colours = [], []
        for place in range(max(len(shown) for shown in case.lists.values())):
            shown = [line[place] if place < len(line) else Entry("") for line in case.lists.values()]
            cells.append([textwrap.shorten(entry.title, 32, placeholder=" …") or entry.title[:32] for entry in shown])
            colours.append([COLOURS.get(entry.mark, "white") for entry in shown])
        cells.append([f"target's rank: {case.ranks[name] or '–'}" for name in case.lists])
        colours.append(["#eeeeee"] * len(case.lists))
        table = axes.table(cells, cellColours=colours, colLabels=list(case.lists), bbox=(0, 0, 1, 1), cellLoc="left")
        table.auto_set_font_size(False)
        table.set_fontsize(6.5)
        for cell in table.get_celld().values():
            cell.get_text().set_parse_math(False)
            cell.set_linewidth(0.4)
    figure.savefig(path, dpi=100, metadata={"Software": None})
