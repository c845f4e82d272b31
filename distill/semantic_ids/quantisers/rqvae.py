"""RQ-VAE: an embedding becomes a few codes, coarse to fine (paper 2.2; LC-Rec, arXiv 2311.09049, section 3.1).

`z = encoder(x)` is quantised in residual steps: level d takes the codeword nearest to the residual of the levels before
it. The decoder sees the sum of the codewords.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distill.semantic_ids.quantisers.codebooks import plain_kmeans, sample_with_noise
from distill.semantic_ids.quantisers.letter import Letter
from distill.semantic_ids.quantisers.settings import RQVAEConfig, check_rqvae
from distill.semantic_ids.quantisers.sinkhorn import balanced_codes, squared_distances

CHUNK = 8192  # items encoded at once
KMEANS_SAMPLES = 64  # items per codeword; more only cost time
SMALL_STEP = 1 << 19  # distances per step, below which one thread is enough
Progress = Callable[[int, dict[str, float]], None]


class Quantised(NamedTuple):
    """Result of `RQVAE.quantise`.

    Attributes:
        codes: [n, levels].
        vectors: sum of the codewords [n, latent_dim]; no gradient to z.
        straight: the same values with z's gradient, as if nothing had been quantised [n, latent_dim].
        loss: codebook and commitment terms, summed over levels and dimensions [n].
    """

    codes: Tensor
    vectors: Tensor
    straight: Tensor
    loss: Tensor


class RQVAE(nn.Module):
    """MLP autoencoder with a residual quantiser between its halves.

    Inputs are centred and scaled to unit mean variance by statistics saved with the weights, so that the same loss
    weights fit embeddings of any scale; reconstructions have the input's scale.

    Args:
        input_dim: size of an embedding.
        levels: codes per item.
        codebook_size: codewords per level.
        config: settings.
    """

    center: Tensor
    scale: Tensor
    name = "rqvae"

    def __init__(self, input_dim: int, levels: int, codebook_size: int, config: RQVAEConfig):
        super().__init__()
        self.input_dim, self.levels, self.codebook_size, self.config = input_dim, levels, codebook_size, config
        sizes = [input_dim, *config.hidden, config.latent_dim]
        self.encoder, self.decoder = _mlp(sizes), _mlp(sizes[::-1])
        self.codebooks = nn.Parameter(torch.randn(levels, codebook_size, config.latent_dim) * 0.1)
        self.register_buffer("center", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(()))

    def standardise(self, x: Tensor) -> Tensor:
        """Centre and scale embeddings [n, input_dim]."""
        return (x - self.center) / self.scale

    def latents(self, x: Tensor) -> Tensor:
        """Encode embeddings [n, input_dim] as z [n, latent_dim]."""
        return self.encoder(self.standardise(x))

    def quantise(self, z: Tensor, balanced: bool = False) -> Quantised:
        """Quantise residuals: `c_d = argmin ‖r_d − e‖`, `r_{d+1} = r_d − e_{c_d}`, `r_0 = z` (paper 2.2).

        The loss is `Σ_d ‖sg[r_d] − e‖² + β‖r_d − sg[e]‖²`. Residuals pass gradients to z at every level, but not
        to codewords: a codeword learns only from the term of its level.

        Args:
            z: [n, latent_dim].
            balanced: assign by Sinkhorn, each codeword an equal share (LC-Rec's uniform semantic mapping), instead of
                the nearest, on the levels that `sinkhorn_levels` names.
        """
        residual, total = z, torch.zeros_like(z)
        loss = z.new_zeros(len(z))
        codes = []
        for level, codebook in enumerate(self.codebooks):
            distances = squared_distances(residual.detach(), codebook.detach())
            if balanced and (self.config.sinkhorn_levels == "all" or level == self.levels - 1):
                code = balanced_codes(distances, self.config.sinkhorn_epsilon, self.config.sinkhorn_iterations)
            else:
                code = distances.argmin(dim=1)
            word = codebook[code]
            loss = loss + (residual.detach() - word).square().sum(1)
            loss = loss + self.config.beta * (residual - word.detach()).square().sum(1)
            total = total + word.detach()
            residual = residual - word.detach()
            codes.append(code)
        return Quantised(torch.stack(codes, dim=1), total, z + (total - z).detach(), loss)

    def loss(self, x: Tensor, balanced: bool = False) -> tuple[Tensor, dict[str, Tensor], Quantised]:
        """Compute the loss `‖x − x̂‖² + Σ_d …`, mean over the items, on the standardised input (paper 2.2).

        Args:
            x: [n, input_dim].
            balanced: see `quantise`.

        Returns:
            The loss, its two parts, and the quantisation.
        """
        x = self.standardise(x)
        z = self.encoder(x)
        quantised = self.quantise(z, balanced)
        reconstruction = (x - self.decoder(quantised.straight)).square().sum(1).mean()
        quantisation = quantised.loss.mean()
        return reconstruction + quantisation, {"recon": reconstruction, "quant": quantisation}, quantised

    @torch.no_grad()
    def encode(self, x: np.ndarray) -> np.ndarray:
        """Encode embeddings [n, input_dim] as codes [n, levels] (int64): the nearest codeword at each level."""
        return np.concatenate([self._nearest(self.latents(rows)) for rows in self._rows(x)])

    def _nearest(self, z: Tensor) -> np.ndarray:
        residual, codes = z, []
        for codebook in self.codebooks:
            codes.append(squared_distances(residual, codebook).argmin(dim=1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, dim=1).cpu().numpy()

    @torch.no_grad()
    def target(self, x: np.ndarray, codes: np.ndarray, level: int) -> np.ndarray:
        """Compute the residual that `level` quantises, given the codes before it [n, latent_dim] (float32)."""
        latents = np.concatenate([self.latents(rows).cpu().numpy() for rows in self._rows(x)])
        return latents - self._sum(torch.as_tensor(codes[:, :level], device=self.codebooks.device)).cpu().numpy()

    def words(self, level: int) -> np.ndarray:
        """Return the level's codewords [codebook_size, latent_dim], comparable with `target`."""
        return self.codebooks[level].detach().cpu().numpy()

    @torch.no_grad()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes [n, up to levels] to embeddings [n, input_dim] (float32); fewer levels are coarser."""
        vectors = self._sum(torch.as_tensor(codes, device=self.codebooks.device))
        return (self.decoder(vectors) * self.scale + self.center).cpu().numpy()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return tensors and settings for `from_state`."""
        tensors = {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}
        return tensors, {"rqvae": dataclasses.asdict(self.config)}

    @staticmethod
    def from_state(name: str, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> RQVAE:
        """Restore a quantiser from what `state` returned."""
        levels, size, _ = tensors["codebooks"].shape
        model = RQVAE(len(tensors["center"]), levels, size, RQVAEConfig(**settings["rqvae"]))
        model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        return model.eval()

    def _sum(self, codes: Tensor) -> Tensor:
        total = self.codebooks.new_zeros(len(codes), self.config.latent_dim)
        for level in range(codes.shape[1]):
            total = total + self.codebooks[level][codes[:, level]]
        return total

    def _rows(self, x: np.ndarray) -> Iterator[Tensor]:
        for start in range(0, len(x), CHUNK):
            yield _tensor(x[start : start + CHUNK], self.codebooks)


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


def fit(
    x: np.ndarray,
    levels: int,
    codebook_size: int,
    seed: int,
    config: RQVAEConfig,
    progress: Progress | None = None,
    device: str = "cpu",
    letter: Letter | None = None,
) -> RQVAE:
    """Train an RQ-VAE; the same inputs and seed on the same machine give the same model.

    Args:
        x: embeddings [n, dim]; may be a memory map: only batches are copied.
        levels: codes per item.
        codebook_size: codewords per level.
        seed: of the weights, the order of the batches and k-means.
        config: settings.
        progress: called after every epoch with its number (from 1) and the mean losses.
        device: where to train.
        letter: further losses.

    Raises:
        UserError: settings that cannot work.
    """
    check_rqvae(config)
    small = device == "cpu" and min(len(x), config.batch_size) * codebook_size <= SMALL_STEP
    with _one_thread() if small else contextlib.nullcontext():
        return _fit(x, levels, codebook_size, seed, config, progress, device, letter).cpu()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run steps of a millisecond on one thread: more gain little, and on shared cores their barriers are very slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    x: np.ndarray,
    levels: int,
    codebook_size: int,
    seed: int,
    config: RQVAEConfig,
    progress: Progress | None,
    device: str,
    letter: Letter | None,
) -> RQVAE:
    order = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RQVAE(x.shape[1], levels, codebook_size, config)
    _measure(model, x)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    parameters = list(model.parameters())
    if config.warmup_epochs == 0:
        _start_codebooks(model, x, order)
    used = np.zeros((levels, codebook_size), dtype=np.int64)
    for epoch in range(1, config.epochs + 1):
        sums: dict[str, float] = {}
        permutation = order.permutation(len(x))
        if letter is not None and epoch > config.warmup_epochs:
            letter.cluster(model.codebooks, epoch)
        for start in range(0, len(x), config.batch_size):
            chosen = np.sort(permutation[start : start + config.batch_size])  # in order: memory maps read faster
            rows = _tensor(x[chosen], model.codebooks)
            if epoch <= config.warmup_epochs:
                rows = model.standardise(rows)
                loss = (rows - model.decoder(model.encoder(rows))).square().sum(1).mean()
                parts = {"recon": loss}
            else:
                loss, parts, quantised = model.loss(rows, balanced=config.sinkhorn_epsilon > 0)
                if letter is not None:
                    further = letter.losses(model.codebooks, chosen, quantised.straight, quantised.codes)
                    loss, parts = loss + sum(further.values()), parts | further
                for level, codes in enumerate(quantised.codes.T.cpu().numpy()):
                    used[level] += np.bincount(codes, minlength=codebook_size)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            optimizer.step()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach()) * len(rows)
        if epoch == config.warmup_epochs:
            _start_codebooks(model, x, order)
        elif config.revive_every and epoch % config.revive_every == 0:
            if config.warmup_epochs < epoch <= 0.8 * config.epochs:  # the last fifth lets the codewords settle
                _revive(model, x, used, order)
            used[:] = 0
        if progress is not None:
            progress(epoch, {name: total / len(x) for name, total in sums.items()})
    return model.eval()


def _measure(model: RQVAE, x: np.ndarray, batch_size: int = 8192) -> None:
    """Set center and scale from the data, for a mean variance of 1 per dimension."""
    total, squares = np.zeros(x.shape[1]), 0.0
    for start in range(0, len(x), batch_size):
        rows = np.asarray(x[start : start + batch_size], dtype=np.float64)
        total += rows.sum(axis=0)
        squares += float(np.square(rows).sum())
    center = total / len(x)
    variance = max(squares / len(x) - float(np.square(center).sum()), 0.0) / x.shape[1]
    model.center.copy_(torch.from_numpy(center))
    model.scale.fill_(float(np.sqrt(variance)) or 1.0)


@torch.no_grad()
def _start_codebooks(model: RQVAE, x: np.ndarray, rng: np.random.Generator) -> None:
    """Start the codebooks by k-means on the residuals of a sample, level by level (LC-Rec: of the first batch)."""
    chosen = np.sort(rng.permutation(len(x))[: KMEANS_SAMPLES * model.codebook_size])
    residual = np.concatenate([model.latents(rows).cpu().numpy() for rows in model._rows(x[chosen])])
    for codebook in model.codebooks:
        words = torch.from_numpy(plain_kmeans(residual, model.codebook_size, rng)).to(codebook.device)
        codebook.copy_(words)
        rows = _tensor(residual, codebook)
        residual = (rows - codebook[squared_distances(rows, codebook).argmin(dim=1)]).cpu().numpy()


@torch.no_grad()
def _revive(model: RQVAE, x: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> None:
    """Move unused codewords to residuals of random items."""
    if used.all():
        return
    chosen = np.sort(rng.permutation(len(x))[: 4 * model.codebook_size])
    residual = np.concatenate([model.latents(rows).cpu().numpy() for rows in model._rows(x[chosen])])
    for level in range(model.levels):
        unused = np.flatnonzero(used[level] == 0)
        codebook = model.codebooks[level]
        if len(unused):
            words = torch.from_numpy(sample_with_noise(residual, len(unused), rng)).to(codebook.device)
            codebook[torch.from_numpy(unused).to(codebook.device)] = words
        rows = _tensor(residual, codebook)
        residual = (rows - codebook[squared_distances(rows, codebook).argmin(dim=1)]).cpu().numpy()
