"""Features of several layers: the student's layers against naive passes, and the layers that a teacher has."""

from types import SimpleNamespace

import pytest
import torch
from student_shop import FEATURES, LEVELS, SIZE
from tiny_llms import NETWORKS, WORDS, checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig

from distill.labels.config import Config, check
from distill.labels.index_file import read_index
from distill.labels.schema import write_index
from distill.runtime.errors import UserError
from distill.teachers.export_inputs import resolve_layers
from student.models import large
from student.models.causal import Causal, CausalConfig, Positions
from student.models.layers import compared_layers, history_tokens


def test_compared_layers_by_hand():
    assert compared_layers(1, 5) == (5,)
    assert compared_layers(2, 5) == (2, 5)
    assert compared_layers(3, 3) == (1, 2, 3)
    assert compared_layers(4, 30) == (7, 15, 22, 30)
    with pytest.raises(UserError, match="states of 3 layers of the teacher, and this student has 2"):
        compared_layers(3, 2)


def project(head, states):
    """Apply the map of each layer to its states [n, levels, d_model], written out."""
    maps = head.weight.split(FEATURES)
    return torch.stack([each @ weight.T for each, weight in zip(states, maps, strict=True)], dim=2)


def example():
    """A history of two items and its target."""
    codes = torch.randint(SIZE, (1, 3, LEVELS), generator=torch.Generator().manual_seed(1))
    return codes, codes[:, :2], codes[:, 2:]


POSITIONS = Positions(torch.tensor([0]), torch.tensor([2]))


def test_a_causal_students_guesses_are_of_the_states_before_each_codeword():
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_ff": 12, "heads": 2, "d_head": 4, "layers": 5, "dropout": 0.0}
    model = Causal(CausalConfig(LEVELS, SIZE, features=FEATURES, feature_layers=2, **sizes)).double()
    codes, history, target = example()
    x, states = model.embedding(history_tokens(codes, SIZE)), []
    for layer in model.layers:
        x, _, _ = layer(x, model.causal_bias(x.shape[1], model.bias))
        states.append(x)
    before = slice(2 * LEVELS - 1, 3 * LEVELS - 1)
    expected = project(model.feature_head, [states[1][:, before], model.norm(states[4])[:, before]])
    model(history, target)
    torch.testing.assert_close(model.take_features(), expected)
    model(codes, None, "level", POSITIONS)
    torch.testing.assert_close(model.take_features(), expected)
    model.eval()(history, target)
    assert model.take_features() is None


def test_a_large_students_guesses_are_of_the_language_models_states(tmp_path):
    """The hidden states as Transformers returns them; number 0 are the embedded tokens."""
    ids = SimpleNamespace(levels=LEVELS, codebook_size=SIZE, tokens=lambda: CODEWORDS)
    folder = checkpoint(tmp_path / "base", NETWORKS["llama"], CODEWORDS)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model = large.load(folder, ids, 20, features=FEATURES, feature_layers=2).double().train()
    codes, history, target = example()
    tokens = torch.cat([torch.tensor([0]), (codes + len(WORDS) + torch.arange(LEVELS) * SIZE).flatten()[:-1]])
    states = plain(input_ids=tokens[None], output_hidden_states=True).hidden_states[1:]
    assert len(states) == 2
    expected = project(model.feature_head, [each[:, -LEVELS:] for each in states])
    for inputs in ((history, target), (codes, None, "level", POSITIONS)):
        model(*inputs)
        guesses = model.take_features()
        torch.testing.assert_close(guesses, expected, rtol=0, atol=1e-5)
    guesses.sum().backward()
    assert model.trunk.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


CODEWORDS = [f"<{level}_{code}>" for level in "abc" for code in range(SIZE)]


def teacher_of(folder, **config):
    folder.mkdir()
    LlamaConfig(**config).save_pretrained(folder)
    return SimpleNamespace(folder=folder)


def test_layers_of_a_teacher(tmp_path):
    teachers = [teacher_of(tmp_path / "a", num_hidden_layers=6)]
    assert resolve_layers([-1], []) == resolve_layers([-1], teachers) == [-1]
    assert resolve_layers([-1, 2, -3], teachers) == [2, 4, 6]
    other = teacher_of(tmp_path / "b", num_hidden_layers=4)
    assert resolve_layers([-4], [other]) == [1]
    assert resolve_layers([2], [*teachers, other]) == [2]
    with pytest.raises(UserError, match=r"are \[1, 6\] of .*a, \[1, 4\] of .*b"):
        resolve_layers([1, -1], [*teachers, other])
    for layers, message in [
        ([7], "has no layer 7: --feature_layers are 1 to 6, or -1"),
        ([0, 1], "has no layer 0"),
        ([-7], "has no layer -7"),
        ([], "is asked for no layer"),
        ([6, -1], "names a layer of .*a .6 layers. twice"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve_layers(layers, teachers)


def test_layers_without_features_are_refused():
    with pytest.raises(UserError, match="say by how many numbers: --features 64"):
        check(Config(feature_layers=[1, -1]))


@pytest.mark.parametrize("layers", [[], [0], [2, 1], [1, 1], "1", [1.0], list(range(1, 40_000))])
def test_a_bad_list_of_layers_in_the_index(tmp_path, layers):
    facts = {"levels": 2, "codebook_size": 4, "scope": "level", "encoding": "u8", "keep": 2, "features": 2}
    shard = {"file": "00000.parquet", "rows": 3, "sha256": "0"}
    write_index(tmp_path, [shard], **facts, feature_layers=[3, 4])
    assert read_index(tmp_path)["feature_layers"] == [3, 4]
    write_index(tmp_path, [shard], **facts, feature_layers=layers)
    with pytest.raises(UserError, match="is damaged: feature_layers is"):
        read_index(tmp_path)
