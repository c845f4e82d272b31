"""RQ-VAE: an embedding becomes a few codes, coarse to fine (paper 2.2; LC-Rec, arXiv 2311.09049, section 3.1).

`z = encoder(x)` is quantised in residual steps: level d takes the codeword nearest to what the levels before it left
over. The decoder sees the sum of the codewords. `train` fits the model, `resolve_collisions` gives every item an ID of
its own afterwards, `save` and `load` keep the model as safetensors and JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from distill.artifacts import UserError, write_json

WEIGHTS, SETTINGS = "rqvae.safetensors", "rqvae.json"
MAX_LEVELS = 8  # one letter a level, a to h
KMEANS_SAMPLES = 64  # per codeword; more only costs time
SMALL_STEP = 1 << 19  # distances a step, below which one thread is enough
Progress = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class RQVAEConfig:
    """Settings of the quantiser."""

    levels: int = 4
    """Codes of an item."""
    codebook_size: int = 256
    """Codewords of a level (paper: 256)."""
    hidden: list[int] = field(default_factory=lambda: [512, 256, 128, 64])
    """Hidden sizes of the encoder; the decoder mirrors them (LC-Rec: 2048, 1024, 512, 256, 128, 64)."""
    latent_dim: int = 32
    """Size of the codewords."""
    beta: float = 0.25
    """Weight of the commitment term."""
    epochs: int = 1000
    """Passes over the items (LC-Rec: 5,000 to 10,000)."""
    warmup_epochs: int = 100
    """Epochs, of those, in which the autoencoder learns without quantisation, so that k-means starts from a latent
    space that means something; 0 starts it on the untrained encoder, as LC-Rec does."""
    batch_size: int = 1024
    """Items a step."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    sinkhorn_epsilon: float = 0.003
    """Entropy of the balanced assignment on the last level; 0 switches it off."""
    sinkhorn_iterations: int = 50
    """Sinkhorn-Knopp iterations."""
    revive_every: int = 20
    """Epochs between two revivals of codewords that nothing chose; 0 switches it off."""
    seed: int = 0
    """Of the weights, the order of the batches and k-means."""


class Quantised(NamedTuple):
    """What `RQVAE.quantise` found.

    Attributes:
        codes: [n, levels].
        vectors: sum of the codewords [n, latent_dim]; no gradient to z.
        loss: codebook and commitment terms, summed over levels and dimensions [n].
    """

    codes: Tensor
    vectors: Tensor
    loss: Tensor


class RQVAE(nn.Module):
    """MLP autoencoder with a residual quantiser between its halves.

    Inputs are centred and brought to unit mean variance by statistics kept with the weights, so that one set of loss
    weights fits embeddings of any scale; reconstructions come back on the input's scale.

    Args:
        input_dim: size of an embedding.
        config: settings.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, input_dim: int, config: RQVAEConfig):
        super().__init__()
        self.input_dim, self.config = input_dim, config
        sizes = [input_dim, *config.hidden, config.latent_dim]
        self.encoder, self.decoder = _mlp(sizes), _mlp(sizes[::-1])
        self.codebooks = nn.Parameter(torch.randn(config.levels, config.codebook_size, config.latent_dim) * 0.1)
        self.register_buffer("center", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(()))

    def standardise(self, x: Tensor) -> Tensor:
        """Embeddings [n, input_dim] on the scale that the networks see."""
        return (x - self.center) / self.scale

    def latents(self, x: Tensor) -> Tensor:
        """z [n, latent_dim] of embeddings [n, input_dim]."""
        return self.encoder(self.standardise(x))

    def quantise(self, z: Tensor, balanced: bool = False) -> Quantised:
        """Residual quantisation: `c_d = argmin ‖r_d − e‖`, `r_{d+1} = r_d − e_{c_d}`, `r_0 = z` (paper 2.2).

        The loss is `Σ_d ‖sg[r_d] − e‖² + β‖r_d − sg[e]‖²`. Residuals pass gradients to z at every level and to no
        codeword: a codeword learns from its own term only.

        Args:
            z: [n, latent_dim].
            balanced: assign the last level by Sinkhorn, each codeword an equal share (LC-Rec's uniform semantic
                mapping), instead of the nearest.
        """
        residual, total = z, torch.zeros_like(z)
        loss = z.new_zeros(len(z))
        codes = []
        for level, codebook in enumerate(self.codebooks):
            distances = squared_distances(residual.detach(), codebook.detach())
            if balanced and level == self.config.levels - 1:
                code = balanced_codes(distances, self.config.sinkhorn_epsilon, self.config.sinkhorn_iterations)
            else:
                code = distances.argmin(dim=1)
            word = codebook[code]
            loss = loss + (residual.detach() - word).square().sum(1)
            loss = loss + self.config.beta * (residual - word.detach()).square().sum(1)
            total = total + word.detach()
            residual = residual - word.detach()
            codes.append(code)
        return Quantised(torch.stack(codes, dim=1), total, loss)

    def loss(self, x: Tensor, balanced: bool = False) -> tuple[Tensor, dict[str, Tensor], Quantised]:
        """`‖x − x̂‖² + Σ_d …`, mean over the items (paper 2.2), its two parts, and the quantisation.

        The reconstruction term is measured on the standardised input.

        Args:
            x: [n, input_dim].
            balanced: see `quantise`.
        """
        x = self.standardise(x)
        z = self.encoder(x)
        found = self.quantise(z, balanced)
        straight_through = z + (found.vectors - z).detach()
        reconstruction = (x - self.decoder(straight_through)).square().sum(1).mean()
        quantisation = found.loss.mean()
        return reconstruction + quantisation, {"recon": reconstruction, "quant": quantisation}, found

    @torch.no_grad()
    def encode(self, x: np.ndarray, batch_size: int = 8192) -> np.ndarray:
        """Codes [n, levels] (int64) of embeddings [n, input_dim]; each level the nearest codeword."""
        return np.concatenate(
            [self.quantise(self.latents(rows)).codes.cpu().numpy() for rows in self._rows(x, batch_size)]
        )

    @torch.no_grad()
    def last_residuals(self, x: np.ndarray, codes: np.ndarray, batch_size: int = 8192) -> np.ndarray:
        """What the last level has to quantise, given the codes before it [n, latent_dim] (float32)."""
        out, start = [], 0
        for rows in self._rows(x, batch_size):
            prefix = torch.as_tensor(codes[start : start + len(rows), :-1], device=rows.device)
            out.append((self.latents(rows) - self._sum(prefix)).cpu().numpy())
            start += len(rows)
        return np.concatenate(out)

    @torch.no_grad()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Embeddings [n, input_dim] (float32) that the codes [n, up to levels] stand for; fewer levels are coarser."""
        vectors = self._sum(torch.as_tensor(codes, device=self.codebooks.device))
        return (self.decoder(vectors) * self.scale + self.center).cpu().numpy()

    def _sum(self, codes: Tensor) -> Tensor:
        total = self.codebooks.new_zeros(len(codes), self.config.latent_dim)
        for level in range(codes.shape[1]):
            total = total + self.codebooks[level][codes[:, level]]
        return total

    def _rows(self, x: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(x), batch_size):
            yield _tensor(x[start : start + batch_size], self.codebooks)


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        linear = nn.Linear(before, after)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if i < len(sizes) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _tensor(x: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(x)).to(like.device, like.dtype)  # a copy: memory maps are read-only


def squared_distances(x: Tensor, codebook: Tensor) -> Tensor:
    """`‖x − e‖²` of every vector [n, d] and codeword [k, d]: [n, k], never below 0."""
    products = x @ codebook.T
    return (x.square().sum(1, keepdim=True) - 2 * products + codebook.square().sum(1)).clamp_min(0)


@torch.no_grad()
def sinkhorn(distances: Tensor, epsilon: float = 0.003, iterations: int = 50) -> Tensor:
    """Balanced soft assignment of n vectors to k codewords: entropic optimal transport between uniform marginals.

    Each iteration scales rows to 1/n, then columns to 1/k (Cuturi 2013; LC-Rec 3.1.2). Columns are exact in the
    result, rows as far as the iterations go. The scaling vectors are folded into log potentials before they leave the
    range of float64 (Schmitzer 2019), so that it is as safe as working with logarithms and much faster.

    Args:
        distances: [n, k], any scale; LC-Rec centres them to [−1, 1] first, see `balanced_codes`.
        epsilon: entropy weight, in units of the distances.
        iterations: of rows and columns.

    Returns:
        float64 [n, k], sums to 1.
    """
    n, k = distances.shape
    scores = distances.double() / -epsilon
    rows, columns = scores.new_zeros(n), scores.new_zeros(k)  # log potentials
    kernel = None
    for _ in range(iterations):
        if kernel is not None:
            new_u = 1 / (n * (kernel @ v))  # noqa: F821 - v is set together with kernel
            new_v = 1 / (k * (kernel.T @ new_u))
            largest = torch.maximum(new_u.max(), new_v.max())
            smallest = torch.minimum(new_u.min(), new_v.min())
            if bool((largest < 1e100) & (smallest > 1e-100)):  # false for inf and NaN as well
                u, v = new_u, new_v
                continue
            rows, columns = rows + u.log(), columns + v.log()
        rows = -torch.logsumexp(scores + columns, dim=1) - np.log(n)
        columns = -torch.logsumexp(scores + rows[:, None], dim=0) - np.log(k)
        kernel = (scores + rows[:, None] + columns).exp()
        u, v = scores.new_ones(n), scores.new_ones(k)
    return kernel * u[:, None] * v


def balanced_codes(distances: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes [n] by Sinkhorn's assignment of distances [n, k], brought to [−1, 1] as in LC-Rec."""
    low, high = distances.min(), distances.max()
    centred = (distances - (high + low) / 2) / ((high - low) / 2 + 1e-5)
    return sinkhorn(centred, epsilon, iterations).argmax(dim=1)


def check(n_items: int, config: RQVAEConfig) -> None:
    """Refuse settings that cannot work.

    Raises:
        UserError: more items than codes, or a number out of range.
    """
    if not 1 <= config.levels <= MAX_LEVELS:
        raise UserError(f"levels is {config.levels}; it must be from 1 to {MAX_LEVELS}.")
    if not 2 <= config.codebook_size <= 32767:
        raise UserError(f"codebook_size is {config.codebook_size}; it must be from 2 to 32767.")
    for name in ("epochs", "batch_size", "latent_dim", "sinkhorn_iterations"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    if config.warmup_epochs >= config.epochs:
        raise UserError(f"warmup_epochs ({config.warmup_epochs}) must be fewer than epochs ({config.epochs}).")
    if any(size < 1 for size in config.hidden):
        raise UserError(f"hidden is {config.hidden}; every size must be at least 1.")
    codes = config.codebook_size**config.levels
    if n_items > codes:
        raise UserError(
            f"{n_items} items do not fit into {codes} codes ({config.levels} levels of {config.codebook_size}). "
            "Raise codebook_size or levels."
        )


def train(x: np.ndarray, config: RQVAEConfig, progress: Progress | None = None, device: str = "cpu") -> RQVAE:
    """Fit an RQ-VAE; the same inputs and seed on the same machine give the same model.

    Args:
        x: embeddings [n, dim], in memory or a memory map: batches are copied, the whole never.
        config: settings.
        progress: called after every epoch with its number (from 1) and the mean losses.
        device: where to train.

    Raises:
        UserError: settings that cannot work (`check`), or embeddings that are not finite.
    """
    check(len(x), config)
    small = device == "cpu" and min(len(x), config.batch_size) * config.codebook_size <= SMALL_STEP
    with _one_thread() if small else contextlib.nullcontext():
        return _train(x, config, progress, device)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Steps of a millisecond: threads gain little, and where cores are shared, their barriers cost a hundredfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(x: np.ndarray, config: RQVAEConfig, progress: Progress | None, device: str) -> RQVAE:
    order = np.random.default_rng(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = RQVAE(x.shape[1], config)
    _measure(model, x)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    parameters = list(model.parameters())
    if config.warmup_epochs == 0:
        _start_codebooks(model, x, order)
    used = np.zeros((config.levels, config.codebook_size), dtype=np.int64)
    for epoch in range(1, config.epochs + 1):
        sums: dict[str, float] = {}
        permutation = order.permutation(len(x))
        for start in range(0, len(x), config.batch_size):
            chosen = np.sort(permutation[start : start + config.batch_size])  # in order: kind to memory maps
            rows = _tensor(x[chosen], model.codebooks)
            if epoch <= config.warmup_epochs:
                rows = model.standardise(rows)
                loss = (rows - model.decoder(model.encoder(rows))).square().sum(1).mean()
                parts = {"recon": loss}
            else:
                loss, parts, found = model.loss(rows, balanced=config.sinkhorn_epsilon > 0)
                for level, codes in enumerate(found.codes.T.cpu().numpy()):
                    used[level] += np.bincount(codes, minlength=config.codebook_size)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            optimizer.step()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach()) * len(rows)
        if epoch == config.warmup_epochs:
            _start_codebooks(model, x, order)
        elif config.revive_every and epoch % config.revive_every == 0:
            if config.warmup_epochs < epoch <= 0.8 * config.epochs:  # and then let it settle
                _revive(model, x, used, order)
            used[:] = 0
        if progress is not None:
            progress(epoch, {name: total / len(x) for name, total in sums.items()})
    return model.eval()


def _measure(model: RQVAE, x: np.ndarray, batch_size: int = 8192) -> None:
    """Set center and scale from the data: a mean variance of 1 in a dimension."""
    total, squares = np.zeros(x.shape[1]), 0.0
    for start in range(0, len(x), batch_size):
        rows = np.asarray(x[start : start + batch_size], dtype=np.float64)
        if not np.isfinite(rows).all():
            bad = start + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise UserError(f"The embedding of item {bad} holds NaN or infinity; make the embeddings again.")
        total += rows.sum(axis=0)
        squares += float(np.square(rows).sum())
    center = total / len(x)
    variance = max(squares / len(x) - float(np.square(center).sum()), 0.0) / x.shape[1]
    model.center.copy_(torch.from_numpy(center))
    model.scale.fill_(float(np.sqrt(variance)) or 1.0)


@torch.no_grad()
def _start_codebooks(model: RQVAE, x: np.ndarray, rng: np.random.Generator) -> None:
    """k-means on the residuals, level by level, over a sample of the items (LC-Rec: of the first batch)."""
    from sklearn.cluster import KMeans  # here, because it takes as long to import as torch
    from sklearn.exceptions import ConvergenceWarning

    size = model.config.codebook_size
    chosen = np.sort(rng.permutation(len(x))[: KMEANS_SAMPLES * size])
    residual = np.concatenate([model.latents(rows).cpu().numpy() for rows in model._rows(x[chosen], 8192)])
    for level in range(model.config.levels):
        clusters = min(size, len(residual))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than codewords: filled below
            means = KMeans(clusters, n_init=1, random_state=int(rng.integers(2**31))).fit(residual)
        words = means.cluster_centers_.astype(np.float32)
        if clusters < size:
            words = np.concatenate([words, _around(residual, size - clusters, rng)])
        model.codebooks[level].copy_(torch.from_numpy(words))
        residual = residual - words[means.labels_]


@torch.no_grad()
def _revive(model: RQVAE, x: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> None:
    """Move codewords that nothing chose to residuals of random items, where they can be chosen."""
    if used.all():
        return
    chosen = np.sort(rng.permutation(len(x))[: 4 * model.config.codebook_size])
    residual = np.concatenate([model.latents(rows).cpu().numpy() for rows in model._rows(x[chosen], 8192)])
    for level in range(model.config.levels):
        dead = np.flatnonzero(used[level] == 0)
        codebook = model.codebooks[level]
        if len(dead):
            words = torch.from_numpy(_around(residual, len(dead), rng)).to(codebook.device)
            codebook[torch.from_numpy(dead).to(codebook.device)] = words
        rows = _tensor(residual, codebook)
        residual = (rows - codebook[squared_distances(rows, codebook).argmin(dim=1)]).cpu().numpy()


def _around(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random points, moved a little so that no two are equal."""
    noise = rng.normal(size=(count, points.shape[1])) * 0.01 * points.std()
    return (points[rng.integers(len(points), size=count)] + noise).astype(np.float32)


def colliding(codes: np.ndarray) -> list[np.ndarray]:
    """Groups of item numbers that share all codes [n, levels], in the order of the codes."""
    return [group for group in _groups(codes) if len(group) > 1]


def collision_rate(codes: np.ndarray) -> float:
    """Share of items too many: `(items − distinct IDs) / items` (LC-Rec)."""
    return 1 - len(np.unique(codes, axis=0)) / len(codes)


def _groups(codes: np.ndarray) -> list[np.ndarray]:
    if codes.shape[1] == 0:
        return [np.arange(len(codes))]
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return np.split(np.argsort(group.ravel(), kind="stable"), np.cumsum(counts)[:-1])


def resolve_collisions(
    codes: np.ndarray,
    residuals: np.ndarray,
    codebook: np.ndarray,
    rounds: int = 20,
    unique: bool = True,
    epsilon: float = 0.003,
    iterations: int = 50,
) -> np.ndarray:
    """Give items that share all their codes other last codes; prefixes stay as they are.

    First as LC-Rec does: up to `rounds` times, the items of each collision are assigned anew by Sinkhorn among
    themselves, which spreads them but may meet other items and cannot part equal embeddings. Then, with `unique`: in
    each prefix, the nearest item keeps a shared code, and the others take free codes at the least total distance.

    Args:
        codes: [n, levels]; not changed.
        residuals: what the last level quantises, `RQVAE.last_residuals` [n, latent_dim].
        codebook: of the last level [codebook_size, latent_dim].
        rounds: of Sinkhorn.
        unique: guarantee IDs without collision.
        epsilon: of Sinkhorn; 0 leaves the rounds out.
        iterations: of Sinkhorn.

    Returns:
        Codes [n, levels], equal to `codes` but in the last column.

    Raises:
        UserError: a prefix has more items than the last level has codewords (only with `unique`).
    """
    codes = codes.copy()
    words = torch.from_numpy(np.array(codebook))
    rows = torch.from_numpy(np.array(residuals))
    fewest, best = len(codes) + 1, codes
    for _ in range(rounds if epsilon > 0 else 0):
        groups = colliding(codes)
        count = sum(len(group) - 1 for group in groups)
        if count < fewest:
            fewest, best = count, codes.copy()
        if not groups:
            break
        for group in groups:
            codes[group, -1] = balanced_codes(squared_distances(rows[group], words), epsilon, iterations).numpy()
    codes = codes if sum(len(group) - 1 for group in colliding(codes)) < fewest else best
    return _part(codes, rows, words) if unique else codes


def _part(codes: np.ndarray, rows: Tensor, words: Tensor) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    size = len(words)
    for group in _groups(codes[:, :-1]):
        if len(group) > size:
            prefix = "-".join(map(str, codes[group[0], :-1]))
            raise UserError(
                f"{len(group)} items share the prefix {prefix}, but the last level has only {size} codes. Raise "
                "codebook_size (or levels), train for longer, or allow collisions with --unique false."
            )
        last = codes[group, -1]
        taken, counts = np.unique(last, return_counts=True)
        if counts.max() == 1:
            continue
        distances = squared_distances(rows[group], words).numpy()
        movers = []
        for code in taken[counts > 1]:
            sharing = np.flatnonzero(last == code)
            keeper = sharing[distances[sharing, code].argmin()]
            movers += [row for row in sharing if row != keeper]
        free = np.setdiff1d(np.arange(size), taken)
        which, target = linear_sum_assignment(distances[np.ix_(movers, free)])
        codes[group[np.array(movers)[which]], -1] = free[target]
    return codes


def save(model: RQVAE, folder: Path) -> None:
    """Write `rqvae.safetensors` and `rqvae.json`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    write_json(folder / SETTINGS, {"input_dim": model.input_dim, **dataclasses.asdict(model.config)})


def load(folder: Path) -> RQVAE:
    """Read what `save` wrote.

    Raises:
        UserError: missing or damaged files.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        model = RQVAE(settings.pop("input_dim"), RQVAEConfig(**settings))
        model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} holds no readable quantiser ({str(error).splitlines()[0]}).") from None
    return model.eval()
