"""How good labels are, and what each encoding would lose of them: sums of a shard, means of a set (`report.json`)."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Examples
from distill.labels.encodings import ENCODINGS, kl
from distill.labels.labeller import LabelRequest, Labels
from distill.semantic_ids.ids import SemanticIDs

KL_ROWS = 64  # rows of a shard on which the encodings are compared


def shard_quality(examples: Examples, labels: Labels, ids: SemanticIDs, request: LabelRequest) -> dict[str, float]:
    """Sum up a shard's quality over its examples.

    Returns:
        targets: examples; recall@k: references among the first k beams; reference_in_beams: references in any beam;
        reference_rank: their ranks from 1; entropy_per_level, entropy_L: nats of the level's distribution;
        mass_off_level: probability of tokens that are no codeword of the level; invalid_beams: share of an example's
        beams that are no item's ID (unconstrained); kl_ENCODING: nats that the encoding loses.
    """
    entropy, mass = level_entropies(labels.log_probs, ids, request.scope)
    ranks = labels.ranks if labels.ranks is not None else ranks_by_score(labels.scores)
    in_beams = ranks >= 0
    sums = {
        "targets": len(examples),
        f"recall@{min(10, request.width)}": float((in_beams & (ranks < 10)).sum()),
        "reference_in_beams": float(in_beams.sum()),
        "reference_rank": float((ranks[in_beams] + 1).sum()),
        "entropy_per_level": float(entropy.mean(1).sum()),
        **{f"entropy_{level + 1}": float(entropy[:, level].sum()) for level in range(ids.levels)},
        "mass_off_level": float((1 - mass).mean(1).sum()),
    }
    if not request.constrained and labels.invalid is not None:
        sums["invalid_beams"] = float(labels.invalid.sum() / request.width)
    sample = labels.log_probs[:: max(1, len(examples) // KL_ROWS)]
    return sums | {f"kl_{encoding}": kl(sample, encoding) * len(examples) for encoding in ENCODINGS}


def level_entropies(log_probs: np.ndarray, ids: SemanticIDs, scope: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute the entropy in nats of each level's normalised distribution, and the level's mass; both [n, levels].

    Args:
        log_probs: [n, levels, V].
        ids: the semantic IDs.
        scope: "level" or "all", as in `LabelRequest`.
    """
    log_probs = log_probs.astype(np.float64)
    if scope == "all":
        level = np.arange(ids.levels)
        log_probs = log_probs.reshape(-1, ids.levels, ids.levels, ids.codebook_size)[:, level, level]
    mass = np.exp(log_probs).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = log_probs - np.log(mass)[..., None]
        terms = np.where(np.isfinite(normalised), np.exp(normalised) * normalised, 0)
    return -terms.sum(-1), mass


def ranks_by_score(scores: np.ndarray) -> np.ndarray:
    """Rank of the reference among the candidates, from 0; -1 where all others are better [n].

    Args:
        scores: of the candidates, the reference first [n, keep].
    """
    better = (scores[:, 1:] > scores[:, :1]).sum(1)
    return np.where(better < scores.shape[1] - 1, better, -1)


def mean_quality(shards: list[dict[str, float]]) -> dict[str, float]:
    """Average over all examples; the reference's rank is averaged over those whose beams hold it.

    Where rows were copied from earlier labels, `copied` counts them, and the rest is that of the other rows.
    """
    total = sum(shard["targets"] for shard in shards)
    copied = {"copied": sum(shard["copied"] for shard in shards)} if "copied" in shards[0] else {}
    labelled = [shard for shard in shards if shard["targets"]]
    if not labelled:
        return {"targets": total, **copied}
    sums = {key: sum(shard[key] for shard in labelled) for key in labelled[0]}
    means = {key: value / total for key, value in sums.items() if key not in ("targets", "copied")}
    means["reference_rank"] = sums["reference_rank"] / max(sums["reference_in_beams"], 1)
    return {"targets": total, **copied, **means}
