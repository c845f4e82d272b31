"""Choose and load an engine."""

from __future__ import annotations

from pathlib import Path

from distill.data.dataset import Dataset
from distill.labels.config import EngineSettings
from distill.runtime.devices import choose_device
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.engine import Engine


def open_engine(settings: EngineSettings, dataset: Dataset, ids: SemanticIDs, folder: Path) -> Engine:
    """Load the teacher in `folder` into the engine that the settings name.

    Raises:
        UserError: no teacher there, one of other codewords, or no such device.
    """
    if settings.engine == "vllm":
        from teacher.engines.vllm import VLLMEngine  # an extra

        return VLLMEngine.load(
            folder,
            dataset,
            ids,
            settings.dtype,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_gb=settings.kv_cache_gb,
            max_num_seqs=settings.max_num_seqs,
        )
    from teacher.engines.hf import HFEngine

    return HFEngine.load(folder, dataset, ids, choose_device(settings.device), settings.dtype)
