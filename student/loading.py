"""Load trained networks from their folders, with one message where a file is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from distill.runtime.errors import UserError
from student.models.item_text import sizes_from_json


@contextlib.contextmanager
def report_damage(folder: Path) -> Iterator[None]:
    """Turn whatever damaged files make libraries raise into one message.

    Raises:
        UserError: names the folder and the reason; the cause is attached.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{folder} cannot be loaded: its files are damaged, or of another version ({type(error).__name__}: "
            f"{reason}). Train or copy it again."
        ) from error


def load_network(network: type, config: type, sizes: dict[str, Any], path: Path) -> nn.Module:
    """Build a network and load its weights, after comparing their shapes: damaged sizes must not fill the memory.

    Args:
        network: its class.
        config: the class of its sizes.
        sizes: as `sizes_to_json` wrote them.
        path: the safetensors file.

    Raises:
        UserError: sizes that are none, or weights of other shapes or that are no finite numbers.
    """
    weights = load_file(path)
    built_sizes = sizes_from_json(config, sizes)
    _check_sizes(built_sizes, len(weights), path)
    with torch.device("meta"), NoInitialisation():
        expected = {name: tensor.shape for name, tensor in network(built_sizes).state_dict().items()}
    actual = {name: tensor.shape for name, tensor in weights.items()}
    if expected != actual:
        name = min(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
        raise UserError(
            f"{path} does not fit the sizes in config.json: {name} is {list(actual.get(name, []))}, expected "
            f"{list(expected.get(name, []))}."
        )
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path} is damaged: {name} holds NaN or infinity.")
    with NoInitialisation():
        model = network(built_sizes)
    model.load_state_dict(weights)
    return model


class NoInitialisation(TorchFunctionMode):
    """Build networks without drawing their weights, which are loaded afterwards.

    On the device "meta" the draws would also import torch's compiler, two seconds of every start.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _check_sizes(sizes: Any, n_tensors: int, path: Path) -> None:
    """Refuse sizes that no trained network has.

    Raises:
        UserError: names the first.
    """
    for field in dataclasses.fields(sizes):
        value = getattr(sizes, field.name)
        kinds = (int, float) if "float" in str(field.type) else (int,)
        if str(field.type) not in ("int", "float"):
            continue
        largest = n_tensors if field.name.endswith("layers") else math.inf
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= largest:
            raise UserError(
                f"{path.with_name('config.json')} is damaged: its model has {field.name} {str(value)[:60]}."
            )
    heads, width = getattr(sizes, "heads", 1), getattr(sizes, "dim", 0)
    if heads < 1 or width % heads:  # the weights do not tell the heads
        raise UserError(f"{path.with_name('config.json')} is damaged: {heads} heads do not divide the width {width}.")


def check_scores(scores: np.ndarray) -> None:
    """Refuse scores of items that are NaN, by which nothing can be ranked.

    Raises:
        UserError: as above.
    """
    if np.isnan(scores).any():
        raise UserError(
            "The model's scores are NaN: its weights are damaged, or its training diverged. Train it again."
        )


def check_numbers(facts: Mapping[str, Any], bounds: Mapping[str, tuple[type, float, float]], where: Path | str) -> None:
    """Check numbers that a config.json holds.

    Args:
        facts: names and values.
        bounds: name -> type (int or float), least and largest value; facts that are not there are not checked.
        where: the file, for the message.

    Raises:
        UserError: names the first that is of another type or out of its range.
    """
    for name, (kind, low, high) in bounds.items():
        value = facts.get(name, low)
        fits = isinstance(value, int | kind) and not isinstance(value, bool) and low <= value <= high
        if not fits:
            noun = "a whole number" if kind is int else "a number"
            raise UserError(
                f"{where} is damaged: {name} is {str(value)[:60]}, expected {noun} from {low:g} to {high:g}."
            )
