"""Report on semantic IDs: report.json (facts and a verdict), report.html, and a summary for the terminal."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distill.data.dataset import Dataset
from distill.runtime.charts import bar_chart
from distill.semantic_ids import quality
from distill.semantic_ids.build import BuiltIDs
from distill.semantic_ids.ids import LEVEL_NAMES, collision_rate

TEMPLATE = Path(__file__).with_name("id_report.html.jinja")
PREFIX_MEANING = (  # key of the report, its measure, title and text of the section
    (
        "categories",
        "purity",
        "Categories",
        "Of the items that share a prefix, how many are of its commonest category.",
    ),
    (
        "neighbours",
        "share",
        "Neighbours in the embedding",
        "How often an item and one of its nearest share a prefix.",
    ),
    (
        "co_purchase",
        "share",
        "Bought together",
        "How often items bought together (training part) share a prefix.",
    ),
)


def describe(ids: BuiltIDs, dataset: Dataset) -> dict[str, Any]:
    """Compute the facts of the report: use of codes, collisions, and what prefixes mean.

    Facts that need embeddings or a quantiser are left out where there are none.
    """
    codes, prefix = ids.codes, quality.prefixes(ids.codes)
    rate_before, rate = collision_rate(ids.before), collision_rate(codes)
    report = {
        "items": len(codes),
        "distinct_ids": round(len(codes) * (1 - rate)),
        "levels": codes.shape[1],
        "codebook_size": ids.codebook_size,
        "collision_rate_before": rate_before,
        "collision_rate": rate,
        "per_level": quality.usage(codes, ids.codebook_size),
        **ids.facts,
        "prefix_sharing": {"from": list(quality.GROUPS), "per_length": quality.sharing(prefix)},
        "categories": quality.purity(prefix, dataset.items["categories"].to_pylist()),
        "co_purchase": quality.co_purchase(prefix, *dataset.training_sequences()),
    }
    if ids.vectors is not None and ids.quantiser is not None:
        report["neighbours"] = quality.neighbours(prefix, ids.vectors)
        report |= quality.reconstruction(ids.quantiser, ids.vectors, codes)
    return report | {"verdict": verdict(report)}


def verdict(report: dict[str, Any]) -> str:
    """Say in one line whether the IDs are good, and if not, why."""
    faults = []
    if report["collision_rate"] > 0:
        faults.append(f"{report['items'] - report['distinct_ids']} items share the ID of another")
    if report["collision_rate_before"] > 0.2 and report["source"] in ("rqvae", "rkmeans"):
        faults.append(f"{report['collision_rate_before']:.0%} collided before resolution")
    enough = 0.5 * min(report["codebook_size"], report["items"])  # a level cannot use more codes than there are items
    for name, level in zip(LEVEL_NAMES, report["per_level"], strict=False):
        if level["used"] < enough:
            faults.append(f"level {name} uses only {level['used']} of {report['codebook_size']} codes")
        elif level["perplexity"] < 0.5 * level["used"]:
            faults.append(f"level {name} uses its codes unevenly (perplexity {level['perplexity']:.0f})")
    if report.get("reconstruction_error", 0) > 0.6:
        faults.append(f"{report['reconstruction_error']:.0%} of the embeddings' variance is lost")
    together = report["co_purchase"]
    if together and together["share"][0] <= together["chance"][0]:
        faults.append("items bought together share first codes no more often than by chance")
    if faults:
        return "Usable, but " + "; ".join(faults) + "."
    good = "Good: every item has an ID of its own, and all levels are well used."
    if not together or not together["chance"][0]:
        return good
    lift = together["share"][0] / together["chance"][0]
    return f"{good} Items bought together share first codes {lift:.1f} times as often as by chance."


def render(report: dict[str, Any], name: str) -> str:
    """Render report.html, a page without external files.

    Args:
        report: as `describe` returns it.
        name: of the run, for the title.
    """
    import jinja2  # late, so that `--help` is fast

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(TEMPLATE.name).render(name=name, report=report, sections=_sections(report))


def print_summary(report: dict[str, Any]) -> None:
    """Print use of codes, collisions and the verdict to the terminal."""
    table = Table("level", "codes used", "perplexity")
    for name, level in zip(LEVEL_NAMES, report["per_level"], strict=False):
        table.add_row(name, f"{level['used']} of {report['codebook_size']}", f"{level['perplexity']:.1f}")
    console = Console()
    console.print(table)
    lines = [f"{report['items']:,} items, {report['distinct_ids']:,} distinct IDs"]
    if "kept" in report:
        lines.append(f"{report['kept']:,} items kept their codes, {report['added']:,} are new")
    lines.append(f"collision rate {report['collision_rate_before']:.2%} before, {report['collision_rate']:.2%} after")
    if "reconstruction_error" in report:
        lines.append(f"reconstruction error {report['reconstruction_error']:.1%} of the embeddings' variance")
    console.print("\n".join([*lines, report["verdict"]]), highlight=False)


def _sections(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Build the sections of the page: title, text, chart, head and rows of a table each."""
    levels = [f"level {name}" for name in LEVEL_NAMES[: report["levels"]]]
    lengths = [f"{length} code{'s' if length > 1 else ''}" for length in range(1, report["levels"] + 1)]
    sections = [_use_of_codes(report, levels)]
    if "explained_per_level" in report:
        sections.append(_reconstruction(report, levels))
    sections.append(_prefix_sharing(report["prefix_sharing"], lengths))
    for key, measure, title, text in PREFIX_MEANING:
        if report.get(key):
            sections.append(_against_chance(title, text, report[key][measure], report[key]["chance"], lengths))
    return [section | {"chart": _draw(section)} for section in sections]


def _use_of_codes(report: dict[str, Any], levels: list[str]) -> dict[str, Any]:
    used, perplexity = ([level[key] for level in report["per_level"]] for key in ("used", "perplexity"))
    return {
        "title": "Use of the codes",
        "text": f"Codes used of {report['codebook_size']}, and their perplexity: how many equally used codes would "
        f"be as various. {report['collision_rate_before']:.2%} of the items collided before resolution, "
        f"{report['collision_rate']:.2%} after.",
        "bars": (levels, {"perplexity": perplexity, "used": used}),
        "head": ["", *levels],
        "rows": [["used", *used], ["perplexity", *(f"{value:.0f}" for value in perplexity)]],
    }


def _reconstruction(report: dict[str, Any], levels: list[str]) -> dict[str, Any]:
    explained = report["explained_per_level"]
    return {
        "title": "Reconstruction",
        "text": "Share of the embeddings' variance that the decoded codes explain, level by level; "
        f"{report['reconstruction_error']:.1%} is lost.",
        "bars": (levels, {"variance explained": explained}),
        "head": ["", *levels],
        "rows": [["explained", *_percent(explained)]],
    }


def _prefix_sharing(sharing: dict[str, Any], lengths: list[str]) -> dict[str, Any]:
    shares = [length["shares"] for length in sharing["per_length"]]
    ranges = [str(low) if low + 1 == high else f"{low}–{high - 1}" for low, high in pairwise(sharing["from"])]
    labels = [*ranges, f"{sharing['from'][-1]} and more"]
    rows = [[label, *_percent([share[group] for share in shares])] for group, label in enumerate(labels)]
    return {
        "title": "How many items share a prefix",
        "text": "Share of items whose prefix of this length has so many items.",
        "bars": (lengths, {"share a prefix with others": [1 - share[0] for share in shares]}),
        "head": ["items with the prefix", *lengths],
        "rows": [*rows, ["distinct prefixes", *(f"{length['prefixes']:,}" for length in sharing["per_length"])]],
    }


def _against_chance(
    title: str, text: str, shares: list[float | None], chance: list[float | None], lengths: list[str]
) -> dict[str, Any]:
    lift = [
        f"{share / random:.1f}" if share is not None and random else "–"
        for share, random in zip(shares, chance, strict=True)
    ]
    return {
        "title": title,
        "text": f"{text} Lift: how many times as often as by chance.",
        "bars": (lengths, {"found": [value or 0 for value in shares], "chance": [value or 0 for value in chance]}),
        "head": ["", *lengths],
        "rows": [["found", *_percent(shares)], ["chance", *_percent(chance)], ["lift", *lift]],
    }


def _percent(values: list[float | None]) -> list[str]:
    return ["–" if value is None else f"{value:.1%}" for value in values]


def _draw(section: dict[str, Any]) -> Any:
    """Draw a section's values as grouped bars in the page's colours."""
    from markupsafe import Markup  # late, so that `--help` is fast

    name = section["title"].lower().replace(" ", "-")
    return Markup(bar_chart(*section["bars"], ("var(--one)", "var(--two)"), name, section["title"]))
