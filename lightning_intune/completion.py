"""Tab completion, by argcomplete: which command's parser is to be asked, and how Lightning's are."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

IS_ASKED = "_ARGCOMPLETE" in os.environ
"""Whether this process was started by the shell to say what may stand at its cursor."""


def complete(commands: Collection[str], run: Callable[[str], object], *, plain: Collection[str]) -> None:
    """Write what may stand at the cursor where argcomplete's shell function reads it, and end the process.

    `run` runs a command up to where it parses its arguments: those of `plain` with argparse, the others end in
    `complete_options`. Returns where argcomplete is not installed.
    """
    try:
        import argcomplete
    except ImportError:
        return
    words, is_behind_command = _words()
    if not (is_behind_command and words[1] in commands):
        parser = argparse.ArgumentParser()
        parser.add_argument("command", choices=sorted(commands))
        argcomplete.autocomplete(parser)
    if words[1] in plain:
        # Of this process, which ends there: the commands' parsers need not know of any of this.
        argparse.ArgumentParser.parse_args = _ask  # type: ignore[method-assign,assignment]
    run(words[1])


def command() -> str:
    """The command whose options are asked for."""
    return _words()[0][1]


def complete_options(options: Collection[argparse.Action]) -> None:
    """Complete one command of jsonargparse's, by its options alone.

    Its own way leads argcomplete 3.7 into a parser that has not run (jsonargparse 4.53: AttributeError).
    """
    from argcomplete.completers import ChoicesCompleter

    parser = argparse.ArgumentParser(add_help=False)
    for option in options:
        names = [name for name in option.option_strings if name.startswith("-")]
        if names and option.help != argparse.SUPPRESS:
            nargs: Any = {"action": "store_true"} if option.nargs == 0 else {"nargs": option.nargs}
            added = parser.add_argument(*names, dest=names[0], **nargs)
            values = list(option.choices or []) or literals(getattr(option, "_typehint", None))
            if values:
                added.completer = ChoicesCompleter(values)  # type: ignore[attr-defined]
    _ask(parser)


def literals(hint: Any) -> list[str]:
    """The values that a type spells out, as YAML writes them.

    >>> literals(Literal["auto"] | float | None), literals(bool), literals(int)
    (['auto', 'null'], ['true', 'false'], [])
    """
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) not in (Union, UnionType):
        return []
    members = get_args(hint)
    found = [value for member in members for value in literals(member)]
    return [*found, "null"] if found and type(None) in members else found


def _ask(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
    import argcomplete

    os.environ["_ARGCOMPLETE"] = "2"  # the command's name stands where its parser expects the program's
    argcomplete.autocomplete(parser)


def _words() -> tuple[list[str], bool]:
    before = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = before.split()
    return words, len(words) > 2 or (len(words) == 2 and before.endswith(" "))
