from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import rqvae_naive as naive
from threadpoolctl import threadpool_limits

from distill.runtime.errors import UserError
from distill.semantic_ids import quantisers
from distill.semantic_ids.ids import collision_rate
from distill.semantic_ids.quantisers import rqvae
from distill.semantic_ids.quantisers.rqvae import RQVAE
from distill.semantic_ids.quantisers.settings import RQVAEConfig
from distill.semantic_ids.quantisers.sinkhorn import squared_distances

SMALL = RQVAEConfig(
    hidden=[16], latent_dim=4, epochs=40, warmup_epochs=20, revive_every=10, batch_size=64, learning_rate=1e-2
)


def train(x, config=SMALL, levels=3, codebook_size=8):
    return rqvae.fit(x, levels, codebook_size, 0, config)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    coarse, fine = rng.normal(size=(6, 10)), 0.3 * rng.normal(size=(5, 10))
    noise = 0.02 * rng.normal(size=(120, 10))
    return (coarse[rng.integers(6, size=120)] + fine[rng.integers(5, size=120)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def model(points):
    return train(points)


# Quantisation and loss


def test_residual_quantisation_by_hand():
    model = RQVAE(2, 2, 2, RQVAEConfig(hidden=[], latent_dim=2, beta=0.25))
    with torch.no_grad():
        model.codebooks.copy_(torch.tensor([[[0.0, 0.0], [10.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]]))
    found = model.quantise(torch.tensor([[9.0, 1.5], [1.5, 0.0]]))
    # (9, 1.5) -> (10, 0), leaves (-1, 1.5) -> (0, 2); (1.5, 0) -> (0, 0), leaves (1.5, 0) -> (1, 0)
    assert found.codes.tolist() == [[1, 1], [0, 0]]
    assert found.vectors.tolist() == [[10.0, 2.0], [1.0, 0.0]]
    # ‖(-1, 1.5)‖² + ‖(-1, -.5)‖² = 3.25 + 1.25; ‖(1.5, 0)‖² + ‖(.5, 0)‖² = 2.25 + .25; each times 1 + beta
    torch.testing.assert_close(found.loss, torch.tensor([4.5 * 1.25, 2.5 * 1.25]))


def _weights(mlp):
    linears = [layer for layer in mlp if isinstance(layer, torch.nn.Linear)]
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linears]


def test_loss_and_gradient_equal_the_definition():
    torch.manual_seed(0)
    config = RQVAEConfig(hidden=[5], latent_dim=3, beta=0.25)
    model = RQVAE(6, 3, 4, config).double()
    with torch.no_grad():
        model.codebooks.normal_()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.bias.normal_()  # away from the kinks of ReLU
    x = torch.randn(7, 6, dtype=torch.float64)
    loss, _, _ = model.loss(x)
    loss.backward()

    encoder, decoder = _weights(model.encoder), _weights(model.decoder)
    codebooks = [level.copy() for level in model.codebooks.detach().numpy()]
    frozen = (_weights(model.encoder), [level.copy() for level in codebooks])

    def value():
        return naive.loss(x.numpy(), encoder, decoder, codebooks, config.beta, frozen)

    assert loss.item() == pytest.approx(value(), rel=1e-12)
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    pairs = [(gradients["codebooks"][level], codebook) for level, codebook in enumerate(codebooks)]
    for half, weights in (("encoder", encoder), ("decoder", decoder)):
        for i, (matrix, bias) in enumerate(weights):
            pairs += [(gradients[f"{half}.{2 * i}.weight"], matrix), (gradients[f"{half}.{2 * i}.bias"], bias)]
    for gradient, array in pairs:
        for place in np.ndindex(array.shape):
            kept, step = array[place], 1e-6
            array[place] = kept + step
            above = value()
            array[place] = kept - step
            below = value()
            array[place] = kept
            assert gradient[place] == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)


# Training


def test_training_learns(points, model):
    codes = model.encode(points)
    assert codes.shape == (120, 3) and codes.min() >= 0 and codes.max() < 8
    spread = np.square(points - points.mean(0)).sum()
    errors = [np.square(points - model.decode(codes[:, :levels])).sum() / spread for levels in (1, 2, 3)]
    assert errors[2] < errors[1] < errors[0] < 0.7
    assert errors[2] < 0.2


def test_decoded_codes_are_what_the_decoder_saw(points, model):
    codes = model.encode(points)
    with torch.no_grad():
        z = model.latents(torch.from_numpy(points))
        seen = model.decoder(model.quantise(z).vectors) * model.scale + model.center
    np.testing.assert_allclose(model.decode(codes), seen.numpy(), atol=1e-5)
    np.testing.assert_array_equal(codes, model.encode(points))
    # Each code is the nearest to what the levels before it leave over.
    for level in range(3):
        target = torch.from_numpy(model.target(points, codes, level))
        distances = squared_distances(target, torch.from_numpy(model.words(level)))
        np.testing.assert_array_equal(codes[:, level], distances.argmin(1).numpy())


def test_training_repeats_and_leaves_the_global_seed_alone(points, model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = train(points)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(again.encode(points), model.encode(points))


def test_training_reads_memory_maps(points, model, tmp_path):
    np.save(tmp_path / "x.npy", points)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(train(mapped).encode(mapped), model.encode(points))


def test_fewer_items_than_codewords_and_equal_items():
    x = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    trained = train(x, RQVAEConfig(hidden=[8], epochs=12, warmup_epochs=5), levels=2, codebook_size=16)
    assert collision_rate(trained.encode(x)) == 0.5


@pytest.mark.parametrize("levels", ["all", "last"])
def test_balance_on_the_levels_asked_for(points, levels):
    rng = torch.Generator().manual_seed(0)
    balanced = RQVAE(10, 2, 4, replace(SMALL, sinkhorn_levels=levels))
    with torch.no_grad():
        balanced.codebooks.copy_(
            torch.randn(2, 4, 4, generator=rng) + 3
        )  # to one side: the nearest is nearly always one
    z = torch.randn(200, 4, generator=rng)
    counts = [torch.bincount(codes, minlength=4) for codes in balanced.quantise(z, balanced=True).codes.T]
    nearest = torch.bincount(squared_distances(z, balanced.codebooks[0].detach()).argmin(1), minlength=4)
    assert nearest.max() > 120
    assert counts[1].max() < 75
    assert counts[0].max() < 75 if levels == "all" else torch.equal(counts[0], nearest)


def test_dead_codewords_are_revived(points):
    model = RQVAE(10, 3, 8, SMALL)
    with torch.no_grad():
        model.codebooks[0] += 100.0
        model.codebooks[0, 0] = 0.0
    used = np.zeros((3, 8), dtype=np.int64)
    used[0, 0] = 120
    used[1:] = 1
    rqvae._revive(model, points, used, np.random.default_rng(0))
    assert len(np.unique(model.encode(points)[:, 0])) >= 4


def test_refuses_what_cannot_work(points):
    with pytest.raises(UserError, match="120 items do not fit into 64 codes"):
        quantisers.fit("rqvae", points, 2, 8)
    with pytest.raises(UserError, match="warmup_epochs"):
        train(points, RQVAEConfig(epochs=10, warmup_epochs=10))
    with pytest.raises(UserError, match=r"rqvae\.batch_size is 0"):
        train(points, RQVAEConfig(batch_size=0))
