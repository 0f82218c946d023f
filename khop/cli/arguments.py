"""What stands on the command line: words, and typed options of a system, a method and a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from khop.errors import InputError, unknown
from khop.methods import method
from khop.system import System, make, system_class

Arguments = list[str]


def system_and_options(
    command: str, arguments: Arguments, options: type, with_method: bool = False
) -> tuple[System, Any, Any]:
    """SYSTEM [METHOD] and the typed options of both and of the command."""
    wanted = 2 if with_method else 1
    words = leading_words(arguments)[:wanted]
    usage = f"khop {command} SYSTEM" + (" METHOD" if with_method else "")
    if len(words) < wanted:
        if asks_for_help(arguments):
            words, arguments = [*words, *["platoon-catchup", "dppo"][len(words) :]][:wanted], ["--help"] * (wanted + 1)
        else:
            raise InputError(f"{usage} is incomplete: `khop list` shows the systems and methods to choose from.")
    cls = system_class(words[0])
    groups: dict[str, Any] = {"options": options()}
    if with_method:
        groups["method"] = method(words[1])
    groups["system"] = make(words[0])
    parsed = typed_options(f"{command} {' '.join(words)}", arguments[len(words) :], groups)
    assert isinstance(parsed["system"], cls)
    chosen = parsed.get("method")
    return parsed["system"], chosen, parsed["options"]


def folder_and_options(command: str, arguments: Arguments, options: type) -> tuple[Path, Any]:
    """DIR and the command's typed options."""
    words = leading_words(arguments)[:1]
    if not words and not asks_for_help(arguments):
        raise InputError(f"khop {command} wants a run's folder, e.g. `khop {command} runs/my-run`.")
    parsed = typed_options(f"{command} DIR", arguments[len(words) :], {"options": options()})
    return Path(words[0]), parsed["options"]


def asks_for_help(arguments: Arguments) -> bool:
    return "--help" in arguments or "-h" in arguments


def leading_words(arguments: Arguments) -> list[str]:
    """The arguments before the first option."""
    words = []
    for argument in arguments:
        if argument.startswith("-"):
            break
        words.append(argument)
    return words


def typed_options(usage: str, arguments: Arguments, defaults: dict[str, Any]) -> dict[str, Any]:
    """Typed options from the command line; every field of the given dataclass instances is a flag of its own."""
    flags = {flag for default in defaults.values() for flag in _flags(default)} | {"--help", "-h"}
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag.replace("_", "-") not in flags:
            raise unknown(f"option of khop {usage.split()[0]}", flag, flags)
    shape = dataclasses.make_dataclass(
        "Options",
        [
            (name, type(default), dataclasses.field(default_factory=_constantly(default)))
            for name, default in defaults.items()
        ],
        frozen=True,
    )
    parsed: Any = tyro.cli(
        shape,
        args=arguments,
        prog=f"khop {usage}",
        description="",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
    )
    return {name: getattr(parsed, name) for name in defaults}


def _constantly(value: Any) -> Callable[[], Any]:
    return lambda: value


def _flags(default: Any) -> list[str]:
    """The command-line flags of a dataclass instance, nested ones included."""
    flags = []
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += _flags(value)
        else:
            flags += [f"--{name}", f"--no-{name}"] if isinstance(value, bool) else [f"--{name}"]
    return flags


def writable(file: Path | None) -> None:
    if file is not None and file.is_dir():
        raise InputError(f"{file} is a folder: name a file in it.")
    if file is not None and not file.absolute().parent.is_dir():
        raise InputError(
            f"The folder {file.absolute().parent} does not exist: create it, or name a file in another one."
        )
