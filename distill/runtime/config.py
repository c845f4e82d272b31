"""Configs: frozen dataclasses filled from YAML and the command line by jsonargparse.

A command is a dataclass and a function. `run` joins them: `--help` shows the field docs, `--config` reads YAML,
`--field value` overrides it, unknown keys are refused, and a `UserError` ends with one message and exit code 2.

A config may inherit its fields from several dataclasses, one for each group of settings. YAML and flags stay flat;
`--help` lists each group under the first line of its docstring.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import difflib
import io
import itertools
import json
import math
import os
import re
import sys
import threading
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml
from jsonargparse import typing as ranges
from jsonargparse.typing import PositiveFloat  # jsonargparse looks a type up in the module of the whole config

from distill.runtime import checksums
from distill.runtime.disk import describe_full_disk, full_disk_reason
from distill.runtime.errors import UserError
from distill.runtime.launch import is_first_of_machine, process_count, process_number
from distill.runtime.logs import quiet_libraries
from distill.runtime.processes import lost_process
from distill.runtime.terminal import printable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Config = TypeVar("Config")

HalfOpenUnitInterval = ranges.restricted_number_type("HalfOpenUnitInterval", float, [(">=", 0), ("<", 1)])
"""A share below 1."""
Seed = ranges.restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
"""A seed that Python, NumPy, torch and scikit-learn all take."""

HistoryLength = ranges.restricted_number_type("HistoryLength", int, [(">=", 1), ("<=", 100_000)])
"""Items of a history; more would only fill the memory with positions."""

EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    ranges.PositiveInt: "a whole number of at least 1",
    ranges.NonNegativeInt: "a whole number of at least 0",
    ranges.PositiveFloat: "a number above 0",
    ranges.NonNegativeFloat: "a number of at least 0",
    ranges.ClosedUnitInterval: "a number from 0 to 1",
    ranges.OpenUnitInterval: "a number between 0 and 1",
    HalfOpenUnitInterval: "a number of at least 0 and below 1",
    HistoryLength: "a whole number from 1 to 100000",
    Seed: "a whole number from 0 to 4294967295",
    type(None): "null",
}

IF_CHANGED = {"identity": "if changed"}
"""Metadata of a field that came later: in the identity of a job only where it is not the default, so that what was made
before the field existed is not stale."""

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True)
class JobSettings:
    """Finished work.

    A command that writes an artifact inherits these; `ArtifactJob` reads them from its config.
    """

    overwrite: bool = field(default=False, metadata={"identity": False})
    """Repeat the work even if it is finished."""
    check: bool = field(default=False, metadata={"identity": False})
    """Do nothing; exit code 0 if the work is finished, else 1."""
    no_verify: bool = field(default=False, metadata={"identity": False})
    """Do not compare the files that are read with their checksums (all commands: set LOHREC_NO_VERIFY=1)."""


@dataclass(frozen=True)
class LaunchSettings:
    """A training over several machines."""

    machine_silence: PositiveFloat = field(default=60.0, metadata={"identity": False})
    """Of several machines: seconds without a sign of life from one of them after which the launch ends."""


def parse(config_class: type[Config], default: str | None = None, argv: Sequence[str] | None = None) -> Config:
    """Fill `config_class` from `--config FILE` and command-line overrides.

    Beside what jsonargparse reads, the command line may hold `--dry_run` for `--dry_run true`, `--seeds 0,1` for
    `--seeds [0,1]`, `--mix llm=0.7,transitions=0.3` for a dictionary, and `--dry-run` for `--dry_run`.

    Args:
        config_class: a dataclass; its field docs are the help.
        default: the file of `configs/` that is read where no `--config` is given; None: the dataclass's defaults.
        argv: the command line (default: this process's).

    Raises:
        UserError: unknown key (the nearest is suggested), wrong type, number out of range, nan or an infinite number,
            missing value, unreadable file.
    """
    argv = _config_first(list(sys.argv[1:] if argv is None else argv))
    parser = _build_parser(config_class, default)
    if default and not any(word == "--config" or word.startswith("--config=") for word in argv):
        argv = ["--config", str(CONFIGS / default), *argv]
    for word, following in itertools.pairwise(argv):
        if word == "--config":
            _check_keys(Path(following))
    try:
        values = parser.instantiate(parser.parse_args(argv)).as_dict()
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise UserError(_explain(str(error), _field_types(config_class))) from None
    except RecursionError:
        raise UserError("The config nests lists or tables too deeply.") from None
    _check_finite(values)
    _check_nulls(values, _field_types(config_class))
    return config_class(**{key: _plain(value) for key, value in values.items() if key != "config"})


def run(
    main: Callable[[Config], None],
    config_class: type[Config],
    default: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line and run `main`; the whole body of every entry's `__main__`."""
    code, config = 0, None
    quiet_libraries()
    threading.excepthook = _report_error_of_thread
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that the terminal lacks are written as escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            config = parse(config_class, default, argv)
        except SystemExit:  # --help has printed
            sys.stdout.flush()
            raise
        if getattr(config, "no_verify", False):
            os.environ[checksums.SWITCH] = "1"
        main(config)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `recommend.py | head`; whatever is left to write goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except UserError as error:
        if is_first_of_machine() or not error.on_all_processes:  # each machine has a terminal
            process = process_number()
            print(f"error{f' in process {process}' if process else ''}: {printable(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here or starts afresh", file=sys.stderr)
        code = 130
    except Exception as error:
        lost, reason = lost_process(error), full_disk_reason(error)
        if lost is not None:
            print(f"error in process {process_number()}: {printable(lost)}", file=sys.stderr)
            leave(2)
        if reason is None:
            raise
        place = getattr(config, "output", None) or getattr(config, "run", None) or Path.cwd()
        print(f"error: {printable(describe_full_disk(reason, place))}", file=sys.stderr)
        code = 2
    if process_count() > 1:
        leave(code)
    if code:
        sys.exit(code)


def _report_error_of_thread(args: threading.ExceptHookArgs) -> None:
    """Print a thread's error, but no full disk: TensorBoard's writer raises that in the main thread too."""
    if args.exc_value is None or full_disk_reason(args.exc_value) is None:
        threading.__excepthook__(args)


def leave(code: int) -> NoReturn:
    """Exit one process of a launch, skipping interpreter shutdown.

    Worker processes exit with os._exit: gloo threads may still hold tensors at interpreter shutdown and abort the
    launch (pytorch/pytorch#179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def suggest(word: str, known: Sequence[str]) -> str:
    """Write 'Did you mean …? Available: …' for a word that is not among the known ones."""
    near = difflib.get_close_matches(word, known, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Available: {', '.join(known)}."


def _config_first(words: list[str]) -> list[str]:
    """Move --config FILE to the front: the command line overrides the file, wherever the file is named."""
    front: list[str] = []
    rest: list[str] = []
    while words:
        word, *words = words
        if word == "--config" and words:
            front += [word, words.pop(0)]
        else:
            (front if word.startswith("--config=") else rest).append(word)
    return front + rest


def _build_parser(config_class: type, default: str | None) -> jsonargparse.ArgumentParser:
    title = (config_class.__doc__ or "").strip()
    parser = jsonargparse.ArgumentParser(description=title, exit_on_error=False)
    without = f"configs/{default} is read" if default else "the defaults below hold"
    parser.add_argument("--config", action="config", help=f"YAML file; without one, {without}.")
    added: set[str] = set()
    for group in config_class.__mro__:
        declared = set(vars(group).get("__annotations__", ())) - added
        if dataclasses.is_dataclass(group) and declared:
            inherited = {item.name for item in dataclasses.fields(group)} - declared
            parser.add_class_arguments(group, as_group=group is not config_class, skip=inherited)
            added |= declared
    parser._negative_number_matcher = re.compile(r"-[\d.][\d.,eE+ -]*$")  # a value, not an option: lists too
    for action in list(parser._actions):
        _accept_short_forms(parser, action)
    return parser


def _accept_short_forms(parser: jsonargparse.ArgumentParser, action: argparse.Action) -> None:
    """Let an option be written as `parse` documents, by its type."""
    hint = getattr(action, "_typehint", None)
    kinds = {typing.get_origin(part) or part for part in _alternatives(hint)}
    if bool in kinds:
        action.nargs, action.const = "?", True
    if list in kinds:
        action.type = _ShortForm(hint, _list_from_commas)
    if dict in kinds:
        action.type = _ShortForm(hint, _dictionary_from_pairs)
    for option in action.option_strings:
        parser._option_string_actions.setdefault("--" + option[2:].replace("_", "-"), action)


@dataclass(frozen=True)
class _ShortForm:
    """An argparse type: turns the short form of a value into YAML. `--help` shows it as the field's type."""

    hint: Any
    convert: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return self.convert(text)

    def __str__(self) -> str:
        return re.sub(r"\btyping\.|\bjsonargparse\.typing\.|<class '|'>", "", str(self.hint))


def _list_from_commas(text: str) -> str:
    return text if text in ("", "null") or text.lstrip().startswith("[") else f"[{text}]"


def _dictionary_from_pairs(text: str) -> str:
    pairs = [pair.split("=") for pair in text.split(",")]
    if text.lstrip().startswith("{") or any(len(pair) != 2 for pair in pairs):
        return text
    return "{" + ", ".join(f"{json.dumps(name.strip())}: {value}" for name, value in pairs) + "}"


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """List the members of a union type; any other type is its only member."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _field_types(config_class: type) -> dict[str, Any]:
    """Map field names to types; NAME.FIELD are the fields of a nested dataclass."""
    kinds = {}
    for name, hint in typing.get_type_hints(config_class).items():
        kinds[name] = hint
        for part in _alternatives(hint):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                kinds |= {f"{name}.{inner}": kind for inner, kind in _field_types(part).items()}
    return kinds


def _plain(value: Any) -> Any:
    """Replace `jsonargparse.typing`'s numbers in a value by Python's."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    for kind in (int, float):
        if isinstance(value, kind) and not isinstance(value, bool):
            return kind(value)
    return value


def _check_keys(path: Path) -> None:
    """Refuse a YAML file that sets a field twice, of which only the last would count, or that names another file.

    A file that cannot be read is left to the parser, which says why.

    Raises:
        UserError: names the key and its line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            root = yaml.compose(file, yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    tables = [root] if isinstance(root, yaml.MappingNode) else []
    tables += [value for table in tables for _, value in table.value if isinstance(value, yaml.MappingNode)]
    for key, _ in root.value if tables else ():
        if key.value == "config":
            raise UserError(
                f"{path}:{key.start_mark.line + 1}: a config file cannot name another one. Remove the line."
            )
    for table in tables:
        lines: dict[str, int] = {}
        for key, _ in table.value:
            line = key.start_mark.line + 1
            if str(key.value) in lines:
                first = lines[str(key.value)]
                raise UserError(f"{path}:{line}: the key {key.value!r} stands in line {first} already. Remove one.")
            lines[str(key.value)] = line


def _check_nulls(values: dict[str, Any], kinds: dict[str, Any], within: str = "") -> None:
    """Refuse null, in YAML also `NAME:` alone, where a field's type does not admit it; the parser lets it pass.

    Raises:
        UserError: names the field.
    """
    for field_name, value in values.items():
        name = within + field_name
        if value is None and name in kinds and type(None) not in _alternatives(kinds[name]):
            raise UserError(f"--{name} is null; expected {_expected(kinds[name])}.")
        if dataclasses.is_dataclass(value):
            _check_nulls(vars(value), kinds, f"{name}.")


def _check_finite(value: Any, name: str = "") -> None:
    """Refuse nan and infinite numbers, which the ranges of some types admit.

    Args:
        value: of a field, or of all fields by name.
        name: of the field, with dots within a table.

    Raises:
        UserError: names the field.
    """
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            _check_finite(inner, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{name} is {float(value)}; expected a finite number.")


def _explain(message: str, kinds: dict[str, Any]) -> str:
    """Write a parser's message in plain words; a message of unknown form is returned unchanged."""
    unknown = re.search(r"Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.-]+)", message)
    if unknown:
        word = unknown.group(1) or unknown.group(2)
        return f"Unknown config key {word!r}. {suggest(word, [name for name in kinds if '.' not in name])}"
    shape = re.match(r"Unexpected config: (.*)", message)
    if shape:
        return f"The --config file holds {shape.group(1) or 'nothing'}; expected lines of the form NAME: VALUE."
    nested = re.search(r'Parser key "([\w.]+)".*NestedArg\(key=\'(\w+)\', val=\'?(.*?)\'?\)', message, re.DOTALL)
    if nested and f"{nested[1]}.{nested[2]}" in kinds:
        return f"--{nested[1]}.{nested[2]} is {nested[3]}; expected {_expected(kinds[f'{nested[1]}.{nested[2]}'])}."
    key = re.search(r'Parser key "([\w.]+)"', message)
    value = (
        re.search(r"Given value: (.*)", message)
        or re.search(r"Got value: (.*)", message)
        or re.search(r": (\S+) does not conform to", message)
        or re.search(r"invalid literal for int\(\) with base 10: '(.*)'", message)
        or re.search(r"could not convert string to float: '(.*)'", message)
        or re.search(r": (\S+) not an? (?:integer|number)", message)
    )
    if key and value and key.group(1) in kinds:
        return f"--{key.group(1)} is {value.group(1)}; expected {_expected(kinds[key.group(1)])}."
    return message


def _expected(hint: Any) -> str:
    """Describe in words what a field's type admits."""
    parts = []
    for part in _alternatives(hint):
        origin, inner = typing.get_origin(part), typing.get_args(part)
        if origin is typing.Literal:
            parts += [str(value) for value in inner]
        elif origin is list:
            parts.append(f"a list, each {_expected(inner[0])}")
        elif origin is dict:
            parts.append(f"NAME=VALUE pairs, each value {_expected(inner[1])}")
        else:
            parts.append(EXPECTED.get(part) or getattr(part, "__doc__", None) or str(part))
    return " or ".join(parts)
