"""Networks against plain computations: caches, shared prefixes, padding, and Hugging Face's T5."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from item_texts import text_network

from distill.decoding.beam_search import beam_search, score_all, score_ids
from distill.decoding.trie import FullTree, Trie
from student.models import BACKBONES
from student.models.causal import Causal, CausalConfig
from student.models.fast_paths import PrefixTree
from student.models.nested import Nested, NestedConfig
from student.models.packing import Packing
from student.models.seq2seq import Seq2Seq, Seq2SeqConfig
from student.models.t5 import to_t5

LEVELS, SIZE = 4, 7
SMALL = Seq2SeqConfig(LEVELS, SIZE, d_model=24, d_ff=40, heads=3, d_head=8, encoder_layers=2, decoder_layers=3)
CAUSAL = CausalConfig(LEVELS, SIZE, d_model=24, d_ff=40, heads=3, d_head=8, layers=3)
NESTED = NestedConfig(LEVELS, SIZE, d_model=24, d_ff=40, heads=3, d_head=8, outer=2, layers=2)
NETWORKS = {
    "seq2seq": lambda **changes: Seq2Seq(dataclasses.replace(SMALL, **changes)),
    "causal": lambda **changes: Causal(dataclasses.replace(CAUSAL, **changes)),
    "nested": lambda **changes: Nested(dataclasses.replace(NESTED, **changes)),
}
# the same networks with texts of the items, added or alone, and with tied tables
NETWORKS |= {
    "seq2seq+text": lambda **changes: text_network(Seq2Seq, dataclasses.replace(SMALL, **changes)),
    "seq2seq text only": lambda **changes: text_network(Seq2Seq, dataclasses.replace(SMALL, **changes), only=True),
    "causal+text": lambda **changes: text_network(Causal, dataclasses.replace(CAUSAL, **changes)),
    "nested+text": lambda **changes: text_network(Nested, dataclasses.replace(NESTED, **changes)),
    "seq2seq tied": lambda **changes: Seq2Seq(dataclasses.replace(SMALL, tied=True, **changes)),
    "causal tied": lambda **changes: Causal(dataclasses.replace(CAUSAL, tied=True, **changes)),
    "nested tied": lambda **changes: Nested(dataclasses.replace(NESTED, tied=True, **changes)),
    "nested text only": lambda **changes: text_network(Nested, dataclasses.replace(NESTED, **changes), only=True),
}


def ready(model):
    """Prepare for inference, with norms that are not all one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return ready(NETWORKS[request.param]())


@pytest.fixture(scope="module")
def seq2seq():
    torch.manual_seed(0)
    return ready(NETWORKS["seq2seq"]())


def histories(lengths, seed=1):
    """Codes of random histories padded to the longest [batch, items, levels]."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(SIZE, (len(lengths), max(lengths), LEVELS), generator=generator)
    for row, length in enumerate(lengths):
        codes[row, length:] = -1
    return codes


def candidates(batch, k, seed=2):
    return torch.randint(SIZE, (batch, k, LEVELS), generator=torch.Generator().manual_seed(seed))


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@torch.no_grad()
def test_steps_equal_teacher_forcing(model):
    """Beams are re-ordered, doubled and dropped at every step: the cache has to follow the parents."""
    encoded = model.encode(histories([5, 2]))
    step, generator = model.step(encoded), torch.Generator().manual_seed(3)
    prefixes = torch.empty(2, 1, 0, dtype=torch.long)
    parents = codes = None
    for level, beams in enumerate((5, 3, 6, 4)):
        log_probs = step(level, parents, codes)
        items = torch.cat([prefixes, torch.zeros(*prefixes.shape[:2], LEVELS - level, dtype=torch.long)], dim=2)
        close(log_probs, model.log_probs(encoded, items)[:, :, level])
        parents = torch.randint(prefixes.shape[1], (2, beams), generator=generator)
        codes = torch.randint(SIZE, (2, beams), generator=generator)
        prefixes = torch.cat([prefixes.gather(1, parents[..., None].expand(-1, -1, level)), codes[..., None]], dim=2)


@torch.no_grad()
def test_beam_scores_are_teacher_forced_scores(model):
    encoded = model.encode(histories([4, 1, 3]))
    beams = beam_search(model.step(encoded), FullTree(LEVELS, SIZE), 3, 12)
    log_probs = model.log_probs(encoded, beams.codes)
    close(beams.scores, log_probs.gather(-1, beams.codes[..., None]).squeeze(-1).sum(-1))


@torch.no_grad()
def test_candidates_do_not_see_each_other(model):
    codes, items = histories([5, 2]), candidates(2, 6)
    for scope in ("level", "all"):
        together = model(codes, items, scope)
        for number in range(6):
            close(together[:, number : number + 1], model(codes, items[:, number : number + 1], scope))


@torch.no_grad()
def test_padding_and_other_rows_change_nothing(model):
    codes, items = histories([5, 2, 1, 4]), candidates(4, 2)
    together = model(codes, items)
    for row, length in enumerate((5, 2, 1, 4)):
        close(together[row], model(codes[row : row + 1, :length], items[row : row + 1])[0])
    wider = torch.cat([codes, torch.full((4, 3, LEVELS), -1)], dim=1)
    close(together, model(wider, items))


@torch.no_grad()
def test_positions_see_only_earlier_codewords(model):
    codes, items = histories([3]), candidates(1, 1)
    before = model(codes, items)
    for level in range(LEVELS):
        changed = items.clone()
        changed[..., level] = (changed[..., level] + 1) % SIZE
        after = model(codes, changed)
        close(after[:, :, : level + 1], before[:, :, : level + 1])
        if level + 1 < LEVELS:
            assert (after[:, :, level + 1] - before[:, :, level + 1]).abs().max() > 1e-4


@torch.no_grad()
def test_the_order_of_the_history_matters(model):
    codes, items = histories([3]), candidates(1, 1)
    assert (model(codes, items) - model(codes.flip(1), items)).abs().max() > 1e-4


@torch.no_grad()
def test_recency_counts_items_from_the_end(seq2seq):
    codes, items = histories([4, 2]), candidates(2, 1)
    before = seq2seq(codes, items)
    for age, seen in ((0, [True, True]), (1, [True, True]), (2, [True, False]), (4, [False, False])):
        changed = copy.deepcopy(seq2seq)
        changed.recency.weight[age] += 1
        moved = (changed(codes, items) - before).abs().amax(dim=(1, 2, 3)) > 1e-4
        assert moved.tolist() == seen, age


@torch.no_grad()
@pytest.mark.parametrize("scope", ["level", "all"])
def test_every_item_is_scored_as_if_alone(model, scope):
    """One pass over the trie gives the teacher-forced score of every ID."""
    codes = torch.randint(SIZE, (30, LEVELS), generator=torch.Generator().manual_seed(5))
    encoded = model.encode(histories([5, 2]))
    tree = Trie.build(codes.numpy(), SIZE)
    scores = score_all(model.step(encoded, scope), tree, 2)[:, tree.leaf_of_item]
    log_probs = model.log_probs(encoded, codes.expand(2, -1, -1), scope)
    numbers = codes + (torch.arange(LEVELS) * SIZE if scope == "all" else 0)
    expected = log_probs.gather(-1, numbers.expand(2, -1, -1)[..., None]).squeeze(-1).sum(-1)
    close(scores, expected)
    few = torch.tensor([[3, 17, 3], [29, 0, 8]])
    close(score_ids(model.step(encoded, scope), codes[few]), expected.gather(1, few))


@torch.no_grad()
def test_scopes(model):
    """Softmax over one level or over all: the same logits, another normaliser."""
    codes, items = histories([3, 2]), candidates(2, 2)
    level, every = model(codes, items), model(codes, items, "all")
    assert every.shape == (2, 2, LEVELS, LEVELS * SIZE)
    close(level.exp().sum(-1), torch.ones(2, 2, LEVELS))
    close(every.exp().sum(-1), torch.ones(2, 2, LEVELS))
    for number in range(LEVELS):
        same_level = every[:, :, number, number * SIZE : (number + 1) * SIZE]
        close(same_level.log_softmax(-1), level[:, :, number])


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[5, 2, 1], [40, 17]])  # the long histories use the logarithmic buckets
@pytest.mark.parametrize("tied", [False, True])
def test_equals_hugging_faces_t5(seq2seq, lengths, tied):
    model = ready(NETWORKS["seq2seq tied"]()) if tied else copy.deepcopy(seq2seq)
    model.recency.weight.zero_()  # T5 has no recencies
    t5 = to_t5(model)
    codes, items = histories(lengths), candidates(len(lengths), 1)
    start = torch.arange(LEVELS) * SIZE + 1
    tokens = torch.where(codes >= 0, codes + start, 0).flatten(1)
    forced = torch.cat([torch.zeros(len(lengths), 1, dtype=torch.long), (items[:, 0] + start)[:, :-1]], dim=1)
    logits = t5(input_ids=tokens, attention_mask=(tokens > 0).long(), decoder_input_ids=forced).logits
    close(model(codes, items, "all")[:, 0], logits[..., 1:].log_softmax(-1))
    level = model(codes, items)[:, 0]
    for number in range(LEVELS):
        rows = slice(1 + number * SIZE, 1 + (number + 1) * SIZE)
        close(level[:, number], logits[:, number, rows].log_softmax(-1))


def test_no_t5_with_recencies_or_texts(seq2seq):
    with pytest.raises(ValueError, match="recencies"):
        to_t5(seq2seq)
    with pytest.raises(ValueError, match="reads texts"):
        to_t5(NETWORKS["seq2seq+text"]())


@torch.no_grad()
def test_tied_codewords_are_scored_by_what_the_history_is_read_by():
    """By hand: an item is read as √d times its codewords' rows, and the first codeword scored by the outer state."""
    torch.manual_seed(0)
    model = ready(NETWORKS["nested tied"]())
    codes, rows = histories([3]), model.embedding.weight
    read = sum(rows[1 + level * SIZE + codes[0, :, level]] for level in range(LEVELS)) * 24**0.5
    close(model.embed_items(codes)[0], read)
    first = model(codes, candidates(1, 1))[0, 0, 0]
    close(first, (model.item_states(codes)[0, -1] @ rows[1 : 1 + SIZE].T).log_softmax(-1))
    assert "head" not in model.state_dict()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_sizes_of_the_presets(backbone):
    network, config, presets = BACKBONES[backbone]
    sizes = {
        name: sum(p.numel() for p in network(config(4, 256, **preset)).parameters()) for name, preset in presets.items()
    }
    assert sizes["demo"] < 1e6
    assert 1.1e6 < sizes["small"] < 1.3e6
    assert 4e6 < sizes["tiger-4m"] < 5e6
    assert 12e6 < sizes["lohrec-13m"] < 14e6
    assert presets["lohrec-13m"]["d_model"] == 384  # the paper's item representations


def test_gradients_reach_every_weight(model):
    log_probs = model(histories([5, 2]), candidates(2, 3))
    loss = -log_probs.diagonal(dim1=-2, dim2=-1).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    model.zero_grad()


def test_shared_prefixes_are_one_node():
    items = torch.tensor([[[1, 2], [1, 3], [1, 2], [4, 2]], [[5, 5], [5, 5], [5, 5], [5, 6]]])
    tree = PrefixTree(items)
    assert tree.tokens.tolist() == [[1, 2, 3, 4, 2], [5, 5, 6, 5, 5]]  # the second row's last two are padding
    assert tree.present.tolist() == [[True] * 5, [True, True, True, False, False]]
    assert tree.depth[0].tolist() == [0, 1, 1, 0, 1]
    assert tree.nodes.tolist() == [[[0, 1], [0, 2], [0, 1], [3, 4]], [[0, 1], [0, 1], [0, 1], [0, 2]]]
    assert tree.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert torch.equal(tree.by_candidate(tree.tokens[..., None])[..., 0], items)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), used=st.integers(1, 4), scope=st.sampled_from(["level", "all"]))
@pytest.mark.parametrize("backbone", NETWORKS)
def test_shared_prefixes_change_neither_scores_nor_gradients(backbone, seed, used, scope):
    """Six candidates of few different codewords, some twice, equal one candidate a history, in training."""
    torch.manual_seed(seed)
    model = NETWORKS[backbone](dropout=0.0).double().train()
    codes, items = histories([5, 2, 1], seed), candidates(3, 6, seed) % used
    together = model(codes, items, scope)
    alone = model(codes.repeat_interleave(6, dim=0), items.flatten(0, 1)[:, None], scope).view_as(together)
    close(together, alone, 1e-6)
    weights = torch.randn(together.shape)
    shared = torch.autograd.grad((together * weights).mean(), model.parameters())
    expected = torch.autograd.grad((alone * weights).mean(), model.parameters())
    for gradient, expected_gradient in zip(shared, expected, strict=True):
        assert gradient.abs().sum() > 0
        close(gradient, expected_gradient, 1e-6)


def test_packing_drops_the_padding_and_nothing_else():
    tokens = torch.tensor([[5, 3, 0], [2, 0, 0]])
    packing, x = Packing(tokens), torch.arange(12.0).view(2, 3, 2)
    packed = packing.pack(x)
    assert packed.tolist() == [[[0.0, 1.0], [2.0, 3.0], [6.0, 7.0]]]
    assert packing.pad(packed).tolist() == [[[0, 1], [2, 3], [0, 0]], [[6, 7], [0, 0], [0, 0]]]
