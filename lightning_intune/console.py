"""The console command `lightning-intune`: finds who does what is asked, and imports nobody else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lightning_intune import __version__
from lightning_intune.completion import IS_ASKED, complete
from lightning_intune.errors import ConfigError
from lightning_intune.mistakes import nearest

HELP = """\
usage: lightning-intune COMMAND [options]    (lightning-intune COMMAND --help says more)

Training, by Lightning's own command line with the tuner built in:
  fit         train; settings by --config FILE.yaml or by options, the tuner's under --intune
  validate    run one evaluation epoch over the validation set
  test        run one evaluation epoch over the test set
  predict     run inference

Session data:
  analyze     measure how often features repeat within sessions, and what deduplication would spare
  cluster     write rows anew, session by session within each day, as rows or as one row per session
  schema      print a first schema for Parquet files, from their footers
  synth       make up session data with known repeats and a label that can be learnt

The tuner:
  pretrain    remake the weights it is shipped with, from a seed

This machine:
  doctor      show what the library sees, try each kind of lane, and say what to change
"""

_OURS = {
    "analyze": ("lightning_intune.dedup.etl.commands", "analyze_main"),
    "cluster": ("lightning_intune.dedup.etl.commands", "cluster_main"),
    "schema": ("lightning_intune.flow.infer", "main"),
    "synth": ("lightning_intune.dedup.etl.commands", "synth_main"),
    "pretrain": ("lightning_intune.control.pretrain", "main"),
    "doctor": ("lightning_intune.doctor", "main"),
}
_LIGHTNINGS = ("fit", "validate", "test", "predict")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake ends with one line and exit code 2, a failure that has a cure with 1."""
    arguments = sys.argv[1:] if args is None else list(args)
    if IS_ASKED:
        complete([*_LIGHTNINGS, *_OURS], lambda name: _run(name, []) if name in _OURS else _lightning(), plain=_OURS)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0
    name, commands = arguments[0], [*_LIGHTNINGS, *_OURS]
    if name == "--version":
        sys.stdout.write(f"lightning-intune {__version__}\n")
        return 0
    if name in _OURS:
        return _run(name, arguments[1:])
    if not name.startswith("-") and name not in _LIGHTNINGS:
        hint = nearest(name, commands) or f" Commands: {', '.join(commands)}."
        sys.stderr.write(f"lightning-intune: there is no command '{name}'.{hint}\n")
        return 2
    if not any(word in _LIGHTNINGS for word in arguments):
        sys.stderr.write(f"lightning-intune: '{name}' comes behind a command. Commands: {', '.join(commands)}.\n")
        return 2
    return _lightning(args)


def _lightning(args: Sequence[str] | None = None) -> int:
    from lightning_intune import cli  # takes seconds: Lightning and torch

    return cli.main(args)


def _run(name: str, arguments: Sequence[str]) -> int:
    module, function = _OURS[name]
    command: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    try:
        return command(arguments)
    except ConfigError as error:
        sys.stderr.write(f"lightning-intune: {error}\n")
        return 2
    except OSError as error:  # a full disk, a folder that may not be written: the text names it
        sys.stderr.write(f"lightning-intune: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"lightning-intune: {name} was stopped. What a 'cluster' had finished is kept for the next.\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
