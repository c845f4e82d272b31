"""Networks over items behind item ids: lists by hand-set scores, and the data set that names the items."""

import numpy as np
import pytest
import torch
from student_shop import ITEMS, make_shop, write_network
from torch import nn
from unit.test_recommender import shop

from distill.data.dataset import Dataset
from distill.runtime.errors import UserError
from student.item_recommender import ItemRecommender
from student.load_student import dataset_of, is_item_model, load_student
from student.models.item_models import ITEM_MODELS
from student.recommender import Recommender


class NextNumber(nn.Module):
    """Scores item v after last item u by −(v − u mod n): the next numbers are the best."""

    def __init__(self, n_items):
        super().__init__()
        self.config = ITEM_MODELS["sasrec"][1](n_items, max_history=3)
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, histories, places):
        last = histories[places]
        return -((torch.arange(self.config.n_items) - last[:, None]) % self.config.n_items).float()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a data set and a SASRec."""
    root = tmp_path_factory.mktemp("run")
    make_shop(root, [4, 4])
    network, sizes = ITEM_MODELS["sasrec"]
    model = network(sizes(ITEMS, dim=8, max_history=6))
    write_network(root / "baselines/sasrec", model, root / "dataset", exclude_bought=True)
    return root


def test_lists_by_item_id(run):
    student = ItemRecommender(NextNumber(ITEMS), {"exclude_bought": True}).with_items(Dataset.load(run / "dataset"))
    after, unknown, end = student.recommend([["i7", "i4", "i3"], ["nowhere"], ["i39"]], k=3, skip_unknown=True)
    assert [(item.item_id, item.score, item.title) for item in after] == [
        ("i5", -2, ""),
        ("i6", -3, ""),
        ("i8", -5, ""),
    ]
    assert unknown == []
    assert [item.item_id for item in end] == ["i0", "i1", "i2"]
    kept = student.recommend([["i7", "i4", "i3"]], k=2, exclude_bought=False)[0]
    assert [item.item_id for item in kept] == ["i3", "i4"]
    assert len(student.recommend([["i1"]], k=1000)[0]) == ITEMS - 1
    with pytest.raises(UserError, match="Unknown item id 'nowhere' in history 1: the data set lacks it"):
        student.recommend([["i1"], ["nowhere"]])


def test_a_network_without_item_ids(run):
    with pytest.raises(UserError, match="name them by with_items"):
        ItemRecommender(NextNumber(ITEMS), {}).recommend([["i1"]])
    with pytest.raises(UserError, match=r"ranks 39 items, and .*dataset has 40"):
        ItemRecommender(NextNumber(39), {}).with_items(Dataset.load(run / "dataset"))


def test_the_data_set_of_the_run_names_the_items(run, tmp_path):
    folder = run / "baselines/sasrec"
    student = load_student(folder, dataset_of(folder, None))
    assert is_item_model(folder) and isinstance(student, ItemRecommender)
    expected, _ = student.rank_items(np.array([[1, 2]]), 5, True)
    listed = student.recommend([["i1", "i2"]], k=5)[0]
    assert [item.item_id for item in listed] == [f"i{item}" for item in expected[0]]
    assert dataset_of(tmp_path / "a/b", None) is None
    with pytest.raises(UserError, match="names no items: give its data set by --dataset"):
        load_student(folder, None)
    make_shop(tmp_path, [4, 4, 4], seed=1)
    with pytest.raises(UserError, match="was not trained on"):
        dataset_of(folder, tmp_path / "dataset")


def test_a_student_names_its_items_itself(tmp_path):
    shop().save_pretrained(tmp_path)
    assert not is_item_model(tmp_path)
    student = load_student(tmp_path, None)
    assert isinstance(student, Recommender) and student.item_ids == shop().item_ids
