"""The vLLM engine: the same beams and distributions as `hf`, from a running vLLM on GPUs or a CPU.

vLLM's beam search cannot ask a trie before its top-k, so ours runs outside of it: every step is one batch of requests
of one token each, whose prompt is the user's prompt and the beam's codewords, all but its end from the prefix cache. A
request names the tokens that it asks about (`logprob_token_ids`): the trie's children, whose log-probabilities over the
full vocabulary come back.

Codeword distributions come in one of two ways, by the model runner that vLLM has chosen:

- V1 (CPUs): the same requests, at each of the forced positions.
- V2 (GPUs): `prompt_logprob_token_ids`, one request for all positions. NOT RUN YET: tests cover it on a GPU only.

All requests give token numbers and explicit sampling settings: neither the checkpoint's generation config nor its text
tokenizer is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.data.dataset import PAD, Dataset
from distill.decoding.beam_search import search, to_items
from distill.decoding.trie import Trie
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.engine import Scope
from teacher.engines import mask_gaps, open_teacher, prompt_rows
from teacher.engines.vllm_start import last_line, start_vllm
from teacher.tasks import TaskData

WANTED_LIMIT = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS: tokens that one request may ask about


class VLLMEngine:
    """A teacher in vLLM behind `distill.teachers.engine.Engine`.

    Args:
        llm: a `vllm.LLM`.
        data: knows the prompts and the codewords' token numbers.
        prompt: kind of prompt, "stream", "seqrec" or "file".

    Attributes:
        counters: since the start: requests, their prompts' tokens, and how many of these came from the prefix cache.
    """

    def __init__(self, llm, data: TaskData, prompt: str):
        self.llm, self.data, self.prompt = llm, data, prompt
        self.trie = Trie.build(data.ids.codes, data.ids.codebook_size)
        self.config = llm.llm_engine.vllm_config
        self.v2 = self.config.use_v2_model_runner
        self.window = self.config.model_config.max_model_len - 1  # vLLM always generates one token
        self.counters = {"requests": 0, "tokens": 0, "cached_tokens": 0}

    @staticmethod
    def load(
        folder: Path,
        dataset: Dataset,
        ids: SemanticIDs,
        dtype: str = "float32",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        kv_cache_gb: float | None = None,
        max_num_seqs: int = 256,
        **more,
    ) -> VLLMEngine:
        """Start vLLM on a merged teacher checkpoint; seconds on a CPU, minutes for a large model.

        Args:
            folder: the checkpoint.
            dataset: its items and sequences.
            ids: its codebook.
            dtype: of the weights.
            tensor_parallel_size: GPUs that share one model.
            gpu_memory_utilization: share of a GPU's memory for weights and caches.
            kv_cache_gb: size of the key-value cache in GiB instead; on CPUs 1 by default.
            max_num_seqs: requests in one forward pass.
            more: any other setting of `vllm.LLM`.

        Raises:
            UserError: vLLM is not installed, the checkpoint does not fit, or vLLM does not start.
        """
        data, prompt = open_teacher(folder, dataset, ids)
        limits = data.max_tokens, data.token_of.size
        llm = start_vllm(
            folder, *limits, dtype, tensor_parallel_size, gpu_memory_utilization, kv_cache_gb, max_num_seqs, **more
        )
        return VLLMEngine(llm, data, prompt)

    def beams(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Engine.beams`.

        Raises:
            UserError: a prompt is longer than the model's window, or vLLM dies.
        """
        prompts = self.check_lengths(prompt_rows(self.data, self.prompt, histories))
        parts = []
        for part in self.chunks(prompts, width):
            bought = torch.from_numpy(histories[part])
            step = RequestStep(self, prompts[part], constrained)
            beams = search(step, self.trie, bought, width, exclude_bought, constrained)
            parts.append(to_items(beams, self.trie, bought, width, exclude_bought, constrained))
        items, scores = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
        return items, scores

    def codeword_logprobs(self, histories: np.ndarray, targets: np.ndarray, scope: Scope = "level") -> Tensor:
        """As `Engine.codeword_logprobs`.

        Raises:
            UserError: a prompt is longer than the model's window, or vLLM dies.
        """
        prompts = self.check_lengths(prompt_rows(self.data, self.prompt, histories))
        return self._forced(prompts, self.data.item_tokens[targets], scope)

    def stream_logprobs(self, sequences: np.ndarray, scope: Scope = "level") -> Tensor:
        """As `Engine.stream_logprobs`.

        Raises:
            UserError: a sequence is longer than the model's window, or vLLM dies.
        """
        levels, lengths = self.data.ids.levels, (sequences != PAD).sum(1)
        wanted, writer = self._wanted(scope), self.data.writer
        log_probs = torch.zeros(*sequences.shape, *wanted.shape)
        if self.v2 and not writer.title_items:
            streams = [writer.sequence(row[:length]) for row, length in zip(sequences, lengths, strict=True)]
            values = self._forced_at_once([s.tokens[:1].tolist() for s in streams], [s.tokens[1:] for s in streams],
                                          [s.codewords[1:] for s in streams], wanted)  # fmt: skip
            for row, row_values in enumerate(values):
                log_probs[row, : lengths[row]] = row_values.unflatten(0, (-1, levels))
            return log_probs
        places = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
        if places:
            prompts = self.check_lengths([writer.prompt(sequences[row, :place]).tolist() for row, place in places])
            forced = self.data.item_tokens[[sequences[row, place] for row, place in places]]
            log_probs[torch.from_numpy(sequences != PAD)] = self._forced(prompts, forced, scope)
        return log_probs

    def facts(self) -> dict[str, str | int]:
        """Engine, version and dtype, for the labels' manifest."""
        import vllm

        return {
            "engine": "vllm",
            "engine_version": vllm.__version__,
            "dtype": str(self.config.model_config.dtype).removeprefix("torch."),
            "tensor_parallel_size": self.config.parallel_config.tensor_parallel_size,
            "runner": "V2" if self.v2 else "V1",
            "distributions": "prompt_logprob_token_ids" if self.v2 else "logprob_token_ids",
        }

    def close(self) -> None:
        """Shut vLLM down, with what it has set up in this process."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()

    def check_lengths(self, prompts: list[list[int]]) -> list[list[int]]:
        """Return the prompts, if an ID fits behind the longest of them.

        Raises:
            UserError: it does not.
        """
        longest = max(map(len, prompts), default=0)
        if longest + self.data.ids.levels > self.window:
            raise UserError(
                f"A prompt of {longest} tokens and an ID of {self.data.ids.levels} do not fit the teacher's window of "
                f"{self.window} tokens. It was tuned on histories of {self.data.max_history} items: cut them to that."
            )
        return prompts

    def chunks(self, prompts: list[list[int]], width: int) -> list[slice]:
        """Split users so that the beams of a part fit the key-value cache together; else every step would compute the
        prompts again."""
        block = self.config.cache_config.block_size
        free = (self.config.cache_config.num_gpu_blocks or 0) * 9 // 10
        parts, start, used = [], 0, 0
        for row, prompt in enumerate(prompts):
            needed = len(prompt) // block + 1 + 2 * width  # beams share the prompt's blocks, but for the last one
            if row > start and used + needed > free:
                parts.append(slice(start, row))
                start, used = row, 0
            used += needed
        return [*parts, slice(start, len(prompts))]

    def next_token_logprobs(self, prompts: Sequence[Sequence[int]], wanted: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Full-vocabulary log-probabilities of the wanted tokens after each prompt.

        Args:
            prompts: token numbers, of unequal lengths.
            wanted: the tokens to ask about after each prompt, of unequal lengths.

        Returns:
            For each prompt, float32 values in the order of its wanted tokens.
        """
        from vllm import SamplingParams

        rows, params = [], []
        for row, tokens in enumerate(wanted):
            for start in range(0, len(tokens), WANTED_LIMIT):
                rows.append(row)
                params.append(
                    SamplingParams(
                        max_tokens=1,
                        temperature=0,
                        logprob_token_ids=tokens[start : start + WANTED_LIMIT].tolist(),
                        flat_logprobs=True,
                        detokenize=False,
                        skip_clone=True,  # this object is used once: no deep copy is needed
                    )
                )
        outputs = self._generate([prompts[row] for row in rows], params)
        log_probs: list[list[float]] = [[] for _ in prompts]
        for row, output in zip(rows, outputs, strict=True):
            log_probs[row].extend(output.outputs[0].logprobs.logprobs[1:])  # the first is the generated token's
        return [np.array(values, dtype=np.float32) for values in log_probs]

    def _generate(self, prompts: list[Sequence[int]], params: list) -> list:
        """Run requests and count them.

        Raises:
            UserError: vLLM dies.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        # on CPUs: what vLLM compiles beside the model would need a C++ compiler, and seconds, for no gain
        stance = nullcontext() if torch.cuda.is_available() else torch.compiler.set_stance("force_eager")
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            with stance:
                outputs = self.llm.generate(requests, params, use_tqdm=False)
        except (EngineDeadError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"vLLM died after {self.counters['requests']} requests: {last_line(error)} What is finished is kept: "
                "run the same command again to go on, with a smaller cache if memory ran out."
            ) from None
        self.counters["requests"] += len(prompts)
        self.counters["tokens"] += sum(map(len, prompts))
        self.counters["cached_tokens"] += sum(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    def _wanted(self, scope: Scope) -> np.ndarray:
        """Token numbers to ask about at each level's position [levels, codewords]."""
        token_of = self.data.token_of
        return token_of if scope == "level" else np.tile(token_of.ravel(), (len(token_of), 1))

    def _forced(self, prompts: list[list[int]], forced: np.ndarray, scope: Scope) -> Tensor:
        """Teacher-forced log-probabilities at the positions of an ID after each prompt.

        Args:
            prompts: token numbers.
            forced: token numbers of the IDs [rows, levels].
            scope: as for `Engine.codeword_logprobs`.

        Returns:
            [rows, levels, codewords].
        """
        wanted, levels = self._wanted(scope), self.data.ids.levels
        if self.v2:
            codewords = [np.ones(levels, bool)] * len(forced)
            log_probs = torch.stack(self._forced_at_once(prompts, list(forced), codewords, wanted))
            return mask_gaps(log_probs, self.data.gaps, scope)
        prefixes = [
            [*prompt, *tokens[:level]]
            for prompt, tokens in zip(prompts, forced.tolist(), strict=True)
            for level in range(levels)
        ]
        values = self.next_token_logprobs(prefixes, [wanted[level] for _ in prompts for level in range(levels)])
        return mask_gaps(torch.from_numpy(np.stack(values)).unflatten(0, (-1, levels)), self.data.gaps, scope)

    def _forced_at_once(
        self, prompts: list[list[int]], forced: list[np.ndarray], codewords: list[np.ndarray], wanted: np.ndarray
    ) -> list[Tensor]:
        """As `_forced`, by one request a row, which V2 scores while it reads the prompt.

        Args:
            prompts: token numbers.
            forced: token numbers of one ID or several in a row, perhaps with titles between them, for each prompt.
            codewords: which of them are codewords, bool, for each prompt.
            wanted: from `_wanted`.

        Returns:
            For each prompt, [forced codewords, codewords].
        """
        from vllm import SamplingParams

        params = [
            SamplingParams(
                max_tokens=1,
                temperature=0,
                detokenize=False,
                # at a title's tokens, which are not returned, anything may be asked
                prompt_logprob_token_ids=wanted[np.where(is_codeword, np.cumsum(is_codeword) - 1, 0) % len(wanted)],
                prompt_logprob_start=len(prompt) - 1,
            )
            for prompt, is_codeword in zip(prompts, codewords, strict=True)
        ]
        requests = [[*prompt, *tokens.tolist()] for prompt, tokens in zip(prompts, forced, strict=True)]
        self.check_lengths([request[: -len(wanted)] for request in requests])
        outputs = [torch.tensor(output.prompt_token_id_logprobs) for output in self._generate(requests, params)]
        return [output[torch.from_numpy(kept)] for output, kept in zip(outputs, codewords, strict=True)]


class RequestStep:
    """`beam_search.Step` of a running vLLM: one request a beam, about its children in the trie or all known codewords.

    Args:
        engine: runs the requests.
        prompts: token numbers of each user's prompt.
        constrained: ask about the trie's children only; all other codewords score -inf.
    """

    def __init__(self, engine: VLLMEngine, prompts: list[list[int]], constrained: bool):
        self.engine, self.trie, self.constrained = engine, engine.trie, constrained
        self.beams = [[prompt] for prompt in prompts]  # token numbers so far [users][beams]
        self.nodes = torch.zeros(len(prompts), 1, dtype=torch.int32)  # in the trie; -1: no such ID, scores -inf

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """As `beam_search.Step`."""
        if level > 0:
            self._extend(level, parents, codes)
        token_of = self.engine.data.token_of[level]
        requested = self._requested(level).flatten(0, 1).numpy()
        rows = np.flatnonzero(requested.any(1))
        prompts = [beam for user in self.beams for beam in user]
        wanted = [np.flatnonzero(requested[row]) for row in rows]
        values = self.engine.next_token_logprobs([prompts[row] for row in rows], [token_of[codes] for codes in wanted])
        log_probs = np.full(requested.shape, -np.inf, dtype=np.float32)
        for row, row_codes, row_values in zip(rows, wanted, values, strict=True):
            log_probs[row, row_codes] = row_values
        return torch.from_numpy(log_probs).view(*self.nodes.shape, self.trie.codebook_size)

    def _extend(self, level: int, parents: Tensor, codes: Tensor) -> None:
        """Append the codewords chosen on the level before to the beams that they continue."""
        tokens = self.engine.data.token_of[level - 1][codes.numpy()].tolist()
        self.beams = [
            [[*user[parent], token] for parent, token in zip(user_parents, user_tokens, strict=True)]
            for user, user_parents, user_tokens in zip(self.beams, parents.tolist(), tokens, strict=True)
        ]
        nodes = self.nodes.gather(1, parents)
        child, code = self.trie.children(level - 1, nodes.clamp(min=0))
        match = (child >= 0) & (code == codes[..., None]) & (nodes >= 0)[..., None]
        self.nodes = torch.where(match.any(-1), torch.where(match, child, 0).sum(-1), -1).int()

    def _requested(self, level: int) -> Tensor:
        """Which codewords each beam asks about: bool [users, beams, codebook_size]."""
        shape = (*self.nodes.shape, self.trie.codebook_size)
        if not self.constrained:
            return torch.from_numpy(~self.engine.data.gaps[level]).expand(shape)
        child, code = self.trie.children(level, self.nodes.clamp(min=0))
        user, beam, place = torch.where((child >= 0) & (self.nodes >= 0)[..., None])
        requested = torch.zeros(shape, dtype=torch.bool)
        requested[user, beam, code[user, beam, place]] = True
        return requested
