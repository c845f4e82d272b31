"""A student around any Hugging Face causal language model: the interface of `causal`, at 7B if there is room.

The language model reads a start token and the history's codewords, as a teacher of `stream` does. Candidates are
appended to it, each seeing the history up to its place and its own codewords (`distill/tree.py`): the history is read
once for all of them, so that memory grows by their tokens alone. Nothing but codewords goes in or comes out, so of the
vocabulary only their rows and the start token's are kept; with LoRA these rows and the adapters are all that trains.
Import it only where transformers is installed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

from distill.decoding.tree_attention import BeamTree, additive, candidate_attention_mask
from distill.runtime.errors import UserError
from student.models.causal import Positions
from student.models.layers import among_all, chosen_log_probs, forced_log_probs, history_tokens, level_log_probs

if TYPE_CHECKING:
    from distill.semantic_ids.ids import SemanticIDs

ALPHA = 4  # LoRA's alpha, times its rank (LC-Rec: 8 and 32)
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CACHE_BYTES = 2 << 30  # keys and values of the users that are searched at once


@dataclass(frozen=True)
class LargeConfig:
    """What the network is made of.

    Attributes:
        levels, codebook_size: of the semantic IDs.
        network: the language model's config, as Hugging Face writes it.
        tied: codewords have one row for input and output.
        scale: of the input rows, where the language model scales them itself.
        lora_rank: of the adapters beside its weights, 0 for none.
        dropout: before the adapters.
        checkpointing: compute activations anew in the backward pass.
    """

    levels: int
    codebook_size: int
    network: dict[str, Any]
    tied: bool = False
    scale: float = 1.0
    lora_rank: int = 0
    dropout: float = 0.0
    checkpointing: bool = False


class EncodedHistory(NamedTuple):
    """A history that was read: its keys and values, tokens of each row [batch], padded width, and the state after the
    last token [batch, hidden]."""

    cache: DynamicCache
    lengths: Tensor
    width: int
    state: Tensor


class Large(nn.Module):
    """A language model's layers between the codewords' rows.

    Args:
        config: see there.
        trunk: the layers; None: made from the config, their weights to be loaded.
    """

    in_place = True  # validated and kept as it is, since a copy is dear

    def __init__(self, config: LargeConfig, trunk: PreTrainedModel | None = None):
        super().__init__()
        self.config, empty = config, trunk is None
        if empty:
            with no_init_weights():
                network = AutoConfig.for_model(**config.network)
                trunk = AutoModelForCausalLM.from_config(network, dtype=network.dtype).base_model
        shape = (config.levels, config.codebook_size, trunk.config.get_text_config().hidden_size)
        self.trunk = trunk
        self.head = nn.Parameter(torch.zeros(shape))
        self.codewords = None if config.tied else nn.Parameter(torch.zeros(shape))
        self.start = nn.Parameter(torch.zeros(shape[-1]))
        if config.checkpointing:
            trunk.gradient_checkpointing_enable({"use_reentrant": False})
            trunk.disable_input_require_grads()  # codewords train as it is, and a hook cannot be copied
        if empty:
            strip(trunk)
        if config.lora_rank:
            add_lora(trunk, config.lora_rank, config.dropout)
            self.start.requires_grad_(False)

    @property
    def users_at_once(self) -> int:
        """Users whose keys and values fit `CACHE_BYTES` in a search: 20 items of history and 20 beams."""
        c = self.trunk.config.get_text_config()
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        token = 2 * c.num_hidden_layers * heads * width * next(self.trunk.parameters()).element_size()
        return max(1, CACHE_BYTES // (token * self.config.levels * 40))

    def forward(self, history: Tensor, items: Tensor | None, scope: str = "level", at: Positions | None = None):
        """`log_probs` of candidates after histories, or `one_pass` over whole sequences; see `Causal`."""
        if at is not None:
            return self.one_pass(history, items, at, scope)
        tokens, places = self.tokens(history), (history[..., 0] >= 0).sum(1, keepdim=True)
        states, own = self.read(tokens, items[:, None], places)
        last = (places * self.config.levels)[..., None].expand(-1, -1, states.shape[-1])
        first = states.gather(1, last)[:, None].expand(-1, items.shape[1], -1, -1)
        return forced_log_probs(torch.cat([first, own[:, 0]], dim=2), self.head, scope)

    def one_pass(
        self, sequences: Tensor, items: Tensor | None, at: Positions, scope: str = "level"
    ) -> tuple[Tensor, Tensor | None]:
        """As `Causal.one_pass`: all labelled positions of sequences, and candidates beside some of them."""
        levels = self.config.levels
        tokens = self.tokens(sequences)[:, :-1]  # nothing follows the last codeword
        width, places = tokens.shape[1], None if items is None else at.groups.clamp(min=1)
        states, candidates = self.read(tokens, items, places)
        flat = states.flatten(0, 1)
        first = at.rows * width + at.places * levels  # the start token stands before the first item
        steps = torch.arange(levels, device=first.device)
        own = forced_log_probs(flat[first[:, None] + steps][:, None], self.head, scope)[:, 0]
        if items is None:
            return own, None
        row = torch.arange(len(places), device=places.device)[:, None]
        before = flat[row * width + places * levels]
        heads = level_log_probs(before, self.head, 0, scope).gather(-1, items[..., 0])
        rest = chosen_log_probs(candidates, self.head, items[..., 1:], scope)
        return own, torch.cat([heads[..., None], rest], dim=-1)

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Read histories for `log_probs` and `step`, which go on from their keys and values.

        Args:
            codes: codewords of the items, oldest first; whole items padded with -1 on the right [batch, items, levels].
        """
        tokens, cache = self.tokens(codes), DynamicCache()
        lengths = 1 + (codes[..., 0] >= 0).sum(1) * self.config.levels
        states = self.run(tokens, *running(tokens), cache)
        state = states.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)
        return EncodedHistory(cache, lengths, tokens.shape[1], state)

    def log_probs(self, memory: EncodedHistory, items: Tensor, scope: str = "level") -> Tensor:
        """Teacher-forced log-probabilities of every codeword at every position; as `Causal.log_probs`."""
        batch, k, levels = items.shape
        visible, positions = candidate_attention_mask(memory.lengths[:, None], k, levels - 1, memory.width)
        states = self.run(self.numbers(items).flatten(1), visible, positions, fork(memory.cache))
        first = memory.state[:, None, None].expand(-1, k, -1, -1)
        states = torch.cat([first, states.view(batch, k, levels - 1, -1)], dim=2)
        return forced_log_probs(states, self.head, scope)

    def step(self, memory: EncodedHistory, scope: str = "level") -> TreeStep:
        """A fresh step function for `beam_search`; scores over the level's codewords, or over "all" levels'."""
        return TreeStep(self, memory, scope)

    def read(self, tokens: Tensor, items: Tensor | None, places: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sequences and the candidates that continue them, in one pass.

        Args:
            tokens: of the sequences [batch, width].
            items: codewords of candidates [batch, groups, k, levels]; None: none.
            places: items before each group [batch, groups].

        Returns:
            States after each token [batch, width, hidden], and after each codeword but the last of the candidates
            [batch, groups, k, levels - 1, hidden].
        """
        visible, positions = running(tokens)
        if items is None:
            return self.run(tokens, visible, positions), None
        (_, _, k, levels), width = items.shape, tokens.shape[1]
        beside, theirs = candidate_attention_mask(1 + places * levels, k, levels - 1, width)
        visible = torch.cat([F.pad(visible, (0, beside.shape[1])), beside], dim=1)
        tokens = torch.cat([tokens, self.numbers(items).flatten(1)], dim=1)
        states = self.run(tokens, visible, torch.cat([positions, theirs], dim=1))
        return states[:, :width], states[:, width:].unflatten(1, (*items.shape[1:3], levels - 1))

    def run(self, tokens: Tensor, visible: Tensor, positions: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """States after tokens; `cache` holds those before them and takes their keys and values.

        Args:
            tokens: vocabulary numbers [batch, new].
            visible: which keys each of them sees [batch, new, keys].
            positions: theirs [batch, new].
            cache: of what was read before.
        """
        rows = self.head if self.codewords is None else self.codewords
        x = F.embedding(tokens, torch.cat([self.start[None], rows.flatten(0, 1)])) * self.config.scale
        x = x.to(next(self.trunk.parameters()).dtype)
        by_sdpa = self.trunk.config._attn_implementation == "sdpa"
        out = self.trunk(
            inputs_embeds=x,
            attention_mask=visible[:, None] if by_sdpa else additive(visible, x.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state.to(self.head.dtype)

    def tokens(self, codes: Tensor) -> Tensor:
        """Vocabulary numbers of a start token and histories' codewords [batch, 1 + items · levels], 0 where padded."""
        return F.pad(history_tokens(codes, self.config.codebook_size), (1, 0))

    def numbers(self, items: Tensor) -> Tensor:
        """Vocabulary numbers of candidates' codewords but the last [..., levels] → [..., levels - 1]."""
        return among_all(items[..., :-1], self.config.codebook_size) + 1

    def merged(self) -> Large:
        """The same model without adapters, what they add in the weights; a copy on the CPU where there are any."""
        if not self.config.lora_rank:
            return self
        from peft.tuners.lora import LoraLayer

        made = Large(replace(self.config, lora_rank=0, checkpointing=False))
        weights = {name.replace(".base_layer.", "."): value for name, value in self.state_dict().items()}
        made.load_state_dict({name: value for name, value in weights.items() if ".lora_" not in name})
        with torch.no_grad():
            for name, part in self.trunk.named_modules():
                if isinstance(part, LoraLayer):
                    weight = made.trunk.get_parameter(f"{name}.weight")
                    weight.copy_(weight + part.get_delta_weight("default").to(weight.device))
        return made


class TreeStep:
    """`beam.Step` of `Large`: the beams are a tree in one growing cache, which begins with the history's."""

    def __init__(self, model: Large, memory: EncodedHistory, scope: str):
        self.model, self.scope, self.state = model, scope, memory.state
        self.cache, self.branches = fork(memory.cache), BeamTree(memory.lengths, memory.width)

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        states = self.state[:, None]
        if level > 0:
            tokens = codes + 1 + (level - 1) * self.model.config.codebook_size
            states = self.model.run(tokens, *self.branches.append_beam_tokens(parents), self.cache)
        return level_log_probs(states, self.model.head, level, self.scope)


def load(
    folder: Path,
    ids: SemanticIDs,
    max_history: int,
    lora_rank: int = 0,
    dropout: float = 0.0,
    checkpointing: bool = False,
    precision: str = "no",
) -> Large:
    """A student that starts from a language model.

    Args:
        folder: of a Hugging Face checkpoint with its tokenizer. Codewords that it knows keep their rows; to one that
            knows none they are new: the mean of its rows and a little noise.
        ids: whose codewords it reads and says.
        max_history: items of history that have to fit its window.
        lora_rank, dropout, checkpointing: see `LargeConfig`.
        precision: of the training; weights that do not train lie in its half.

    Raises:
        UserError: no such checkpoint, codewords of another codebook, a window that is too short, or a model whose
            candidates cannot share one history.
    """
    frozen = HALVES.get(precision, torch.float32) if lora_rank else torch.float32
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=frozen, use_safetensors=True, **options).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--init {folder} is no causal language model: {str(error).splitlines()[0]}") from None
    rows, start = codeword_rows(tokenizer, ids, folder), tokenizer.bos_token_id
    start = tokenizer.eos_token_id if start is None else start  # Qwen's has no BOS
    if start is None:
        raise UserError(f"The tokenizer at {folder} has neither BOS nor EOS; histories need a token to start from.")
    text, window = whole.config.get_text_config(), (max_history + 1) * ids.levels
    longest = getattr(text, "max_position_embeddings", None) or window
    if window > longest:
        raise UserError(f"Histories of {max_history} items take {window} tokens, {folder} reads {longest}.")
    table, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    known = rows is not None
    if not known:  # some rows, for the trial
        rows = torch.arange(ids.levels * ids.codebook_size) % len(table.weight)
    elif max(rows.max(), start) >= len(table.weight):
        raise UserError(f"{folder} has {len(table.weight)} rows, its tokenizer goes up to {rows.max()}.")
    config = LargeConfig(
        ids.levels, ids.codebook_size, whole.config.to_dict(), head.weight is table.weight,
        float(getattr(table, "embed_scale", 1.0)), dropout=dropout, checkpointing=checkpointing,
    )  # fmt: skip
    made = Large(config, whole.base_model).eval()
    with torch.no_grad():
        made.start.copy_(table.weight[start])
        for own, theirs in ((made.head, head), (made.codewords, table)):
            if own is not None:
                own.copy_(theirs.weight[rows].view_as(own))
    try_out(made, whole, rows.view(ids.levels, -1), start, folder)
    if not known:
        with torch.no_grad():
            for own, theirs in ((made.head, head), (made.codewords, table)):
                if own is not None:
                    weight = theirs.weight.float()
                    own.copy_(weight.mean(0) + 0.1 * weight.std(0) * torch.randn(own.shape))
    strip(made.trunk)
    if lora_rank:
        made.config = replace(config, lora_rank=lora_rank)
        add_lora(made.trunk, lora_rank, dropout)
        made.start.requires_grad_(False)
    return made


def codeword_rows(tokenizer, ids: SemanticIDs, folder: Path) -> Tensor | None:
    """Numbers of the codeword tokens, level after level, in the tokenizer; None if it knows none of them.

    Raises:
        UserError: it knows some.
    """
    tokens, vocabulary = ids.tokens(), tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if not missing:
        return torch.tensor([vocabulary[token] for token in tokens])
    if len(missing) < len(tokens):
        raise UserError(
            f"The tokenizer at {folder} lacks {len(missing)} of the {len(tokens)} codeword tokens (first "
            f"{missing[0]!r}): it was made for another codebook. Give a model of these semantic IDs, or one without "
            "codewords."
        )
    return None


@torch.no_grad()
def try_out(made: Large, whole: PreTrainedModel, rows: Tensor, start: int, folder: Path) -> None:
    """Refuse a language model for which candidates that share one history would not score as if alone.

    It may take no positions, heed no mask (state-space layers), or do something to its logits after the head. Two
    candidates after two items are compared with plain forward passes.

    Raises:
        UserError: as above.
    """
    c, generator = made.config, torch.Generator().manual_seed(0)
    history, items = (torch.randint(c.codebook_size, (1, 2, c.levels), generator=generator) for _ in range(2))
    plain = []
    for item in items[0]:
        codes = torch.cat([history.flatten(), item[:-1]])
        levels = torch.arange(len(codes)) % c.levels
        ids = torch.cat([torch.tensor([start]), rows[levels, codes]])[None]
        logits = whole(input_ids=ids, use_cache=False).logits[0, -c.levels :].float()
        plain.append(logits.gather(1, rows).log_softmax(-1))
    plain = torch.stack(plain)
    plain = plain - plain.mean(-1, keepdim=True)
    tolerance = 1e-3 if whole.dtype == torch.float32 else 0.1
    try:
        for ours in (made(history, items), made.log_probs(made.encode(history), items)):
            ours = ours[0] - ours[0].mean(-1, keepdim=True)
            if (ours - plain).norm() > tolerance * plain.norm():
                raise ValueError("candidates beside each other get other probabilities than alone")
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} ({whole.config.model_type}) cannot be a student: candidates attach to the history by position "
            "ids and an attention mask, and this network has layers or logits of its own kind (state-space layers, "
            f"ALiBi, a short sliding window, capped logits): {str(error).splitlines()[0]}."
        ) from None


def add_lora(trunk: PreTrainedModel, rank: int, dropout: float) -> None:
    """Adapters in float32 beside all linear maps; nothing else of the trunk trains."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=ALPHA * rank, lora_dropout=dropout, target_modules="all-linear")
    inject_adapter_in_model(settings, trunk)
    for parameter in trunk.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def strip(trunk: PreTrainedModel) -> None:
    """Take the vocabulary's table out, which codewords do not need."""
    table = trunk.get_input_embeddings()
    for part in list(trunk.modules()):
        for name, child in part.named_children():
            if child is table:
                setattr(part, name, None)


def fork(cache: DynamicCache) -> DynamicCache:
    """A cache that begins with the same keys and values and grows by itself; nothing is copied."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def running(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and positions of sequences [batch, width]; padding stands on the right, where no real token sees it."""
    batch, width = tokens.shape
    visible = torch.ones(width, width, dtype=torch.bool, device=tokens.device).tril()
    return visible.expand(batch, -1, -1), torch.arange(width, device=tokens.device).expand(batch, -1)
