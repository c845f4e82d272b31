"""The quality reports of semantic IDs and soft labels as lists of named values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from distill.evaluation.report.files import read_json
from distill.runtime.artifacts import Artifact

MEANINGS = {
    "items": "items of the catalogue",
    "distinct_ids": "different semantic IDs",
    "levels": "codewords of an ID",
    "codebook_size": "codewords of each level",
    "collision_rate_before": "share of items whose ID another item had as well, before repair",
    "collision_rate": "the same after repair",
    "source": "quantiser, or file that the IDs come from",
    "reconstruction_error": "share of the embeddings' variance that the codewords lose",
    "mean_squared_error": "the same as a mean squared error",
    "targets": "labelled examples",
    "copied": "examples beside them whose labels were copied from an earlier day",
    "recall@10": "share of training targets that the teacher ranks among its first 10",
    "entropy_per_level": "mean entropy of the teacher's next codeword, nats",
    "mass_off_level": "probability that the teacher gives to tokens that are no codeword of the level",
    "reference_in_beams": "share of targets that are among the teacher's beams",
    "reference_rank": "their mean rank there",
    "invalid_beams": "share of beams that are no item's ID",
    "bytes_per_target": "size of a label on disk",
    "kl_fp16": "divergence of the stored from the computed distributions, stored as half precision; nats",
    "kl_u8": "the same, stored as square roots in bytes",
    "kl_topk+tail": "the same, stored as the 48 likeliest codewords",
}


class Fact(NamedTuple):
    """One value of a quality report, in words."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Quality:
    """What a quality report says."""

    verdict: str
    """The conclusion in a sentence or two; "" if there is none."""
    facts: list[Fact]
    levels: list[dict[str, Any]]
    """Of semantic IDs: codewords in use and perplexity of each level."""
    codebook_size: int | None


def read_quality(artifacts: Mapping[str, Artifact], kind: str) -> Quality:
    """Read the report.json of a run's artifact; everything is empty if there is none.

    Raises:
        UserError: damaged file.
    """
    path = artifacts[kind].folder / "report.json" if kind in artifacts else None
    report = read_json(path, kind) if path and path.is_file() else None
    if not isinstance(report, dict):
        return Quality("", [], [], None)
    facts = list_facts({key: value for key, value in report.items() if key != "verdict"})
    return Quality(str(report.get("verdict", "")), facts, report.get("per_level") or [], report.get("codebook_size"))


def list_facts(report: Mapping[str, Any]) -> list[Fact]:
    """List the plain values of a quality report; lists and tables inside it are left out."""
    facts = []
    for key, value in report.items():
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, str):
            text = value
        elif isinstance(value, int):
            text = f"{value:,}"
        elif isinstance(value, float):
            text = f"{value:.4g}"
        else:
            continue
        facts.append(Fact(key.replace("_", " "), text, MEANINGS.get(key, "")))
    return facts
