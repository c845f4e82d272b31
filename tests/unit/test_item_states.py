"""Items as students represent them: in batches as one by one, from what the networks' last norms return."""

import numpy as np
import pytest
import torch
from unit.test_recommender import SIZES, shop

from distill.runtime.errors import UserError
from student.item_states import item_states
from student.models import BACKBONES

LAST_NORM = {"seq2seq": "encoder_norm", "causal": "norm", "nested": "outer_norm"}


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_item_states(backbone):
    student = shop(backbone)
    states = item_states(student.model, student.codes, batch_size=7)
    assert states.shape == (len(student.codes), SIZES["d_model"]) and states.dtype == np.float32
    seen = []
    hook = getattr(student.model, LAST_NORM[backbone]).register_forward_hook(lambda *call: seen.append(call[2]))
    for item in (0, 3, 7, 20):
        seen.clear()
        student.model.encode(student.codes[item][None, None])
        expected = seen[0].reshape(-1, SIZES["d_model"]).mean(0)  # of the item's tokens
        np.testing.assert_allclose(states[item], expected, atol=1e-5)
    hook.remove()
    assert (states[3] == states[7]).all() and not np.allclose(states[3], states[4])  # items 3 and 7 share an ID


def test_large_students_are_refused():
    with pytest.raises(UserError, match="not by large ones"):
        item_states(torch.nn.Linear(2, 2), torch.zeros(3, 2, dtype=torch.long))
