"""Semantic IDs: quantise embeddings, resolve collisions, report; or import LC-Rec's `index.json`; or add new items.

python scripts/build_semantic_ids.py --config configs/demo/semantic_ids.yaml
python scripts/build_semantic_ids.py --index Instruments.index.json --dataset DATASET
python scripts/build_semantic_ids.py --extend OLD_IDS --dataset NEW --embeddings NEW_EMBEDDINGS --output NEW_IDS
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact, ArtifactJob, write_json
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from distill.runtime.logs import progress_bar
from distill.semantic_ids import embeddings, quality, quantisers
from distill.semantic_ids.ids import LEVEL_NAMES, SemanticIDs, collision_rate, write_codes
from distill.semantic_ids.quantisers import Quantiser
from distill.semantic_ids.quantisers.settings import KMeansConfig, RQVAEConfig

TEMPLATE = Path(__file__).with_name("id_report.html.jinja")
TOKEN = re.compile(r"<([a-z])_(0|[1-9]\d{0,5})>")
SAME_SPACE = 0.5  # of the old items must get their old first code again, or the new embeddings are of another space


@dataclass(frozen=True)
class Config(JobSettings):
    """Give every item its semantic ID."""

    run: Path = Path("runs/demo")
    """Root of a run: stages put their results below it."""
    dataset: Path | None = None
    """Data set to read; RUN/dataset if not given."""
    embeddings: Path | None = None
    """Embeddings to quantise; RUN/embeddings if not given."""
    output: Path | None = None
    """Folder of the semantic IDs; RUN/semantic_ids if not given."""
    index: Path | None = None
    """Import these IDs instead of training (LC-Rec's index.json: item number to its tokens, "<a_137>" and so on).
    Needs no embeddings; takes the IDs as they are; of the settings below only codebook_size counts."""
    extend: Path | None = None
    """Semantic IDs of an earlier version of the data set: its items keep their codes, new items are encoded by its
    quantiser. Embed them with embed_items.py --like. Of the settings below only unique and full_prefix count."""
    quantiser: Literal["rqvae", "rkmeans", "pq"] = "pq"
    """rqvae (paper), rkmeans (residual k-means) or pq (product quantisation: levels without an order), which
    recommended best (docs/semantic-ids.md)."""
    levels: int = 4
    """Codes of an item."""
    codebook_size: int = 256
    """Codewords of a level (paper: 256)."""
    sample: int = 65_536
    """Items to train the quantiser on, drawn at random where there are more; 0: all. All are encoded."""
    unique: bool = True
    """Guarantee that no two items share an ID."""
    full_prefix: Literal["error", "move"] = "error"
    """Where more items share all codes but the last than the last level has codes: stop, or move the surplus to the
    next nearest prefix."""
    collision_rounds: int = 20
    """Rounds in which colliding items are assigned anew among themselves, as LC-Rec does, before the guarantee."""
    rqvae: RQVAEConfig = field(default_factory=RQVAEConfig)
    """Settings of rqvae."""
    kmeans: KMeansConfig = field(default_factory=KMeansConfig)
    """Settings of rkmeans and pq."""
    seed: int = 0
    """Of everything random."""


def main(config: Config) -> None:
    """Train, import or extend, then write codes, quantiser and report."""
    if config.index and config.extend:
        raise UserError("--index imports IDs and --extend adds to old ones; choose one of them.")
    dataset = Dataset.load(config.dataset or config.run / "dataset")
    inputs, extra, old = [dataset.artifact], {}, None
    if config.index is None:
        inputs.append(artifacts.read(config.embeddings or config.run / "embeddings", "embeddings"))
    elif config.index.is_file():
        extra = {"index": [config.index.stat().st_size, config.index.stat().st_mtime_ns]}
    else:
        raise UserError(f"No file {config.index}; --index names an index.json of LC-Rec's format.")
    if config.extend is not None:  # made from the earlier data set, so it is no input that must agree
        old = artifacts.read(config.extend, "semantic_ids")
        extra = {"extend": old.fingerprint}
    output = config.output or config.run / "semantic_ids"
    if old and output.resolve() == old.folder.resolve():
        raise UserError(f"--output is {output}, which --extend reads; name another folder for the longer list.")
    stage = ArtifactJob("semantic_ids", config, output, inputs=inputs, extra=extra, overwrite=config.overwrite)
    if stage.is_finished():
        return
    # Everything is checked before the first byte is written.
    names = dataset.items["item_id"].to_pylist()
    model, vectors = None, None
    if config.index is not None:
        codes, size = read_index(config.index, dataset.n_items, config.codebook_size)
        before, facts = codes, {"source": config.index.name}
    else:
        vectors = embeddings.load(inputs[1].folder, names)
        if old:
            model, before, codes, facts = _extend(old, vectors, names, config)
        else:
            model = _train(vectors, config)
            before = model.encode(vectors)
            codes, facts = _resolve(model, vectors, before, config), {"source": model.name}
        size = model.codebook_size
    report = describe(codes, before, size) | facts | _meaning(codes, vectors, model, dataset)
    report["verdict"] = verdict(report)
    page = render(report, dataset.artifact.folder.resolve().parent.name)
    with stage.write() as folder:
        write_codes(folder, names, codes)
        if model is not None:
            quantisers.save(model, folder)
        write_json(folder / "report.json", report)
        (folder / "report.html").write_text(page, encoding="utf-8")
    _print(report)


def read_index(path: Path, n_items: int, codebook_size: int) -> tuple[np.ndarray, int]:
    """Read LC-Rec's `index.json`: `{"0": ["<a_137>", "<b_112>", "<c_79>", "<d_200>"], …}`.

    Args:
        path: the file.
        n_items: items of the data set; keys must be "0" to n_items − 1.
        codebook_size: codes must be below.

    Returns:
        Codes [n_items, levels] and the codebook size.

    Raises:
        UserError: not such a file, items missing or too many, malformed tokens, unequal numbers of levels.
    """
    try:
        table = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from None
    if not isinstance(table, dict) or not table:
        raise UserError(f'{path}: expected an object like {{"0": ["<a_137>", "<b_112>"]}}, found another value.')
    expected = {str(item) for item in range(n_items)}
    _refuse(path, "misses {} of the data set's {} items", expected - table.keys(), n_items)
    _refuse(path, "has {} items that the data set of {} has not", table.keys() - expected, n_items)
    levels = len(table["0"])
    codes = np.zeros((n_items, levels), dtype=np.int64)
    for item in range(n_items):
        words = table[str(item)]
        where = f"{path}, item {item}"
        if not isinstance(words, list) or not 1 <= len(words) <= len(LEVEL_NAMES):
            raise UserError(f"{where}: expected a list of 1 to {len(LEVEL_NAMES)} tokens, found {json.dumps(words)}.")
        if len(words) != levels:
            raise UserError(f"{where}: has {len(words)} levels, item 0 has {levels}; all must have as many.")
        for level, word in enumerate(words):
            match = TOKEN.fullmatch(word) if isinstance(word, str) else None
            if match is None or match[1] != LEVEL_NAMES[level]:
                wanted = f"<{LEVEL_NAMES[level]}_NUMBER>"
                raise UserError(f"{where}: malformed token {json.dumps(word)} at level {level + 1}, expected {wanted}.")
            codes[item, level] = int(match[2])
            if codes[item, level] >= codebook_size:
                raise UserError(f"{where}: {word} is outside a codebook of {codebook_size}; raise codebook_size.")
    return codes, codebook_size


def _refuse(path: Path, message: str, keys: set[str], n_items: int) -> None:
    if keys:
        first = min(keys, key=lambda key: (len(key), key))
        raise UserError(f"{path} {message.format(len(keys), n_items)}, the first is item {first!r}.")


def describe(codes: np.ndarray, before: np.ndarray, codebook_size: int) -> dict[str, Any]:
    """Facts that any IDs have: counts, collisions, and per level the codes used and their perplexity.

    Args:
        codes: [n_items, levels].
        before: the same, before collisions were resolved.
        codebook_size: codewords a level.
    """
    rates = [collision_rate(one) for one in (before, codes)]
    return {
        "items": len(codes),
        "distinct_ids": round(len(codes) * (1 - rates[1])),
        "levels": codes.shape[1],
        "codebook_size": codebook_size,
        "collision_rate_before": rates[0],
        "collision_rate": rates[1],
        "per_level": quality.usage(codes, codebook_size),
    }


def _meaning(
    codes: np.ndarray, vectors: np.ndarray | None, model: Quantiser | None, dataset: Dataset
) -> dict[str, Any]:
    """What prefixes mean; without embeddings, the parts that need none."""
    prefix = quality.prefixes(codes)
    found = {
        "prefix_sharing": {"from": list(quality.GROUPS), "per_length": quality.sharing(prefix)},
        "categories": quality.purity(prefix, dataset.items["categories"].to_pylist()),
        "co_purchase": quality.co_purchase(prefix, *dataset.training_sequences()),
    }
    if vectors is not None and model is not None:
        found["neighbours"] = quality.neighbours(prefix, vectors)
        found |= quality.reconstruction(model, vectors, codes)
    return found


def verdict(report: dict[str, Any]) -> str:
    """One line: can these IDs be trusted, and if not, why."""
    faults = []
    if report["collision_rate"] > 0:
        faults.append(f"{report['items'] - report['distinct_ids']} items share the ID of another")
    if report["collision_rate_before"] > 0.2 and report["source"] in ("rqvae", "rkmeans"):
        faults.append(f"{report['collision_rate_before']:.0%} collided before resolution")
    # A level cannot use more codes than there are items.
    enough = 0.5 * min(report["codebook_size"], report["items"])
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


def _train(vectors: np.ndarray, config: Config) -> Quantiser:
    import torch  # here, because importing IDs does without

    with progress_bar(desc=config.quantiser, unit="step") as bar:

        def progress(done: int, total: int, word: str) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if word and (done % 10 == 0 or done == total):
                bar.set_postfix_str(word)

        return quantisers.fit(
            config.quantiser,
            vectors,
            config.levels,
            config.codebook_size,
            config.seed,
            config.rqvae,
            config.kmeans,
            config.sample,
            progress,
            "cuda" if torch.cuda.is_available() else "cpu",
        )


def _resolve(
    model: Quantiser, vectors: np.ndarray, codes: np.ndarray, config: Config, fixed: np.ndarray | None = None
) -> np.ndarray:
    from distill.semantic_ids.collisions import relieve, resolve_collisions

    last = model.levels - 1
    if config.unique and config.full_prefix == "move":
        codes = relieve(codes, lambda rows, own, level: model.target(vectors[rows], own, level), model.words, fixed)
    return resolve_collisions(
        codes,
        lambda rows: model.target(vectors[rows], codes[rows], last),
        model.words(last),
        config.collision_rounds,
        config.unique,
        fixed=fixed,
    )


def _extend(
    old: Artifact, vectors: np.ndarray, names: list[str], config: Config
) -> tuple[Quantiser, np.ndarray, np.ndarray, dict[str, Any]]:
    """Old codes as they are, new items encoded: the quantiser, codes before and after resolution, facts.

    Raises:
        UserError: old IDs without quantiser, items that are gone, embeddings of another space.
    """
    before = SemanticIDs.load(old.folder)
    if not (old.folder / quantisers.SETTINGS).is_file():
        raise UserError(f"{old.folder} was imported: it has no quantiser that could encode new items.")
    model = quantisers.load(old.folder)
    row_of = {name: row for row, name in enumerate(names)}
    gone = [name for name in before.item_ids if name not in row_of]
    if gone:
        raise UserError(
            f"{len(gone)} of {len(before.item_ids)} items of {old.folder} are not in the data set, the first is "
            f"{gone[0]!r}. Keep them in the catalogue (their codes stay taken), or build all IDs anew without --extend."
        )
    if vectors.shape[1] != model.input_dim:
        raise UserError(
            f"The embeddings have {vectors.shape[1]} dimensions, {old.folder} was made from {model.input_dim}. "
            "Embed with: python scripts/embed_items.py --like OLD_EMBEDDINGS"
        )
    rows = np.array([row_of[name] for name in before.item_ids])
    codes = model.encode(vectors)
    same = float((codes[rows, 0] == before.codes[:, 0]).mean())
    if same < SAME_SPACE:
        raise UserError(
            f"Only {same:.0%} of the old items would get their old first code again: these embeddings are not in the "
            "space of the old ones. Embed with: python scripts/embed_items.py --like OLD_EMBEDDINGS"
        )
    codes[rows] = before.codes
    fixed = np.zeros(len(names), dtype=bool)
    fixed[rows] = True
    facts = {"source": model.name, "extends": old.fingerprint, "kept": len(rows), "added": len(names) - len(rows)}
    return model, codes, _resolve(model, vectors, codes, config, fixed), facts


def render(report: dict[str, Any], name: str) -> str:
    """report.html: the same facts as a page with everything inside."""
    import jinja2  # here, because `--help` should not wait for it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(TEMPLATE.name).render(name=name, report=report, sections=_sections(report))


def _sections(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What the page shows, in order: title, text, chart, head and rows of a table each."""
    levels = [f"level {name}" for name in LEVEL_NAMES[: report["levels"]]]
    lengths = [f"{length} code{'s' if length > 1 else ''}" for length in range(1, report["levels"] + 1)]

    def percent(values: list[float | None]) -> list[str]:
        return ["–" if value is None else f"{value:.1%}" for value in values]

    found = []
    per_level = {key: [one[key] for one in report["per_level"]] for key in ("used", "perplexity")}
    found.append(
        {
            "title": "Use of the codes",
            "text": f"Codes used of {report['codebook_size']}, and their perplexity: how many equally used codes would "
            f"be as various. {report['collision_rate_before']:.2%} of the items collided before resolution, "
            f"{report['collision_rate']:.2%} after.",
            "chart": _bars(levels, {"perplexity": per_level["perplexity"], "used": per_level["used"]}),
            "head": ["", *levels],
            "rows": [["used", *per_level["used"]], ["perplexity", *(f"{x:.0f}" for x in per_level["perplexity"])]],
        }
    )
    if "explained_per_level" in report:
        found.append(
            {
                "title": "Reconstruction",
                "text": "Share of the embeddings' variance that the decoded codes explain, level by level; "
                f"{report['reconstruction_error']:.1%} is lost.",
                "chart": _bars(levels, {"variance explained": report["explained_per_level"]}),
                "head": ["", *levels],
                "rows": [["explained", *percent(report["explained_per_level"])]],
            }
        )
    sharing = report["prefix_sharing"]
    ends = [str(low) if low + 1 == high else f"{low}–{high - 1}" for low, high in pairwise(sharing["from"])]
    found.append(
        {
            "title": "How many items share a prefix",
            "text": "Share of items whose prefix of this length has so many items.",
            "chart": _bars(
                lengths, {"share a prefix with others": [1 - one["shares"][0] for one in sharing["per_length"]]}
            ),
            "head": ["items with the prefix", *lengths],
            "rows": [
                [label, *percent([one["shares"][place] for one in sharing["per_length"]])]
                for place, label in enumerate([*ends, f"{sharing['from'][-1]} and more"])
            ]
            + [["distinct prefixes", *(f"{one['prefixes']:,}" for one in sharing["per_length"])]],
        }
    )
    questions = (
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
        ("co_purchase", "share", "Bought together", "How often items bought together (training part) share a prefix."),
    )
    for key, value, title, text in questions:
        if report.get(key):
            share, chance = report[key][value], report[key]["chance"]
            lift = [
                f"{one / other:.1f}" if one is not None and other else "–"
                for one, other in zip(share, chance, strict=True)
            ]
            found.append(
                {
                    "title": title,
                    "text": f"{text} Lift: how many times as often as by chance.",
                    "chart": _bars(lengths, {"found": [x or 0 for x in share], "chance": [x or 0 for x in chance]}),
                    "head": ["", *lengths],
                    "rows": [["found", *percent(share)], ["chance", *percent(chance)], ["lift", *lift]],
                }
            )
    return found


def _bars(labels: list[str], series: dict[str, list[float]]) -> Any:
    """Grouped bars as SVG for the page; colours follow its light or dark dress."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    ink, colours = "#0a0b0c", ("#0a0b01", "#0a0b02")  # fixed for matplotlib, exchanged for the page's own below
    settings = {"svg.fonttype": "none", "svg.hashsalt": "ids", "font.size": 9, "text.color": ink, "axes.edgecolor": ink}
    settings |= {"xtick.color": ink, "ytick.color": ink, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7, 2.1), layout="constrained")
        axes = figure.subplots()
        for place, (name, values) in enumerate(series.items()):
            where = np.arange(len(labels)) + 0.4 * place
            axes.bar(where, values, 0.38, label=name, color=colours[place])
        axes.set_xticks(np.arange(len(labels)) + 0.2 * (len(series) - 1), labels)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, own in zip((ink, *colours), ("currentColor", "var(--one)", "var(--two)"), strict=True):
        svg = svg.replace(colour, own)
    return Markup(re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 role="img"', svg, count=1))


def _print(report: dict[str, Any]) -> None:
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


if __name__ == "__main__":
    run(main, Config, "demo/semantic_ids.yaml")
