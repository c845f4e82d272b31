"""Configs: frozen dataclasses filled from YAML and the command line by jsonargparse.

A stage is a dataclass and a function. `run` turns the two into a command: `--help` shows the field docs, `--config`
reads YAML, `--field value` overrides it, unknown keys are fatal, and a `UserError` ends with one message and exit
code 2 instead of a traceback.
"""

from __future__ import annotations

import atexit
import dataclasses
import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import jsonargparse

from distill.runtime import artifacts
from distill.runtime.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Config = TypeVar("Config")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(config_class: type[Config], default: str | None = None, argv: Sequence[str] | None = None) -> Config:
    """Fill `config_class` from `--config FILE` and command-line overrides; lists may be written 0,1,2 or [0, 1, 2].

    Args:
        config_class: a dataclass; its field docs are the help.
        default: the file of `configs/` that is read where no `--config` is given; None: the dataclass's own defaults.
        argv: the command line (default: this process's).

    Raises:
        UserError: unknown key (the nearest is suggested), wrong type, missing value, unreadable file.
    """
    argv = with_brackets(list(sys.argv[1:] if argv is None else argv), list_fields(config_class))
    title = (config_class.__doc__ or "").strip()
    parser = jsonargparse.ArgumentParser(description=title, exit_on_error=False)
    without = f"configs/{default} is read" if default else "the defaults below hold"
    parser.add_argument("--config", action="config", help=f"YAML file; without one, {without}.")
    parser.add_class_arguments(config_class, as_group=False, skip={"overwrite"})
    names = [field.name for field in dataclasses.fields(config_class)]
    if "overwrite" in names:  # a stage: what it makes is kept
        parser.add_argument("--overwrite", action="store_true", help="Repeat the work even if it is finished.")
        check = "Do nothing; exit code 0 if the work is finished, else 1."
        parser.add_argument("--check", action="store_true", help=check)
    if default and not any(word == "--config" or word.startswith("--config=") for word in argv):
        argv = ["--config", str(CONFIGS / default), *argv]
    try:
        values = parser.instantiate(parser.parse_args(argv)).as_dict()
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise UserError(_explain(str(error), names)) from None
    artifacts.CHECK_ONLY = values.pop("check", False)
    return config_class(**{key: value for key, value in values.items() if key != "config"})


def run(
    main: Callable[[Config], None],
    config_class: type[Config],
    default: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse and run a stage as a command; the whole body of every entry's `__main__`."""
    code = 0
    try:
        main(parse(config_class, default, argv))
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0" or not error.everyone:
            print(f"error{f' in process {rank}' if rank != '0' else ''}: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here or starts afresh", file=sys.stderr)
        code = 130
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        leave(code)
    if code:
        sys.exit(code)


def leave(code: int) -> NoReturn:
    """End one of several processes as an interpreter would, but leave the interpreter standing.

    Gloo's threads may still hold a gathered tensor when all work is done. A thread that lets go of it while the
    interpreter is being taken down aborts the process, and with it the launch (pytorch/pytorch#179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def list_fields(config_class: type) -> set[str]:
    """Names of the fields that take lists, NAME.FIELD for those of a dataclass inside."""
    found = set()
    for name, kind in typing.get_type_hints(config_class).items():
        for one in typing.get_args(kind) if isinstance(kind, types.UnionType) else [kind]:
            if typing.get_origin(one) is list:
                found.add(name)
            elif dataclasses.is_dataclass(one):
                found |= {f"{name}.{inner}" for inner in list_fields(one)}
    return found


def with_brackets(words: Sequence[str], lists: Collection[str]) -> list[str]:
    """A command line with `--seeds 0,1,2` as the parser reads it, `--seeds=[0,1,2]`; `lists` names the options."""
    words, found = list(words), []
    while words:
        option, equals, value = (word := words.pop(0)).partition("=")
        if option.startswith("--") and option[2:] in lists:
            if not equals and words and not words[0].startswith("--"):
                equals, value = "=", words.pop(0)
            if value and value != "null" and not value.lstrip().startswith("["):
                value = f"[{value}]"
            word = option + equals + value
        found.append(word)
    return found


def suggest(word: str, known: Sequence[str]) -> str:
    """'Did you mean …? Available: …' for a word that is not among the known ones."""
    near = difflib.get_close_matches(word, known, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Available: {', '.join(known)}."


def _explain(message: str, names: Sequence[str]) -> str:
    unknown = re.search(r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.-]+)", message)
    if unknown:
        word = unknown.group(1) or unknown.group(2)
        return f"Unknown config key {word!r}. {suggest(word, names)}"
    return message
