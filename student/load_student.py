"""Load any trained student: one that searches semantic IDs, or a network over items with its data set's item ids."""

from __future__ import annotations

from pathlib import Path

from distill.data.dataset import Dataset
from distill.runtime.artifacts import MANIFEST, read_any
from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object
from student.config import Precision
from student.item_recommender import ItemRecommender
from student.recommender import Recommender


def load_student(
    folder: Path, dataset: Dataset | None, device: str = "cpu", precision: Precision = "auto"
) -> Recommender | ItemRecommender:
    """Load a student or a network over items.

    Args:
        folder: the student's, or USER/NAME on the Hugging Face hub.
        dataset: what it was trained on (`dataset_of`), for the item ids and titles of a network over items.
        device: cpu or cuda.
        precision: of a student's matrix products; networks over items compute in float32.

    Raises:
        UserError: a damaged folder, or a network over items without its data set.
    """
    if not is_item_model(folder):
        return Recommender.from_pretrained(folder, device, precision=precision)
    if dataset is None:
        raise UserError(f"{folder} names no items: give its data set by --dataset.")
    return ItemRecommender.from_pretrained(folder, device).with_items(dataset)


def is_item_model(folder: Path) -> bool:
    """Tell whether a folder holds a network over items, which its config.json names.

    Raises:
        UserError: config.json is damaged.
    """
    path = Path(folder) / "config.json"
    return path.is_file() and "network" in read_object(path)


def dataset_of(folder: Path, dataset: Path | None) -> Dataset | None:
    """Load the data set that a student was trained on.

    Args:
        folder: the student's.
        dataset: folder of the data set; None: the folder `dataset` of the student's run, if there is one.

    Raises:
        UserError: the folder is no data set, or not the one that the student was trained on.
    """
    folder = Path(folder)
    if dataset is None and (folder.parent.parent / "dataset").is_dir():
        dataset = folder.parent.parent / "dataset"
    if dataset is None:
        return None
    data = Dataset.load(dataset)
    trained_on = None
    if (folder / MANIFEST).is_file():
        trained_on = read_any(folder, ("student", "baseline")).inputs.get("dataset")
    if trained_on not in (None, data.artifact.fingerprint):
        raise UserError(f"{folder} was not trained on {dataset}: name its data set by --dataset.")
    return data
