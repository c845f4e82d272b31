"""Semantic IDs that extend earlier ones (`--extend`): what was tuned on the earlier ones still knows their items.

An extension keeps the codes of all old items and the sizes of the codebook. Its manifest names all IDs that it goes
back to.
"""

from __future__ import annotations

from dataclasses import replace

from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError

OF_THE_EARLIER_DAY = ("dataset", "embeddings", "semantic_ids")  # inputs that an extension has other versions of


def ancestors(ids: Artifact) -> list[str]:
    """List the fingerprints of the semantic IDs that these extend, the latest first; [] where they extend none."""
    recorded = ids.manifest.get("facts", {}).get("ancestors")
    if isinstance(recorded, list):
        return recorded
    extra = ids.manifest["identity"].get("extra") or {}  # earlier versions named the latest alone
    return [extra["extend"]] if "extend" in extra else []


def knows(model: Artifact, ids: Artifact) -> bool:
    """Tell whether a trained model knows the codes of the IDs: it was trained on these, or on ancestors of these."""
    return model.inputs.get("semantic_ids", ids.fingerprint) in (ids.fingerprint, *ancestors(ids))


def adopt_teacher(teacher: Artifact, ids: Artifact) -> Artifact:
    """Return a teacher that was tuned on ancestors of these IDs as one of these; other teachers as they are.

    Its data set, embeddings and semantic IDs are then no inputs that the run's must agree with.

    Raises:
        UserError: it was tuned without a fold, whose users have other numbers in a later data set.
    """
    if teacher.inputs.get("semantic_ids") not in ancestors(ids):
        return teacher
    if teacher.config.get("folds"):
        raise UserError(
            f"{teacher.folder} was tuned without the users of fold {teacher.config.get('fold')} of an earlier data set "
            f"than that of {ids.folder}; folds go by the users' numbers, which differ. Tune the folds' teachers again, "
            "or label without --folds."
        )
    inputs = {name: value for name, value in teacher.inputs.items() if name not in OF_THE_EARLIER_DAY}
    return replace(teacher, inputs=inputs)
