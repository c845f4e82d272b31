"""FMLP-Rec: its filter against a circular convolution, its windows by hand. What it shares: test_item_models.py."""

import numpy as np
import pytest
import torch
from reference import fmlp_naive

from student.models.item_models.fmlp import Filter, FMLPConfig, FMLPRec, windows


@pytest.mark.parametrize("length", [1, 5, 6])
@torch.no_grad()
def test_the_filter_is_a_circular_convolution(length):
    torch.manual_seed(length)
    layer, hidden = Filter(length, dim=3), torch.randn(2, length, 3)
    layer.weight.normal_()
    actual = layer(hidden).numpy()
    frequencies = torch.view_as_complex(layer.weight).numpy()
    for row in range(2):
        for dim in range(3):
            expected = fmlp_naive.circular_convolution(hidden[row, :, dim].numpy(), frequencies[:, dim])
            np.testing.assert_allclose(actual[row, :, dim], expected, atol=1e-5)


@torch.no_grad()
def test_a_filter_of_ones_changes_nothing_and_one_frequency_is_the_mean():
    layer, hidden = Filter(6, dim=1), torch.arange(6.0)[None, :, None]
    layer.weight.copy_(torch.tensor([1.0, 0.0]).expand(4, 1, 2))
    torch.testing.assert_close(layer(hidden), hidden)
    layer.weight[1:] = 0
    torch.testing.assert_close(layer(hidden), torch.full((1, 6, 1), 2.5))


def test_bfloat16_is_filtered_in_float32():
    layer, hidden = Filter(4, dim=2), torch.randn(1, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(hidden.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(layer(hidden), layer.float()(hidden))


def test_windows_by_hand():
    histories = torch.tensor([[7, 8, 9, 6], [5, -1, -1, -1]])
    places = torch.tensor([[True, False, True, True], [True, False, False, False]])
    expected = [[-1, -1, 7], [7, 8, 9], [8, 9, 6], [-1, -1, 5]]
    assert windows(histories, places, 3).tolist() == expected


@torch.no_grad()
def test_padding_is_no_item():
    """PAD is looked up as item 0, whose row must not reach a history that is padded."""
    torch.manual_seed(0)
    model = FMLPRec(FMLPConfig(n_items=9, max_history=4, dim=8)).eval()
    for layer in model.layers:
        layer.filter.weight.normal_()  # the small start hardly mixes places
    histories = torch.tensor([[3, 1, -1], [2, 0, 4]])
    before = model(histories)
    model.items.weight[0].normal_()
    after = model(histories)
    torch.testing.assert_close(before[0], after[0])
    torch.testing.assert_close(before[1, 0], after[1, 0])
    assert (before[1, 1:] - after[1, 1:]).abs().amax(-1).min() > 1e-3
    assert not before[0, 2].any()


def test_scores_at_places_are_those_of_the_states():
    torch.manual_seed(0)
    model = FMLPRec(FMLPConfig(n_items=9, max_history=4, dim=8)).eval()
    histories = torch.tensor([[3, 1, 5], [2, -1, -1]])
    places = torch.tensor([[True, False, True], [True, False, False]])
    expected = (model(histories)[places] @ model.items.weight.T).log_softmax(-1)
    torch.testing.assert_close(model(histories, places), expected)
