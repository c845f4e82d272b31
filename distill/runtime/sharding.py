"""Models whose parameters are sharded over processes by DeepSpeed ZeRO-3 or FSDP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator

SHARDED = ("DEEPSPEED", "FSDP")  # engines that shard the optimiser's states


@contextlib.contextmanager
def unsharded(acc: Accelerator) -> Iterator[None]:
    """Switch off ZeRO-3 in Transformers and PEFT: inside, they build, load and merge full models on this process.

    They would otherwise call for all processes where only the first saves, and PEFT would look for a GPU.
    """
    plugin = acc.state.deepspeed_plugin
    if plugin is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.dschf)


@contextlib.contextmanager
def sharded_loading(acc: Accelerator) -> Iterator[None]:
    """Switch ZeRO-3 on again inside `unsharded`: `from_pretrained` then leaves each process its share of a base.

    Every parameter is cut as soon as the first process has read it; all processes must load the base. The CPU's random
    numbers go on as if nothing had been loaded: tables that are replaced would draw some, and codewords start by later
    ones.
    """
    plugin = acc.state.deepspeed_plugin
    if plugin is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    set_hf_deepspeed_config(plugin.dschf)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        unset_hf_deepspeed_config()


def trainable_state(model) -> dict[str, torch.nn.Parameter]:
    """Collect the trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def engine_of(acc: Accelerator) -> str:
    """Name the engine of parameters and optimiser: "whole" (no sharding), "DEEPSPEED 2", "DEEPSPEED 3" or "FSDP"."""
    name = acc.distributed_type.value
    plugin = acc.state.deepspeed_plugin
    if name not in SHARDED:
        return "whole"
    return f"{name} {plugin.zero_stage}" if plugin else name


@contextlib.contextmanager
def gathered(model) -> Iterator[None]:
    """Gather the full parameters on every process; all processes must call it. Changes made inside are lost."""
    zero_parameters = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    fsdp_modules = [module for module in model.modules() if hasattr(module, "unshard")]
    if zero_parameters:
        from deepspeed import zero

        with zero.GatheredParameters(zero_parameters):
            yield
        return
    for module in fsdp_modules:
        module.unshard()
    yield
    for module in fsdp_modules:
        module.reshard()


def trained_copy(acc: Accelerator, model) -> dict[str, torch.Tensor] | None:
    """Copy the trained parameters to the CPU of the first process, None on the others; all processes must call it."""
    copy: dict[str, torch.Tensor] = {}
    for name, parameter in trainable_state(model).items():
        with contextlib.ExitStack() as stack:
            full: torch.Tensor = parameter
            if hasattr(parameter, "ds_id"):  # ZeRO-3; one at a time, so that a GPU never holds all of them
                from deepspeed import zero

                stack.enter_context(zero.GatheredParameters([parameter]))
            elif hasattr(parameter, "full_tensor"):  # FSDP's DTensor
                full = parameter.full_tensor()
            if acc.is_main_process:
                copy[name] = full.detach().cpu().clone()
    return copy if acc.is_main_process else None
