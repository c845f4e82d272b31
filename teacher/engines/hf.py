"""The Hugging Face engine: exact beams and codeword distributions from plain PyTorch, on any device.

All beams of a user share one encoded prompt, as a tree: every new codeword is one more query, and the attention mask
lets it see the prompt and its ancestors. Nothing is repeated per beam and no cache is reordered.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from distill.data.dataset import PAD, Dataset
from distill.data.histories import last_items
from distill.decoding.beam_search import score_all, search, to_items
from distill.decoding.trie import Trie
from distill.decoding.whole_vocabulary import Vocabulary, search_tokens
from distill.labels.labeller import LAST_LAYER
from distill.runtime import models
from distill.runtime.devices import check_device
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.engine import Scope
from teacher.engines import mask_gaps, mask_step, open_teacher, prompt_rows
from teacher.engines.tree_step import TreeStep, codeword_log_probs, encode, prefixes_of
from teacher.tasks import TaskData


class HFEngine:
    """A teacher in plain PyTorch behind `distill.teachers.engine.Engine`.

    Args:
        model: a causal model with codewords in its vocabulary.
        data: knows the prompts and the codewords' token numbers.
        prompt: kind of prompt, "stream", "seqrec", "titles" or "file".

    Attributes:
        counters: tokens that went through the model as prompts.
    """

    def __init__(self, model, data: TaskData, prompt: str):
        self.model, self.data, self.prompt = model.eval(), data, prompt
        self.device = next(model.parameters()).device
        self.token_of = torch.from_numpy(data.token_of).to(self.device)
        self.trie = Trie.build(data.ids.codes, data.ids.codebook_size).to(self.device)
        self.pad = data.tokenizer.pad_token_id
        self.counters = {"tokens": 0}

    @staticmethod
    def load(
        folder: Path,
        dataset: Dataset,
        ids: SemanticIDs,
        device: str = "cpu",
        dtype: str = "float32",
        writes_titles: bool = False,
    ) -> HFEngine:
        """Load a merged teacher checkpoint; arguments but device and dtype are those of `open_teacher`.

        Raises:
            UserError: as `open_teacher`, or no such device.
        """
        check_device(device)
        data, prompt = open_teacher(folder, dataset, ids, writes_titles)
        model = models.load_model(folder, f"No teacher at {folder}", dtype=getattr(torch, dtype)).to(device)
        return HFEngine(model, data, prompt)

    @torch.inference_mode()
    def beams(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Engine.beams`."""
        return self._search(self._step(histories), histories, width, exclude_bought, constrained)

    @torch.inference_mode()
    def search_whole_vocabulary(self, histories: np.ndarray, width: int) -> np.ndarray:
        """Search over all tokens of the vocabulary at each step, to measure the share of invalid IDs.

        Args:
            histories: item numbers, oldest first, padded with -1 [users, length]; nothing is excluded.
            width: beams.

        Returns:
            Items, best first, -1 where the tokens are no item's ID [users, width].
        """
        step, levels = self._step(histories), self.data.ids.levels
        sequences, _ = search_tokens(
            lambda level, parents, tokens: step.likeliest_tokens(parents, tokens, width),
            *(levels, len(histories), width, self.device),
        )
        size = self.model.get_output_embeddings().weight.shape[0]
        vocabulary = Vocabulary(self.token_of, size, torch.from_numpy(self.data.gaps).to(self.device))
        return vocabulary.find_items(sequences, self.trie).cpu().numpy()

    @torch.inference_mode()
    def score_items(self, histories: np.ndarray) -> np.ndarray:
        """Exact log P(v|S) of all items, for catalogues of a few thousand [users, n_items]."""
        scores = []
        for start in range(0, len(histories), 8):
            part = histories[start : start + 8]
            step = self._step(part)
            scores.append(score_all(step, self.trie, len(part), self.device)[:, self.trie.leaf_of_item].cpu().numpy())
        return np.concatenate(scores)

    @torch.inference_mode()
    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Exact log P(v|S) of a few items a history; they share the prompt, which is encoded once.

        Args:
            histories: item numbers, oldest first, padded with -1 [rows, length].
            items: item numbers, -1 for none [rows, k].

        Returns:
            float32 [rows, k], -inf for none.
        """
        codes = torch.from_numpy(self.data.ids.codes[np.maximum(items, 0)]).to(self.device)
        step = self._step(histories)
        total = step(0, None, None).expand(-1, items.shape[1], -1).gather(2, codes[..., :1])[..., 0]
        beams = torch.arange(items.shape[1], device=self.device).expand(items.shape)  # one a candidate
        for level in range(1, codes.shape[2]):
            log_probs = step(level, beams if level > 1 else torch.zeros_like(beams), codes[..., level - 1])
            total = total + log_probs.gather(2, codes[..., level, None])[..., 0]
        return np.where(items == PAD, -np.inf, total.float().cpu().numpy())

    @torch.inference_mode()
    def item_states(self, batch_size: int = 256) -> np.ndarray:
        """Represent each item by the mean state of the last layer at its codewords, float32 [n_items, dim].

        The model reads the item alone: the tokenizer's start token, if it has one, and the item's codewords.
        """
        tokens = torch.from_numpy(self.data.item_tokens).to(self.device)
        if self.data.tokenizer.bos_token_id is not None:
            tokens = torch.nn.functional.pad(tokens, (1, 0), value=self.data.tokenizer.bos_token_id)
        levels, states = self.data.ids.levels, []
        for part in tokens.split(batch_size):
            hidden = self.model.base_model(input_ids=part).last_hidden_state
            states.append(hidden[:, -levels:].float().mean(1))
        return torch.cat(states).cpu().numpy()

    @torch.inference_mode()
    def codeword_logprobs(self, histories: np.ndarray, targets: np.ndarray, scope: str = "level") -> Tensor:
        """As `Engine.codeword_logprobs`."""
        return self._codeword_logprobs(self.codeword_states(histories, targets)[..., 0, :], scope)

    @torch.inference_mode()
    def codeword_states(
        self, histories: np.ndarray, targets: np.ndarray, layers: tuple[int, ...] = LAST_LAYER
    ) -> Tensor:
        """As `StateEngine.codeword_states`."""
        prompts, lengths = self.prompts(histories)
        levels = self.data.ids.levels
        tokens = torch.nn.functional.pad(prompts, (0, levels - 1), value=self.pad)
        forced = torch.from_numpy(self.data.item_tokens[targets]).to(self.device)
        places = lengths[:, None] + torch.arange(levels - 1, device=self.device)
        tokens.scatter_(1, places, forced[:, :-1])
        out = self.model.base_model(input_ids=tokens, output_hidden_states=layers != LAST_LAYER)
        before = lengths[:, None] - 1 + torch.arange(levels, device=self.device)  # positions that predict the ID
        return states_of_layers(out, layers, before)

    @torch.inference_mode()
    def stream_logprobs(self, sequences: np.ndarray, scope: str = "level") -> Tensor:
        """As `Engine.stream_logprobs`."""
        return self._codeword_logprobs(self.stream_states(sequences)[..., 0, :], scope)

    @torch.inference_mode()
    def stream_states(self, sequences: np.ndarray, layers: tuple[int, ...] = LAST_LAYER) -> Tensor:
        """As `StateEngine.stream_states`, in one forward pass.

        Where only the last items of a history carry titles (`stream_title_items`), each prefix is a prompt of its own.
        """
        levels, length = self.data.ids.levels, sequences.shape[1]
        if self.data.stream.stream_title_items:
            prefixes = [np.where(np.arange(length) < end, sequences, PAD) for end in range(length)]
            targets = np.maximum(sequences, 0)
            parts = [self.codeword_states(prefix, targets[:, end], layers) for end, prefix in enumerate(prefixes)]
            return torch.stack(parts, dim=1)
        out, before, _ = self._read_streams(sequences, use_cache=False, every_layer=layers != LAST_LAYER)
        return states_of_layers(out, layers, before).unflatten(1, (length, levels))

    @property
    def shares_prefixes(self) -> bool:
        """Whether `label_streams` can be asked: every history is the beginning of its user's sequence of tokens.

        It is not where only the last items carry titles, nor where layers keep the last tokens alone.
        """
        sliding = getattr(self.model.config, "sliding_window", None)
        all_kept = sliding is None or sliding > self.data.max_tokens
        return self.prompt == "stream" and not self.data.stream.stream_title_items and all_kept

    @torch.inference_mode()
    def label_streams(
        self,
        sequences: np.ndarray,
        users: np.ndarray,
        places: np.ndarray,
        width: int,
        exclude_bought: bool = True,
        constrained: bool = True,
        scope: Scope = "level",
    ) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """As `Engine.label_streams`."""
        levels = self.data.ids.levels
        out, before, cache = self._read_streams(sequences, use_cache=True)
        states = out.last_hidden_state
        rows = torch.from_numpy(users).to(self.device)
        place = torch.from_numpy(places).to(self.device)
        before = before.unflatten(1, (-1, levels))[rows, place]  # positions that predict the targets [targets, levels]
        log_probs = self._codeword_logprobs(states[rows[:, None], before], scope)
        step = TreeStep(self.model, self.token_of, prefixes_of(cache, states, rows, before[:, 0] + 1))
        histories = np.where(np.arange(sequences.shape[1]) < places[:, None], sequences[users], PAD)
        return *self._search(step, histories, width, exclude_bought, constrained), log_probs

    def facts(self) -> dict[str, str]:
        """Engine, versions and dtype, for the labels' manifest."""
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {
            "engine": "hf",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "prompt": self.prompt,
            **versions,
        }

    def prompts(self, histories: np.ndarray, reserve: int | None = None) -> tuple[Tensor, Tensor]:
        """Build the prompts: token numbers padded on the right [users, tokens], and lengths [users].

        Args:
            histories: item numbers, oldest first, padded with -1 [users, length].
            reserve: tokens that must fit behind the prompt (default: an ID without its last codeword).

        Raises:
            UserError: they do not fit the model's window.
        """
        if reserve is None:  # histories, not whole sequences: the teacher reads as many items as it was tuned with
            histories, reserve = last_items(histories, self.data.max_history), self.data.ids.levels - 1
        if self.prompt != "stream" or self.data.writer.titles is not None:
            return self.padded(prompt_rows(self.data, self.prompt, histories), reserve)
        padding = histories == PAD
        codes = np.where(padding[..., None], self.pad, self.data.item_tokens[histories])
        tokens = np.pad(codes.reshape(len(histories), -1), ((0, 0), (1, 0)), constant_values=0)
        tokens[:, 0] = self.data.tokenizer.bos_token_id
        return self._on_device(tokens, 1 + (~padding).sum(1) * self.data.ids.levels, reserve)

    def padded(self, rows: list[list[int]], reserve: int) -> tuple[Tensor, Tensor]:
        """Pad rows of token numbers on the right; returns and raises as `prompts`."""
        lengths = np.array([len(row) for row in rows])
        tokens = np.full((len(rows), lengths.max()), self.pad, dtype=np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        return self._on_device(tokens, lengths, reserve)

    def _on_device(self, tokens: np.ndarray, lengths: np.ndarray, reserve: int) -> tuple[Tensor, Tensor]:
        """Check that the rows fit the model's window, count their tokens, and put them on the device."""
        window = getattr(self.model.config, "max_position_embeddings", None)
        if window and lengths.max() + reserve > window:
            raise UserError(
                f"A prompt of {lengths.max()} tokens and an ID do not fit the teacher's window of {window}; its "
                f"teacher.json asks for histories of {self.data.max_history} items. Tune it with a longer window."
            )
        self.counters["tokens"] += int(lengths.sum())
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(lengths).to(self.device)

    def _step(self, histories: np.ndarray) -> TreeStep:
        """Encode the prompts of histories and begin a search behind them."""
        return TreeStep(self.model, self.token_of, encode(self.model, *self.prompts(histories)))

    def _search(
        self, step: TreeStep, histories: np.ndarray, width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search the likeliest items; arguments and result as `Engine.beams`."""
        bought = torch.from_numpy(histories).to(self.device)
        allowed = step if constrained else mask_step(step, self.data.gaps)
        beams = search(allowed, self.trie, bought, width, exclude_bought, constrained)
        items, scores = to_items(beams, self.trie, bought, width, exclude_bought, constrained)
        return items.cpu().numpy(), scores.cpu().numpy()

    def _read_streams(
        self, sequences: np.ndarray, use_cache: bool, every_layer: bool = False
    ) -> tuple[BaseModelOutputWithPast, Tensor, DynamicCache | None]:
        """Run whole sequences through the trunk.

        Args:
            sequences: item numbers, padded with -1 on the right [users, length].
            use_cache: keep keys and values.
            every_layer: keep the states of all layers.

        Returns:
            The trunk's output, states [users, tokens, dim]; the positions that predict each codeword, undefined at
            padding [users, length * levels]; the cache.
        """
        streams = [self.data.writer.sequence(row[row != PAD]) for row in sequences]
        tokens, _ = self.padded([stream.tokens.tolist() for stream in streams], reserve=-1)  # the last is only a target
        before = np.zeros((len(streams), sequences.shape[1] * self.data.ids.levels), dtype=np.int64)
        for row, stream in enumerate(streams):
            positions = np.flatnonzero(stream.codewords) - 1
            before[row, : len(positions)] = positions
        cache = DynamicCache(config=self.model.config) if use_cache else None
        options = {"past_key_values": cache, "use_cache": use_cache, "output_hidden_states": every_layer}
        out = self.model.base_model(input_ids=tokens[:, :-1], **options)
        return out, torch.from_numpy(before).to(self.device), cache

    def _codeword_logprobs(self, hidden: Tensor, scope: Scope) -> Tensor:
        """Log-probabilities over the full vocabulary of the codewords [..., levels, codewords]."""
        log_probs = codeword_log_probs(self.model, hidden, self.token_of)  # [..., position, level, codeword]
        if scope == "all":
            return mask_gaps(log_probs.flatten(-2), self.data.gaps, scope)
        levels = log_probs.diagonal(dim1=-3, dim2=-2).movedim(-1, -2)
        return mask_gaps(levels.contiguous(), self.data.gaps)


def states_of_layers(out: BaseModelOutputWithPast, layers: tuple[int, ...], places: Tensor) -> Tensor:
    """Take the states after some layers at some places.

    Args:
        out: a trunk's output; with the states of all layers, unless the last alone is asked for.
        layers: from 1, or LAST_LAYER.
        places: of tokens [rows, m].

    Returns:
        [rows, m, layers, hidden].
    """
    every = (*(out.hidden_states or ())[:-1], out.last_hidden_state)  # the embedded tokens are number 0
    index = places[..., None].expand(-1, -1, out.last_hidden_state.shape[-1])
    return torch.stack([every[layer].gather(1, index) for layer in layers], dim=2)
