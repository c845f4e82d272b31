"""Models whose parameters an engine (DeepSpeed ZeRO-3, FSDP) holds in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator


@contextlib.contextmanager
def unsharded(made: Accelerator) -> Iterator[None]:
    """Inside, Transformers and PEFT do not know of ZeRO-3: they build, load and merge models whole on this process.

    They would otherwise cut a base while loading it, before its vocabulary has grown, and call upon all processes
    where the first alone saves.
    """
    plugin = made.state.deepspeed_plugin
    if plugin is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.dschf)


SHARDED = ("DEEPSPEED", "FSDP")  # their optimiser states lie in pieces on all processes


def trainable_state(model) -> dict[str, torch.nn.Parameter]:
    """The trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def engine_of(acc: Accelerator) -> str:
    """Who holds the parameters and the optimiser: "whole" on every process, or "DEEPSPEED 2", "DEEPSPEED 3", "FSDP"."""
    name = acc.distributed_type.value
    plugin = acc.state.deepspeed_plugin
    return "whole" if name not in SHARDED else f"{name} {plugin.zero_stage}" if plugin else name


@contextlib.contextmanager
def gathered(model) -> Iterator[None]:
    """Inside, the parameters are whole on every process; called by all. What is changed there is lost afterwards."""
    pieces = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    shards = [module for module in model.modules() if hasattr(module, "unshard")]
    if pieces:
        from deepspeed import zero

        with zero.GatheredParameters(pieces):
            yield
        return
    for module in shards:  # FSDP
        module.unshard()
    yield
    for module in shards:
        module.reshard()


def trained_copy(acc: Accelerator, model) -> dict[str, torch.Tensor] | None:
    """The trained parameters on the CPU of the first process, None on others; called by all."""
    copy = {}
    for name, parameter in trainable_state(model).items():
        if hasattr(parameter, "ds_id"):  # ZeRO-3; one at a time, so that they never lie whole on a GPU
            from deepspeed import zero

            with zero.GatheredParameters([parameter]):
                copy[name] = parameter.detach().cpu().clone() if acc.is_main_process else None
        else:
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # FSDP's pieces
            copy[name] = whole.detach().cpu().clone() if acc.is_main_process else None
    return copy if acc.is_main_process else None
