import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import quantisers_naive, rqvae_naive

from distill.runtime.errors import UserError
from distill.semantic_ids import quantisers
from distill.semantic_ids.collisions import move_surplus, resolve_collisions
from distill.semantic_ids.ids import collision_rate, keys
from distill.semantic_ids.quantisers.codebooks import kmeans
from distill.semantic_ids.quantisers.settings import KMeansConfig, RQVAEConfig
from distill.semantic_ids.quantisers.sinkhorn import balanced_codes, sinkhorn, squared_distances

FAST = RQVAEConfig(hidden=[16], latent_dim=4, epochs=20, warmup_epochs=10, batch_size=64, learning_rate=1e-2)
NAMES = ("rqvae", "rkmeans", "pq")


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    coarse, fine = rng.normal(size=(6, 10)), 0.3 * rng.normal(size=(5, 10))
    noise = 0.1 * rng.normal(size=(150, 10))
    return (5 + coarse[rng.integers(6, size=150)] + fine[rng.integers(5, size=150)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(points):
    return {name: quantisers.fit(name, points, 3, 8, rqvae=FAST) for name in NAMES}


# Sinkhorn


@pytest.mark.parametrize("shape", [(40, 8), (7, 30), (1, 5), (300, 64)])
@pytest.mark.parametrize("epsilon", [0.003, 0.05])
def test_sinkhorn_equals_the_naive_reference(shape, epsilon):
    distances = np.random.default_rng(1).uniform(-1, 1, shape)
    expected = rqvae_naive.rounded(rqvae_naive.sinkhorn(distances, epsilon, 50))
    np.testing.assert_allclose(sinkhorn(torch.tensor(distances), epsilon, 50).numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(256, 32), (1024, 256), (10, 64)])
@pytest.mark.parametrize("epsilon", [0.003, 0.05, 1.0])
def test_sinkhorn_marginals_are_uniform_after_50_iterations(n, k, epsilon):
    found = sinkhorn(torch.tensor(np.random.default_rng(2).uniform(-1, 1, (n, k))), epsilon, 50)
    assert (found >= 0).all()
    assert (found.sum(0) * k - 1).abs().max() < 1e-4  # of each marginal's own size
    assert (found.sum(1) * n - 1).abs().max() < 1e-4


def test_rounding_vanishes_where_sinkhorn_has_converged():
    distances = np.random.default_rng(3).uniform(-1, 1, (64, 16))
    plain = rqvae_naive.sinkhorn(distances, 0.05, 3000)
    np.testing.assert_allclose(sinkhorn(torch.tensor(distances), 0.05, 3000).numpy(), plain, atol=1e-8)


def test_sinkhorn_works_on_many_matrices_at_once():
    distances = torch.tensor(np.random.default_rng(4).uniform(-1, 1, (3, 5, 9)))
    for one, found in zip(distances, sinkhorn(distances, 0.01, 50), strict=True):
        torch.testing.assert_close(found, sinkhorn(one, 0.01, 50))
    codes = balanced_codes(distances * 7 + 3, 0.01, 50)
    assert torch.equal(codes[1], balanced_codes(distances[1] * 7 + 3, 0.01, 50))


def test_sinkhorn_stands_extreme_distances():
    distances = torch.zeros(20, 10, dtype=torch.float64)
    distances[:, 1:] = 1e4  # exp(-1e4 / 0.003) is far below what a float64 can hold
    distances[0, 3] = -1e4
    found = sinkhorn(distances, 0.003, 50)
    assert torch.isfinite(found).all()
    assert (found.sum(0) * 10 - 1).abs().max() < 1e-4 and (found.sum(1) * 20 - 1).abs().max() < 1e-4


def test_balanced_codes_spread_what_argmin_would_lump():
    rng = np.random.default_rng(4)
    points, words = torch.tensor(rng.normal(size=(160, 3))), torch.tensor(rng.normal(size=(8, 3)) + 2)
    distances = squared_distances(points, words)
    lumped = np.bincount(distances.argmin(1).numpy(), minlength=8)
    spread = np.bincount(balanced_codes(distances, 0.003, 50).numpy(), minlength=8)
    assert lumped.max() > 50
    assert spread.max() < 35 and spread.min() > 10  # 20 each would be even


# Every quantiser


@pytest.mark.parametrize("name", NAMES)
def test_codes_decode_to_what_was_encoded(points, fitted, name):
    model = fitted[name]
    codes = model.encode(points)
    assert codes.shape == (150, 3) and codes.min() >= 0 and codes.max() < 8
    assert (model.name, model.levels, model.codebook_size, model.input_dim) == (name, 3, 8, 10)
    variance = np.square(points - points.mean(0)).sum()
    errors = [np.square(points - model.decode(codes[:, : level + 1])).sum() / variance for level in range(3)]
    assert errors[2] < errors[0] and errors[2] < 0.45
    for level in range(3):  # a code is the nearest codeword to what its level has to quantise
        distances = squared_distances(*map(torch.from_numpy, (model.target(points, codes, level), model.words(level))))
        best = distances.gather(1, torch.from_numpy(codes[:, level : level + 1]))
        torch.testing.assert_close(best[:, 0], distances.min(1).values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["rkmeans", "pq"])
def test_additive_codebooks(points, fitted, name):
    model = fitted[name]
    words = np.stack([model.words(level) for level in range(3)])
    codes = model.encode(points)
    np.testing.assert_array_equal(codes, quantisers_naive.residual_codes(points, model.center, words))
    summed = model.center + sum(words[level][codes[:, level]] for level in range(3))
    np.testing.assert_allclose(model.decode(codes), summed, atol=1e-5)  # codes → vector …
    # … and its own codes' vector comes back to itself where the levels are independent
    if name == "pq":
        np.testing.assert_array_equal(model.encode(summed), codes)


def test_levels_of_a_product_quantiser_have_no_order(fitted):
    words = [fitted["pq"].words(level) for level in range(3)]
    for one in range(3):
        for other in range(one):
            np.testing.assert_allclose(words[one] @ words[other].T, 0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_codes_and_files_keep_them(points, fitted, name, tmp_path):
    codes = fitted[name].encode(points)
    np.testing.assert_array_equal(quantisers.fit(name, points, 3, 8, rqvae=FAST).encode(points), codes)
    quantisers.save(fitted[name], tmp_path)
    np.testing.assert_array_equal(quantisers.load(tmp_path).encode(points), codes)
    weights = tmp_path / "quantiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="holds no readable quantiser"):
        quantisers.load(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_a_memory_map_is_enough_to_train(points, name, tmp_path):
    np.save(tmp_path / "x.npy", points)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = quantisers.fit(name, mapped, 3, 8, rqvae=FAST, sample=60)
    assert model.encode(mapped).shape == (150, 3)
    whole = quantisers.fit(name, mapped, 3, 8, rqvae=FAST)
    assert not np.array_equal(model.encode(mapped), whole.encode(mapped))


@pytest.mark.parametrize("name", NAMES)
def test_fewer_items_than_codewords_and_equal_items(name):
    x = np.repeat(np.eye(3, 8, dtype=np.float32), 2, axis=0)
    model = quantisers.fit(name, x, 2, 16, rqvae=FAST)
    codes = model.encode(x)
    np.testing.assert_array_equal(codes[::2], codes[1::2])
    found = resolve_collisions(codes, lambda rows: model.target(x[rows], codes[rows], 1), model.words(1))
    assert collision_rate(found) == 0


def test_balanced_kmeans_uses_its_codewords_evenly():
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(size=(380, 6)) * 0.1, rng.normal(size=(20, 6)) * 20]).astype(np.float32)

    def perplexity(config):
        words = torch.from_numpy(kmeans(x, 16, np.random.default_rng(0), config))
        share = np.bincount(squared_distances(torch.from_numpy(x), words).argmin(1).numpy(), minlength=16) / len(x)
        return np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())

    assert perplexity(KMeansConfig(balanced_rounds=0)) < 3  # nearly all codewords go to the 20 far points
    assert perplexity(KMeansConfig()) > 5


# Collisions


def by_index(residuals):
    return lambda rows: residuals[rows]


def test_sinkhorn_parts_a_collision():
    codes = np.array([[0, 0], [0, 0], [1, 0]])
    residuals = np.array([[0.1, 0.0], [0.4, 0.0], [0.0, 0.0]], dtype=np.float32)
    words = np.array([[0.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    found = resolve_collisions(codes, by_index(residuals), words, unique=False)
    assert found.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert codes.tolist() == [[0, 0], [0, 0], [1, 0]]  # not changed


def test_guarantee_takes_the_nearest_free_code():
    codes = np.array([[3, 0], [3, 0], [3, 1], [4, 0]])
    residuals = np.array([[0.0, 0.0], [0.2, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    words = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    found = resolve_collisions(codes, by_index(residuals), words, rounds=0)
    assert found.tolist() == [[3, 0], [3, 3], [3, 1], [4, 0]]  # 1 is nearer but taken, 3 is free


def test_fixed_items_keep_their_codes_even_where_another_is_nearer():
    codes = np.array([[3, 0], [3, 0], [3, 1]])
    residuals = np.array([[0.9, 0.0], [0.0, 0.0], [5.0, 0.0]], dtype=np.float32)
    words = np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    fixed = np.array([True, False, True])
    found = resolve_collisions(codes, by_index(residuals), words, fixed=fixed)
    assert found.tolist() == [[3, 0], [3, 3], [3, 1]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_resolution_is_unique_and_touches_only_last_codes(data):
    n, levels, size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3)), data.draw(st.integers(2, 9))
    codes = data.draw(arrays(np.int64, (n, levels), elements=st.integers(0, size - 1)))
    fixed = data.draw(arrays(bool, n)) & (np.unique(keys(codes), return_index=True)[1][keys(codes)] == np.arange(n))
    residuals = np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32)
    words = np.random.default_rng(size).normal(size=(size, 2)).astype(np.float32)
    too_many = np.bincount(keys(codes[:, :-1])).max() > size
    if too_many:
        with pytest.raises(UserError, match=f"but the last level has only {size} codes"):
            resolve_collisions(codes, by_index(residuals), words, fixed=fixed)
        return
    found = resolve_collisions(codes, by_index(residuals), words, fixed=fixed)
    np.testing.assert_array_equal(found[:, :-1], codes[:, :-1])
    np.testing.assert_array_equal(found[fixed], codes[fixed])
    assert len(np.unique(found, axis=0)) == n and found.min() >= 0 and found.max() < size
    np.testing.assert_array_equal(resolve_collisions(found, by_index(residuals), words), found)


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(6)
    codes = np.stack([rng.integers(9, size=200), rng.integers(4, size=200), rng.integers(3, size=200)], axis=1)
    residuals, words = (rng.normal(size=(count, 4)).astype(np.float32) for count in (200, 32))
    whole = resolve_collisions(codes, by_index(residuals), words, rounds=0)
    monkeypatch.setattr("distill.semantic_ids.collisions.CHUNK", 7)
    np.testing.assert_array_equal(resolve_collisions(codes, by_index(residuals), words, rounds=0), whole)
    assert collision_rate(whole) == 0


def test_rounds_never_make_it_worse():
    rng = np.random.default_rng(7)
    codes = np.stack([np.zeros(30, dtype=int), rng.integers(12, size=30)], axis=1)
    words, residuals = rng.normal(size=(32, 2)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    found = resolve_collisions(codes, by_index(residuals), words, unique=False)
    assert collision_rate(found) < collision_rate(codes)


def test_a_full_prefix_is_refused():
    codes = np.zeros((5, 3), dtype=int)
    rows, words = np.zeros((5, 2), dtype=np.float32), np.zeros((4, 2), dtype=np.float32)
    with pytest.raises(UserError, match="5 items share the prefix 0-0, but the last level has only 4 codes"):
        resolve_collisions(codes, by_index(rows), words)
    assert resolve_collisions(codes, by_index(rows), words, unique=False).shape == (5, 3)


def test_the_surplus_of_a_full_prefix_moves_to_the_next_nearest():
    codes = np.array([[0, 0, 0]] * 4 + [[0, 1, 0], [0, 1, 1], [5, 2, 0]])
    at = {1: np.array([[0.0], [0.4], [0.3], [0.1], [1.0], [1.0], [2.0]]), 2: np.zeros((7, 1))}
    books = {1: np.array([[0.0], [1.0], [2.0]]), 2: np.array([[1.0], [0.5], [0.1]])}
    found = move_surplus(codes, lambda rows, own, level: at[level][rows], books.get)
    # one of four must go: item 1 is nearest to the next prefix, and its last code is the nearest again
    assert found.tolist() == [[0, 0, 0], [0, 1, 2], [0, 0, 0], [0, 0, 0], *codes[4:].tolist()]
    fixed = np.array([False, True, False, False, False, False, False])
    found = move_surplus(codes, lambda rows, own, level: at[level][rows], books.get, fixed)
    assert found[2].tolist() == [0, 1, 2] and found[1].tolist() == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_relief_and_resolution_make_room_for_all(data):
    size, n = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 16))
    codes = data.draw(arrays(np.int64, (n, 3), elements=st.integers(0, size - 1)))
    x = np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32)
    words = np.random.default_rng(size).normal(size=(3, size, 2)).astype(np.float32)

    def target(rows, own, level):
        return x[rows] - sum((words[one][own[:, one]] for one in range(level)), np.zeros((len(rows), 2), np.float32))

    if np.bincount(codes[:, 0]).max() > size**2:
        with pytest.raises(UserError, match="share the prefix"):
            move_surplus(codes, target, lambda level: words[level])
        return
    moved = move_surplus(codes, target, lambda level: words[level])
    crowded = np.bincount(keys(codes[:, :2]))[keys(codes[:, :2])] > size
    np.testing.assert_array_equal(moved[~crowded], codes[~crowded])
    np.testing.assert_array_equal(moved[:, 0], codes[:, 0])
    found = resolve_collisions(moved, lambda rows: target(rows, moved[rows], 2), words[2])
    assert collision_rate(found) == 0
