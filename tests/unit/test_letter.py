"""LETTER's losses, by hand and against loops; what they do to IDs."""

import math

import numpy as np
import pytest
import torch

from distill.runtime.errors import UserError
from distill.semantic_ids import quantisers
from distill.semantic_ids.build import _collaborative
from distill.semantic_ids.config import IDSettings
from distill.semantic_ids.quantisers.letter import Letter, collaborative_loss, diversity_loss, project
from distill.semantic_ids.quantisers.settings import LetterConfig, RQVAEConfig

SMALL = RQVAEConfig(hidden=[16], latent_dim=4, epochs=25, warmup_epochs=5, batch_size=128, learning_rate=2e-2)


def test_collaborative_loss_by_its_definition():
    rng = np.random.default_rng(0)
    quantised, others = rng.normal(size=(2, 5, 3))
    expected = 0.0
    for i in range(5):
        powers = [math.exp(float(quantised[i] @ other)) for other in others]
        expected -= math.log(powers[i] / sum(powers)) / 5
    value = collaborative_loss(torch.from_numpy(quantised), torch.from_numpy(others))
    assert value.item() == pytest.approx(expected)


def test_diversity_loss_by_its_definition():
    """The codeword itself is no candidate; an item whose codeword is alone in its cluster does not count."""
    rng = np.random.default_rng(1)
    words = rng.normal(size=(4, 3))
    codes, positives = [2, 0, 3], [1, 2, -1]
    expected = 0.0
    for code, positive in zip(codes[:2], positives[:2], strict=True):
        powers = {j: math.exp(float(words[code] @ words[j])) for j in range(4) if j != code}
        expected -= math.log(powers[positive] / sum(powers.values())) / 2
    arguments = torch.from_numpy(words), torch.tensor(codes), torch.tensor(positives)
    assert diversity_loss(*arguments).item() == pytest.approx(expected)
    assert diversity_loss(arguments[0], arguments[1], torch.tensor([-1, -1, -1])).item() == 0


def test_positives_share_a_cluster():
    letter = Letter(LetterConfig(diversity=1.0, clusters=3), None, 4, seed=0)
    words = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    letter.cluster(words, 1)
    codes = torch.arange(9)
    for level in (0, 1):
        clusters = letter.clusters[level]
        chosen = letter._positives(level, codes).numpy()
        shared = chosen >= 0
        assert shared.sum() >= 6 and np.array_equal(clusters[chosen[shared]], clusters[shared])
        assert (chosen != codes.numpy()).all()
        assert all((clusters == clusters[code]).sum() == 1 for code in np.flatnonzero(~shared))


def test_projection_keeps_the_principal_components():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(50, 6)) * [9, 5, 1, 0.1, 0.1, 0.1]
    projected = project(vectors, 2)
    assert np.square(projected).mean() == pytest.approx(1)
    correlation = abs(np.corrcoef(projected[:, 0], vectors[:, 0])[0, 1])
    assert correlation > 0.99
    assert project(vectors[:, :2], 4).shape == (50, 4) and not project(np.ones((3, 2)), 2).any()


def test_ids_learn_who_is_bought_together():
    """Texts say nothing, interactions fall into four groups: with the loss, items of a group share first codewords."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), 30)
    texts = rng.normal(size=(120, 8)).astype(np.float32)
    interactions = np.eye(4)[groups] + 0.05 * rng.normal(size=(120, 4))

    def agreement(weight):
        letter = LetterConfig(collaborative=weight)
        codes = quantisers.fit("rqvae", texts, 3, 6, 0, SMALL, letter=letter, collaborative=interactions).encode(texts)
        first = [codes[groups == group, 0] for group in range(4)]
        return np.mean([np.bincount(codes).max() / len(codes) for codes in first])

    assert agreement(20.0) > agreement(0.0) + 0.15


def test_both_losses_train():
    rng = np.random.default_rng(4)
    texts, logged = rng.normal(size=(40, 8)).astype(np.float32), []
    config = RQVAEConfig(hidden=[8], latent_dim=4, epochs=4, warmup_epochs=1)
    letter = LetterConfig(collaborative=0.02, diversity=1e-4, clusters=2)
    quantisers.fit("rqvae", texts, 2, 8, 0, config, progress=lambda *step: logged.append(step[2]), letter=letter,
                   collaborative=rng.normal(size=(40, 3)))  # fmt: skip
    assert "cf" not in logged[0] and all("cf " in note and "div " in note for note in logged[1:])


def test_other_quantisers_have_no_such_losses():
    settings = IDSettings(quantiser="pq", letter=LetterConfig(diversity=0.1))
    with pytest.raises(UserError, match="--letter is for --quantiser rqvae, not pq"):
        _collaborative(None, settings)
