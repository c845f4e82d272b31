"""SETRec's network: token sets in, a set of generated tokens out, and the scores of all items by inner products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from student.models.setrec.tokens import SetTokens
from student.models.setrec.trunks import CausalTrunk, T5Trunk


@dataclass(frozen=True)
class SETRecConfig:
    """What the network consists of.

    Attributes:
        n_items: of the catalogue.
        max_history: items that it reads.
        dim: d, of a token and of the language model.
        network: the language model's config, as Hugging Face writes it.
        trunk: t5 or causal.
        cf_dim: of the frozen item embeddings; 0: no CF token.
        text_dim: of the frozen text embeddings.
        semantic: N, semantic tokens of an item.
        hidden: sizes of the autoencoder's hidden layers.
        sparse: tokens of an item do not see each other.
        beta: β, weight of the semantic tokens in an item's score.
        instruction: words before the history.
        frozen_queries: the queries stay as they were drawn (an ablation).
        pretrained: the language model is a checkpoint's; then it is validated in place.
        lora_rank: of the adapters, 0 for none.
        dropout: before the adapters.
        recency: T5 reads where an item stands, counted from the end of the history.
    """

    n_items: int
    max_history: int
    dim: int
    network: dict[str, Any]
    trunk: str = "t5"
    cf_dim: int = 0
    text_dim: int = 0
    semantic: int = 4
    hidden: Sequence[int] = field(default=(512, 256, 128))
    sparse: bool = True
    beta: float = 0.5
    instruction: int = 0
    frozen_queries: bool = False
    pretrained: bool = False
    lora_rank: int = 0
    dropout: float = 0.0
    recency: bool = False


class LossInputs(NamedTuple):
    """What the loss is computed from.

    Attributes:
        log_probs: of all items, the mean over an item's K tokens of their log-softmax over the items [n, n_items].
        reconstruction: sum over the items of all histories of their reconstruction error, a number.
    """

    log_probs: Tensor
    reconstruction: Tensor


class SETRec(nn.Module):
    """A language model that reads and generates sets of tokens.

    Args:
        config: see there.
        model: the pretrained language model; None: built from the config.
    """

    instruction: Tensor

    def __init__(self, config: SETRecConfig, model: Any = None):
        super().__init__()
        self.config = config
        self.tokens = SetTokens(
            config.n_items, config.dim, config.cf_dim, config.text_dim, config.semantic, config.hidden
        )
        if config.trunk == "t5":
            self.trunk: Any = T5Trunk(config.network, model, config.max_history * config.recency)
        else:
            self.trunk = CausalTrunk(config.network, model)
        self.queries = nn.Parameter(0.02 * torch.randn(self.n_tokens, config.dim))
        self.queries.requires_grad_(not config.frozen_queries)
        self.register_buffer("instruction", torch.zeros(config.instruction, config.dim))
        self._catalogue: Tensor | None = None
        self.register_load_state_dict_post_hook(lambda network, _: network.forget_catalogue())
        if config.lora_rank:
            from student.models.large.lora import add_lora

            language_model: Any = self.trunk.model
            add_lora(language_model, config.lora_rank, config.dropout)

    @property
    def n_tokens(self) -> int:
        """K, tokens of an item."""
        return (self.config.cf_dim > 0) + self.config.semantic

    @property
    def in_place(self) -> bool:
        """Whether validation uses the network itself, since a copy of a pretrained model is expensive."""
        return self.config.pretrained

    def train(self, mode: bool = True) -> SETRec:
        """Switch to training or evaluation; the catalogue's tokens are computed again."""
        self.forget_catalogue()
        return super().train(mode)

    def forget_catalogue(self) -> None:
        """Forget the catalogue's tokens, because the weights change."""
        self._catalogue = None

    def catalogue(self) -> Tensor:
        """Compute the tokens of all items [n_items, K, dim]; once, where the network is only evaluated."""
        if self.training or torch.is_grad_enabled():
            return self.tokens()
        if self._catalogue is None or self._catalogue.device != self.queries.device:
            self._catalogue = self.tokens()
        return self._catalogue

    def generate(self, tokens: Tensor, histories: Tensor, places: Tensor) -> Tensor:
        """Generate the tokens of the next item at once, in one forward pass.

        Args:
            tokens: of all items [n_items, K, dim].
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            places: True where the next item is asked for [users, length].

        Returns:
            ê, user by user [n, K, dim].
        """
        return self.trunk(tokens, histories, places, self.queries, self.instruction, self.config.sparse)

    def score_parts(self, histories: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Score all items by the CF token, and by the semantic tokens: ⟨ê⁰, T⁰⟩ and Σ_k ⟨ê^k, T^k⟩.

        Returns:
            Both [n, n_items]; zeros where there are no such tokens.
        """
        tokens = self.catalogue()
        generated = self.generate(tokens, histories, places)
        split = int(self.config.cf_dim > 0)
        # the sum of inner products is that of the vectors side by side: one matrix product
        cf, semantic = (
            generated[:, part].flatten(1) @ tokens[:, part].flatten(1).T for part in (slice(split), slice(split, None))
        )
        return cf, semantic

    def forward(self, histories: Tensor, places: Tensor, for_loss: bool = False) -> Tensor | LossInputs:
        """Score all items as the next item.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            places: True where the next item is scored [users, length].
            for_loss: return what the loss needs.

        Returns:
            The log-softmax of (1 − β)·⟨ê⁰, T⁰⟩ + β·Σ_k ⟨ê^k, T^k⟩ over all items [n, n_items]; or `LossInputs`.
        """
        if not for_loss:
            return ground(*self.score_parts(histories, places), self.config.beta)
        tokens = self.catalogue()
        generated = self.generate(tokens, histories, places)
        log_probs = torch.zeros(len(generated), self.config.n_items, device=generated.device)
        for k in range(self.n_tokens):
            log_probs = log_probs + (generated[:, k] @ tokens[:, k].T).float().log_softmax(-1)
        errors = self.tokens.reconstruction_errors(tokens, histories[histories >= 0])
        return LossInputs(log_probs / self.n_tokens, errors.sum())

    def merged(self) -> SETRec:
        """Return the network without adapters, their effect added to its weights."""
        if not self.config.lora_rank:
            return self
        from student.models.large.lora import merge_lora, without_lora

        model = SETRec(replace(self.config, lora_rank=0))
        model.load_state_dict(without_lora(self.state_dict()))
        merge_lora(self.trunk.model, model.trunk.model)
        return model


def ground(cf: Tensor, semantic: Tensor, beta: float) -> Tensor:
    """Mix the scores of CF and semantic tokens, and normalise them over the items [n, n_items]."""
    return ((1 - beta) * cf + beta * semantic).float().log_softmax(-1)
