"""`causal` and `nested` in one pass equal one pass a prefix: losses, gradients, candidates."""

import pytest
import torch
from item_texts import text_network

from student.models.causal import Causal, CausalConfig, Positions
from student.models.nested import Nested, NestedConfig

LEVELS, SIZE, K = 3, 7, 4


SIZES = {"d_model": 24, "d_ff": 40, "heads": 3, "d_head": 8, "dropout": 0}
NETWORKS = {
    "causal": lambda: Causal(CausalConfig(LEVELS, SIZE, **SIZES, layers=3)),
    "nested": lambda: Nested(NestedConfig(LEVELS, SIZE, **SIZES, outer=2, layers=2)),
    "causal+text": lambda: text_network(Causal, CausalConfig(LEVELS, SIZE, **SIZES, layers=3)),
    "nested+text": lambda: text_network(Nested, NestedConfig(LEVELS, SIZE, **SIZES, outer=2, layers=2)),
    "nested text only": lambda: text_network(Nested, NestedConfig(LEVELS, SIZE, **SIZES, outer=2, layers=2), only=True),
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    network = NETWORKS[request.param]().double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)  # norms start at 1, which would hide mistakes
    return network


def sequences(lengths, seed=1):
    codes = torch.randint(SIZE, (len(lengths), max(lengths), LEVELS), generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate(lengths):
        codes[row, length:] = -1
    return codes


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def same(model, first, second):
    """Equal but for the rounding of log-probabilities, which are float32."""
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    expected, others = gradients(model, first), gradients(model, second)
    for name, value in expected.items():
        assert value.abs().sum() > 0, name
        torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["level", "all"])
def test_every_target_as_if_alone(model, scope):
    lengths = [5, 2, 4]
    codes = sequences(lengths)
    rows = torch.tensor([0, 0, 0, 1, 2, 2])  # not all positions are targets
    places = torch.tensor([1, 3, 4, 1, 2, 3])
    mix = torch.randn(6, LEVELS, SIZE * (LEVELS if scope == "all" else 1), dtype=torch.float64)
    log_probs, others = model(codes, None, scope, Positions(rows, places))
    assert others is None
    alone = [model(codes[r, None, :p], codes[r, None, None, p], scope)[0, 0] for r, p in zip(rows, places, strict=True)]
    same(model, (log_probs * mix).sum(), (torch.stack(alone) * mix).sum())


@pytest.mark.parametrize("scope", ["level", "all"])
@pytest.mark.parametrize("groups", [[[2], [1], [-1]], [[1, 4, 2], [1, -1, -1], [3, 2, -1]]], ids=["one", "several"])
def test_candidates_beside_the_sequence_as_if_alone(model, scope, groups):
    codes, groups = sequences([5, 2, 4]), torch.tensor(groups)
    items = torch.randint(SIZE, (*groups.shape, K, LEVELS), generator=torch.Generator().manual_seed(2))
    at = Positions(torch.tensor([0]), torch.tensor([1]), groups)
    targets, chosen = model(codes, items, scope, at)
    mix = torch.randn(chosen.shape, dtype=torch.float64) * (groups >= 0)[..., None, None]
    total = 0
    for row, group in (groups >= 0).nonzero().tolist():
        log_probs = model(codes[row, None, : groups[row, group]], items[row, None, group], scope)[0]
        numbers = items[row, group] + (torch.arange(LEVELS) * SIZE if scope == "all" else 0)
        total = total + (log_probs.gather(-1, numbers[..., None]).squeeze(-1) * mix[row, group]).sum()
    same(model, (chosen * mix).sum() + 0 * targets.sum(), total)


def test_nothing_after_the_target_is_seen(model):
    codes = sequences([5])
    items = torch.randint(SIZE, (1, 1, K, LEVELS), generator=torch.Generator().manual_seed(2))
    at = Positions(torch.tensor([0]), torch.tensor([2]), torch.tensor([[2]]))
    before = model(codes, items, "level", at)
    changed = codes.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % SIZE
    changed[:, 2, -1] = (changed[:, 2, -1] + 1) % SIZE  # nothing follows the target's last codeword
    after = model(changed, items, "level", at)
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


ONE_LEVEL = {
    "causal": lambda: Causal(CausalConfig(1, SIZE, **SIZES, layers=3)),
    "nested": lambda: Nested(NestedConfig(1, SIZE, **SIZES, outer=2, layers=2)),
    "nested tied": lambda: Nested(NestedConfig(1, SIZE, **SIZES, outer=2, layers=2, tied=True)),
    "causal with states": lambda: Causal(CausalConfig(1, SIZE, **SIZES, layers=3, features=5, feature_layers=2)),
}


@pytest.mark.parametrize("name", ONE_LEVEL)
@pytest.mark.parametrize("k", [1, K])
def test_candidates_of_one_codeword_are_scored_by_the_history_alone(name, k):
    """By hand: the softmax of the head's products with the state after the history."""
    torch.manual_seed(0)
    model = ONE_LEVEL[name]()
    lengths, groups = [5, 2, 4], torch.tensor([[1, 4], [1, -1], [3, 2]])
    codes = sequences(lengths)[..., :1]
    items = torch.randint(SIZE, (3, k, 1), generator=torch.Generator().manual_seed(2))
    histories = [codes[row, None, :length] for row, length in enumerate(lengths)]
    states = torch.cat([model.encode(history).last_state for history in histories])
    expected = (states @ model.output_table()[0].T).log_softmax(-1)
    torch.testing.assert_close(model(codes, items), expected[:, None, None].expand(-1, k, -1, -1))
    replaced = items[:, None].expand(-1, 2, -1, -1)
    _, chosen = model(codes, replaced, "level", Positions(torch.tensor([0]), torch.tensor([1]), groups))
    assert chosen.shape == (3, 2, k, 1)
    for row, group in (groups >= 0).nonzero().tolist():
        state = model.encode(codes[row, None, : groups[row, group]]).last_state[0]
        log_probs = (model.output_table()[0] @ state).log_softmax(-1)
        torch.testing.assert_close(chosen[row, group, :, 0], log_probs[items[row, :, 0]])
