"""What a user typed wrong, in a line or two: the option, what is wrong with it, the nearest right one, where help is.

argparse answers with every option there is, and jsonargparse with those and what its types thought of the value.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn, final

_UNKNOWN = re.compile(r"unrecognized arguments: (.*)")
_KEY = re.compile(r"Parser key \"([^\"]+)\":")
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_MISSING = re.compile(r"the following arguments are required: (.*)")
_NOT_ACCEPTED = re.compile(r"(?:Subcommand '[^']+' does not accept o|O)ption '([^']+)'(?: is not accepted)?")
_LITERAL = re.compile(r"Expected a typing\.Literal(\[.*\])\. Got value: (.*)")
_TYPE = re.compile(r"Expected a <class '([^']+)'>(?:\. Got value: (.*))?")
_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_VALUE = re.compile(r"Given value: (.*)")
_NESTED_VALUE = re.compile(r"NestedArg\(key='[^']*', val='?(.*?)'?\)")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_SAYS_NOTHING = (
    "Does not validate against any", "Subtypes:", "Errors:", "Expected a path but", "Expected a <class 'NoneType'>",
    "Given value", "Problem with given class_path",
)  # fmt: skip
_WIDTH = 110


@final
class CommandParser(argparse.ArgumentParser):
    """argparse's, whose errors are a line or two on stderr and exit status 2."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] - an overloaded one
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """argparse's, which would find an option missing before it finds it mistyped."""
        wrong = mistyped(sys.argv[1:] if args is None else args, self._option_string_actions)
        if wrong is not None:
            self.error(f"unrecognized arguments: {wrong}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, told(self.prog, message, self._option_string_actions))


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--quiet`, one of them at most, which mean the same in every command."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    how.add_argument("--quiet", action="store_true", help="print one line and nothing else")


def whole_number(least: int) -> Any:
    """A type for an option: a whole number, not below `least`.

    >>> whole_number(1)("0")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: '0' is no whole number of 1 or more
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number of {least} or more")
        return number

    return read


def told(program: str, message: str, options: Collection[str]) -> str:
    """The lines for a parser's `message`, given the names of its options, with dashes.

    >>> print(told("lightning-intune synth", "unrecognized arguments: --rowz 3", ["--rows", "--seed"]), end="")
    lightning-intune synth: there is no option '--rowz'. Did you mean '--rows'?
    'lightning-intune synth --help' says what there is.
    """
    program = program.replace(" [options]", "")
    return f"{program}: {_mistake(message, options)}\n'{program} --help' says what there is.\n"


def mistyped(words: Sequence[str], options: Collection[str]) -> str | None:
    """The first of `words` that is written as an option and begins like none of `options`.

    >>> mistyped(["clicks", "--lable", "click"], ["--label", "--help"]), mistyped(["--lab", "x"], ["--label"])
    ('--lable', None)
    """
    for word in words:
        if word == "--":
            return None
        name = re.split(r"[.=+]", word)[0]
        if name.startswith("--") and not any(option.startswith(name) for option in options):
            return word
    return None


def nearest(name: str, names: Iterable[str]) -> str:
    """A question to end the sentence with, as in " Did you mean 'rows'?"; nothing where no name is near.

    >>> nearest("rowz", ["rows", "seed"]), nearest("nonsense", ["rows"])
    (" Did you mean 'rows'?", '')
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _mistake(message: str, options: Collection[str]) -> str:
    if found := _UNKNOWN.match(message):
        return _unknown(found.group(1).split()[0], options)
    if found := _MISSING.match(message):
        names = [name.strip() for name in found.group(1).split(",")]
        shown = ["--" + name.partition(".")[2] if re.match(r"(fit|validate|test|predict)\.", name) else name
                 for name in names]  # fmt: skip
        return f"{' and '.join(shown)} {'is' if len(shown) == 1 else 'are'} missing."
    if found := _NOT_ACCEPTED.fullmatch(message):
        return _unknown("--" + found.group(1), options)
    if message.startswith("Problems parsing config: "):
        return "the settings are no YAML: " + " ".join(message.removeprefix("Problems parsing config: ").split()) + "."
    keys = _KEY.findall(message)
    if not keys:
        return re.sub(r"^argument ([^/:]+)[^:]*:", r"\1:", message).rstrip(".") + "."
    return f"--{'.'.join(keys)}: {_of_value(message)}"


def _unknown(name: str, options: Collection[str]) -> str:
    if not name.startswith("-"):
        return f"'{name}' belongs to no option."
    name = name.partition("=")[0]
    return f"there is no option '{name}'.{nearest(name, (option for option in options if option.startswith('--')))}"


def _of_value(message: str) -> str:
    """What is wrong with the value of an option that there is."""
    lines = [_KEY.sub("", line).strip().removeprefix("- ") for line in message.splitlines()]
    owners = _CLASS.findall(message)
    given = _VALUE.search(message)
    value = _plain(given.group(1)) if given else ""
    for line in lines:
        if (found := _NOT_ACCEPTED.fullmatch(line)) and owners:
            settings = _settings(owners[-1])
            known = f" It has {', '.join(settings)}." if settings and len(settings) <= 8 else ""
            near = nearest(found.group(1), settings)
            return f"{owners[-1].rpartition('.')[2]} has no setting '{found.group(1)}'.{near or known}"
        if found := _LITERAL.match(line):
            choices = [str(choice) for choice in ast.literal_eval(found.group(1))]
            return f"'{found.group(2)}' is not one of: {', '.join(choices)}.{nearest(found.group(2), choices)}"
        if found := _ATTRIBUTE.search(line):
            module, name = found.groups()
            return f"module '{module}' has no '{name}'.{nearest(name, _public(module))}"
        if line.startswith("No module named "):
            return f"{_lower(line)}. Modules are looked for in this folder too, and by --import MODULE."
        if line.startswith("Expected a dot import path"):
            return f"'{value}' is no class here. Write it as module.Class, or name its module by --import MODULE."
    kinds = [found for line in lines if (found := _TYPE.match(line))]
    wanted = " or ".join(_KINDS.get(kind.group(1), kind.group(1)) for kind in kinds if kind.group(1) != "NoneType")
    if wanted:
        value = next((_plain(kind.group(2)) for kind in kinds if kind.group(2)), value)
        return f"'{value}' is not {wanted}."
    rest = [line for line in lines if line and not line.startswith(_SAYS_NOTHING)]
    return textwrap.shorten(" ".join(rest), 2 * _WIDTH, placeholder=" ...")


def _plain(value: str) -> str:
    nested = _NESTED_VALUE.fullmatch(value)
    return nested.group(1) if nested else value


def _settings(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _public(module: str) -> list[str]:
    return [name for name in dir(import_module(module)) if not name.startswith("_")]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
