"""Build a SETRec from its inputs, train it by its loss, and choose the weight of its semantic tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.dataset import Examples, batches_by_length
from distill.data.histories import last_items
from distill.metrics import hit_ranks, ndcg
from distill.ranking import mask_history, top_items
from distill.runtime import models
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.semantic_ids.embeddings import text_vectors
from student.config import BaselineConfig
from student.item_batches import ItemBatch
from student.item_embeddings import read_item_embeddings
from student.item_recommender import ItemRecommender, last_places
from student.models.item_text import unit_vectors
from student.models.setrec import SETRec, SETRecConfig
from student.models.setrec.network import ground
from student.models.trunk import check_window, random_llama
from student.objective import item_loss
from student.setrec_config import HEADS

BETAS = tuple(number / 10 for number in range(11))
SCORES_GIB = 16  # of scores of one batch; more is refused


def build_setrec(config: BaselineConfig, n_items: int, sasrec: Path | None, texts: Artifact | None) -> SETRec:
    """Build the network, and give it the frozen inputs of its tokens.

    Args:
        config: of the command.
        n_items: of the catalogue.
        sasrec: folder of the network whose item embeddings are the CF tokens' source; None: no CF token.
        texts: the embeddings artifact; None: no semantic tokens.

    Raises:
        UserError: inputs of another catalogue, a base model that cannot do it, scores that take too much memory.
    """
    settings = config.setrec
    item_embeddings = None if sasrec is None else read_item_embeddings(sasrec, n_items)
    vectors = None if texts is None else torch.from_numpy(unit_vectors(text_vectors(texts, n_items)))
    base, instruction = read_base(config.base, settings.trunk, settings.instruction) if config.base else (None, None)
    network = random_network(config) if base is None else base.config.to_dict()
    dim = config.dim if base is None else base.config.hidden_size
    if config.base:
        check_window(network, config.max_history, config.max_history + 1, config.base)  # a history and the next item
    sizes = SETRecConfig(
        n_items,
        config.max_history,
        dim,
        network,
        settings.trunk,
        cf_dim=0 if item_embeddings is None else item_embeddings.shape[1],
        text_dim=0 if vectors is None else vectors.shape[1],
        semantic=settings.semantic,
        hidden=tuple(settings.hidden),
        sparse=settings.mask == "sparse",
        beta=0.5 if settings.beta is None else settings.beta,
        instruction=0 if instruction is None else len(instruction),
        frozen_queries=settings.frozen_queries,
        pretrained=base is not None,
        lora_rank=settings.lora_rank,
        dropout=config.dropout,
        recency=settings.recency,
    )
    model = SETRec(sizes, base)
    check_memory(model, config)
    model.tokens.set_inputs(item_embeddings, vectors)
    if instruction is not None:
        model.instruction.copy_(instruction)
    if config.base:
        check_independent(model, config.base)
    return model


def random_network(config: BaselineConfig) -> dict[str, Any]:
    """Choose the sizes of a language model that starts from random weights, as a Transformers config."""
    from transformers import T5Config

    layers = config.layers or 2
    if config.setrec.trunk == "t5":
        t5 = T5Config(
            vocab_size=2, d_model=config.dim, d_kv=config.dim // HEADS, d_ff=4 * config.dim, num_layers=layers,
            num_decoder_layers=layers, num_heads=HEADS, dropout_rate=config.dropout,
        )  # fmt: skip
        return t5.to_dict()
    places = config.max_history + 1
    # larger initial weights learn faster and end lower (docs/setrec.md)
    return random_llama(config.dim, layers, places, initializer_range=0.02, attention_dropout=config.dropout)


def read_base(folder: Path, trunk: str, words: str) -> tuple[Any, Tensor | None]:
    """Read a pretrained language model without its head, and the vectors of an instruction [words, dim].

    Raises:
        UserError: the folder holds no such model.
    """
    refusal = f"--base {folder} is no {'T5' if trunk == 't5' else 'causal language model'}"
    if trunk == "t5":
        config = models.load_config(folder, refusal, local_files_only=True)
        if config.model_type != "t5":
            raise UserError(f"{refusal}: it is of type {config.model_type}; take --setrec.trunk causal, or a T5.")
        base = models.load_model(folder, refusal, "any", local_files_only=True)
    else:
        base = models.load_model(folder, refusal, local_files_only=True).base_model
    if not words:
        return base, None
    tokenizer = models.load_tokenizer(folder, refusal, local_files_only=True)
    numbers = torch.tensor(tokenizer(words, add_special_tokens=False)["input_ids"], dtype=torch.long)
    return base, base.get_input_embeddings().weight.detach()[numbers]


def check_memory(model: SETRec, config: BaselineConfig) -> None:
    """Refuse batches whose exact scores of all items, one set for each token, do not fit in memory.

    Raises:
        UserError: says how much they take.
    """
    scores = config.batch_size * config.max_history * model.config.n_items * model.n_tokens
    gib = scores * 4 / 2**30
    if gib > SCORES_GIB:
        raise UserError(
            f"A batch of {config.batch_size} sequences of {config.max_history} items takes scores of "
            f"{model.config.n_items:,} items for each of {model.n_tokens} tokens: up to {gib:.0f} GiB, at most "
            f"{SCORES_GIB}. Lower --batch_size and raise --accumulation."
        )


@torch.no_grad()
def check_independent(model: SETRec, folder: Path) -> None:
    """Refuse a language model that ignores the mask or the positions: a query would see the other queries.

    Raises:
        UserError: as above.
    """
    model.eval()
    history = torch.arange(min(3, model.config.n_items))[None]
    places = torch.zeros(1, history.shape[1], dtype=torch.bool)
    places[:, -1] = True
    reason = "a query sees the other queries"
    queries = model.queries.clone()
    try:
        before = model.generate(model.tokens(), history, places)
        model.queries[0] += 1.0
        after = model.generate(model.tokens(), history, places)
        independent = model.n_tokens == 1 or torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-3, atol=1e-3)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        independent, reason = False, str(error).splitlines()[0]
    model.queries.copy_(queries)
    if not independent:
        raise UserError(
            f"--base {folder} cannot generate a set at once: its layers ignore an attention mask or position ids "
            f"({reason}). Take a transformer with plain attention."
        )


class TokenLogProbs:
    """Ask the network for what its loss needs, where `item_loss` asks for log-probabilities.

    The mean of the K tokens' log-softmaxes makes `item_loss`'s cross-entropy the paper's,
    (1/K) Σ_k CE(softmax ⟨ê^k, T^k⟩, v*); the losses over a teacher's candidates read the same values.

    Args:
        model: wrapped or not.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.reconstruction = torch.zeros(())

    def __call__(self, histories: Tensor, places: Tensor) -> Tensor:
        log_probs, self.reconstruction = self.model(histories, places, for_loss=True)
        return log_probs


def setrec_loss(model: nn.Module, batch: ItemBatch, device: torch.device, config: BaselineConfig) -> Tensor:
    """Compute this process's part of L = (1/K) Σ_k CE_k + α · L_AE, with a teacher's losses where there are any.

    L_AE is the mean over the items of the global batch's histories. There are as many of them as targets.
    """
    log_probs = TokenLogProbs(model)
    loss = item_loss(log_probs, config.loss, batch, device, config)
    return loss + batch.weight * config.setrec.alpha * log_probs.reconstruction / batch.count


@torch.inference_mode()
def tune_beta(recommender: ItemRecommender, valid: Examples) -> None:
    """Choose β of 0, 0.1 … 1 with the best validation NDCG@10, the first of equals, and store it in the network."""
    model: Any = recommender.model.eval()
    gains = np.zeros(len(BETAS))
    for rows, recent in batches_by_length(last_items(valid.histories, model.config.max_history), 256):
        places = last_places(recent)
        inputs = (torch.from_numpy(array).to(model.queries.device) for array in (recent, places))
        cf, semantic = model.score_parts(*inputs)
        for number, beta in enumerate(BETAS):
            scores = ground(cf, semantic, beta).cpu().numpy()
            if recommender.facts["exclude_bought"]:
                mask_history(scores, valid.histories[rows], -np.inf)
            lists = top_items(scores, 10, above=-np.inf)
            gains[number] += ndcg(hit_ranks(lists, valid.targets[rows]), 10).sum()
    best = int(gains.argmax())
    model.config = replace(model.config, beta=BETAS[best])
    values = gains / max(len(valid), 1)
    log.info(f"setrec: β {BETAS[best]:g}, validation NDCG@10 {values[best]:.4f}")
    log.info("setrec: by β " + ", ".join(f"{beta:g} {value:.4f}" for beta, value in zip(BETAS, values, strict=True)))
