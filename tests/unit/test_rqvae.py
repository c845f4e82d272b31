import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from distill import rqvae
from distill.artifacts import UserError
from distill.rqvae import RQVAE, RQVAEConfig

_spec = importlib.util.spec_from_file_location(
    "rqvae_naive", Path(__file__).parents[1] / "reference" / "rqvae_naive.py"
)
naive = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(naive)

SMALL = RQVAEConfig(
    levels=3,
    codebook_size=8,
    hidden=[16],
    latent_dim=4,
    epochs=40,
    warmup_epochs=20,
    revive_every=10,
    batch_size=64,
    learning_rate=1e-2,
)


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
    return rqvae.train(points, SMALL)


# Sinkhorn


@pytest.mark.parametrize("shape", [(40, 8), (7, 30), (1, 5), (300, 64)])
@pytest.mark.parametrize("epsilon", [0.003, 0.05])
def test_sinkhorn_equals_the_naive_reference(shape, epsilon):
    distances = np.random.default_rng(1).uniform(-1, 1, shape)
    found = rqvae.sinkhorn(torch.tensor(distances), epsilon, 50).numpy()
    np.testing.assert_allclose(found, naive.sinkhorn(distances, epsilon, 50), rtol=1e-6, atol=1e-12)


# The smaller epsilon, the slower: LC-Rec's 50 iterations leave the rows at .003 a little uneven, which argmax forgives.
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.003, 2000), (0.05, 50), (1.0, 50)])
def test_sinkhorn_marginals_are_uniform(epsilon, iterations):
    distances = torch.tensor(np.random.default_rng(2).uniform(-1, 1, (256, 32)))
    found = rqvae.sinkhorn(distances, epsilon, iterations)
    assert (found.sum(0) - 1 / 32).abs().max() < 1e-10
    assert (found.sum(1) - 1 / 256).abs().max() < 1e-4


def test_sinkhorn_rows_converge():
    distances = torch.tensor(np.random.default_rng(3).uniform(-1, 1, (64, 16)))
    found = rqvae.sinkhorn(distances, 0.05, 2000) * 64  # each row a distribution
    assert (found.sum(1) - 1).abs().max() < 1e-4


def test_sinkhorn_stands_extreme_distances():
    distances = torch.zeros(20, 10, dtype=torch.float64)
    distances[:, 1:] = 1e4  # exp(-1e4 / 0.003) is far below what a float64 can hold
    distances[0, 3] = -1e4
    found = rqvae.sinkhorn(distances, 0.003, 50)
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found.numpy(), naive.sinkhorn(distances.numpy(), 0.003, 50), atol=1e-12)


def test_balanced_codes_spread_what_argmin_would_lump():
    rng = np.random.default_rng(4)
    points, words = torch.tensor(rng.normal(size=(160, 3))), torch.tensor(rng.normal(size=(8, 3)) + 2)
    distances = rqvae.squared_distances(points, words)
    lumped = np.bincount(distances.argmin(1).numpy(), minlength=8)
    spread = np.bincount(rqvae.balanced_codes(distances, 0.003, 50).numpy(), minlength=8)
    assert lumped.max() > 50
    assert spread.max() < 35 and spread.min() > 10  # 20 each would be even


# Quantisation and loss


def test_residual_quantisation_by_hand():
    model = RQVAE(2, RQVAEConfig(levels=2, codebook_size=2, hidden=[], latent_dim=2, beta=0.25))
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
    config = RQVAEConfig(levels=3, codebook_size=4, hidden=[5], latent_dim=3, beta=0.25)
    model = RQVAE(6, config).double()
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
    codes = model.encode(points, batch_size=50)
    with torch.no_grad():
        z = model.latents(torch.from_numpy(points))
        seen = model.decoder(model.quantise(z).vectors) * model.scale + model.center
    np.testing.assert_allclose(model.decode(codes), seen.numpy(), atol=1e-5)
    np.testing.assert_array_equal(codes, model.encode(points))
    # The last code is the nearest to what the levels before it leave over.
    distances = rqvae.squared_distances(torch.from_numpy(model.last_residuals(points, codes)), model.codebooks[-1])
    np.testing.assert_array_equal(codes[:, -1], distances.argmin(1).numpy())


def test_training_repeats_and_leaves_the_global_seed_alone(points, model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = rqvae.train(points, SMALL)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(again.encode(points), model.encode(points))


def test_training_reads_memory_maps(points, model, tmp_path):
    np.save(tmp_path / "x.npy", points)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(rqvae.train(mapped, SMALL).encode(mapped), model.encode(points))


def test_fewer_items_than_codewords_and_equal_items():
    x = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    trained = rqvae.train(x, RQVAEConfig(levels=2, codebook_size=16, hidden=[8], epochs=12, warmup_epochs=5))
    codes = trained.encode(x)
    assert len(np.unique(codes, axis=0)) == 3
    words = trained.codebooks[-1].detach().numpy()
    assert rqvae.collision_rate(rqvae.resolve_collisions(codes, trained.last_residuals(x, codes), words)) == 0


def test_dead_codewords_are_revived(points):
    model = RQVAE(10, SMALL)
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
        rqvae.train(points, RQVAEConfig(levels=2, codebook_size=8))
    with pytest.raises(UserError, match="warmup_epochs"):
        rqvae.train(points, RQVAEConfig(epochs=10, warmup_epochs=10))
    broken = points.copy()
    broken[17, 3] = np.nan
    with pytest.raises(UserError, match="item 17 holds NaN"):
        rqvae.train(broken, SMALL)


# Collisions


def test_sinkhorn_parts_a_collision():
    codes = np.array([[0, 0], [0, 0], [1, 0]])
    residuals = np.array([[0.1, 0.0], [0.4, 0.0], [0.0, 0.0]], dtype=np.float32)
    words = np.array([[0.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    found = rqvae.resolve_collisions(codes, residuals, words, unique=False)
    assert found.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert codes.tolist() == [[0, 0], [0, 0], [1, 0]]  # not changed


def test_guarantee_takes_the_nearest_free_code():
    codes = np.array([[3, 0], [3, 0], [3, 1], [4, 0]])
    residuals = np.array([[0.0, 0.0], [0.2, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    words = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    found = rqvae.resolve_collisions(codes, residuals, words, rounds=0)
    assert found.tolist() == [[3, 0], [3, 3], [3, 1], [4, 0]]  # 1 is nearer but taken, 3 is free


def test_equal_items_become_unique_and_keep_their_prefix():
    rng = np.random.default_rng(6)
    codes = np.stack([rng.integers(3, size=60), rng.integers(2, size=60), np.zeros(60, dtype=int)], axis=1)
    words = rng.normal(size=(32, 4)).astype(np.float32)
    residuals = np.repeat(rng.normal(size=(20, 4)), 3, axis=0).astype(np.float32)
    found = rqvae.resolve_collisions(codes, residuals, words)
    np.testing.assert_array_equal(found[:, :-1], codes[:, :-1])
    assert len(np.unique(found, axis=0)) == 60
    assert found.min() >= 0 and found.max() < 32
    np.testing.assert_array_equal(rqvae.resolve_collisions(found, residuals, words), found)


def test_rounds_never_make_it_worse():
    rng = np.random.default_rng(7)
    codes = np.stack([np.zeros(30, dtype=int), rng.integers(12, size=30)], axis=1)
    words, residuals = rng.normal(size=(32, 2)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    found = rqvae.resolve_collisions(codes, residuals, words, unique=False)
    assert rqvae.collision_rate(found) <= rqvae.collision_rate(codes)


def test_a_full_prefix_is_refused():
    codes = np.zeros((5, 3), dtype=int)
    rows, words = np.zeros((5, 2), dtype=np.float32), np.zeros((4, 2), dtype=np.float32)
    with pytest.raises(UserError, match="5 items share the prefix 0-0, but the last level has only 4 codes"):
        rqvae.resolve_collisions(codes, rows, words)


def test_single_level():
    codes = np.zeros((4, 1), dtype=int)
    rng = np.random.default_rng(8)
    rows, words = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    assert sorted(rqvae.resolve_collisions(codes, rows, words)[:, 0]) == [0, 1, 2, 3]


# Files


def test_save_and_load(points, model, tmp_path):
    rqvae.save(model, tmp_path)
    loaded = rqvae.load(tmp_path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(loaded.encode(points), model.encode(points))


def test_load_refuses_damage(model, tmp_path):
    rqvae.save(model, tmp_path)
    weights = tmp_path / "rqvae.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="holds no readable quantiser"):
        rqvae.load(tmp_path)
    with pytest.raises(UserError, match="holds no readable quantiser"):
        rqvae.load(tmp_path / "nowhere")
