"""The console command `lightning-intune`: Lightning's own command line with the tuner built in."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, final

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_intune import completion
from lightning_intune.callback import InTuneCallback
from lightning_intune.control import pretrain
from lightning_intune.datamodule import InTuneDataModule
from lightning_intune.errors import ConfigError
from lightning_intune.mistakes import mistyped, told

_NO_FILES = ("best", "last", "hpc", "registry")
"""What Lightning takes for a checkpoint beside a path."""


@final
class InTuneParser(LightningArgumentParser):
    """Lightning's, whose errors are a line or two on stderr and exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises where jsonargparse tries one of several types; else tells and ends the process."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        if parser is self and "are required" in message:  # said by the main parser, of one of a command's options
            name = next((word for word in sys.argv[1:] if word in LightningCLI.subcommands()), None)
            choices: Any = next((action.choices for action in self._actions if action.choices), {})
            parser = choices.get(name, self)
            wrong = mistyped(sys.argv[1:], parser._option_string_actions)
            message = message if wrong is None else f"unrecognized arguments: {wrong}"
        self.exit(2, told(parser.prog, message, parser._option_string_actions))


@final
class InTuneCLI(LightningCLI):
    """LightningCLI whose Trainer always carries an `InTuneCallback`, set up under the key `intune`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put the callback's settings under `intune`; see `--print_config`."""
        parser.add_lightning_class_args(InTuneCallback, "intune")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Lightning's; a setting that it refuses is the user's mistake, and a checkpoint that is not there too."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise ConfigError(str(error)) from error
        _check_checkpoint(self._get(self.config, "ckpt_path", None))
        return trainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's; where the shell asks for completions that one alone, as each takes its time."""
        known = LightningCLI.subcommands()
        return {completion.command(): known[completion.command()]} if completion.IS_ASKED else known

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Lightning's, or a completion."""
        if completion.IS_ASKED:
            completion.complete_options(self._subcommand_parsers[completion.command()]._actions)
        super().parse_arguments(parser, args)


def main(args: Sequence[str] | None = None) -> int:
    """Run `fit`, `validate`, `test`, `predict` or `pretrain`; a user's mistake ends with one line and exit code 2.

    `pretrain` remakes the tuner's shipped weights from a seed; the others are Lightning's.

    Class paths are found in the present folder too, as with `python -m`. `--import MODULE` before the other options
    (repeatable) lets its classes go by their names alone: `fit --import my_models --model ClickModel`.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    arguments = sys.argv[1:] if args is None else list(args)
    _spare_users_noise()
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the schema's fields say there what they mean
    try:
        arguments = _imported(arguments)
        if arguments[:1] == ["pretrain"]:
            return pretrain.main(arguments[1:])
        InTuneCLI(
            LightningModule,
            InTuneDataModule,
            subclass_mode_model=True,
            parser_class=InTuneParser,
            parser_kwargs={"prog": "lightning-intune"},
            save_config_kwargs={"overwrite": True},
            args=None if args is None and arguments == sys.argv[1:] else arguments,
        )
    except (ConfigError, MisconfigurationException) as error:
        sys.stderr.write(f"lightning-intune: {error}\n")
        return 2
    except ValueError as error:
        mistake: BaseException | None = error
        while mistake is not None and not isinstance(mistake, ConfigError):
            mistake = mistake.__cause__ or mistake.__context__
        if mistake is None:
            raise
        sys.stderr.write(f"lightning-intune: {mistake}\n")  # met by jsonargparse while it made one of our settings
        return 2
    return 0


def _check_checkpoint(checkpoint: str | None) -> None:
    if checkpoint is None or "://" in checkpoint or checkpoint.partition(":")[0] in _NO_FILES:
        return
    if not Path(checkpoint).exists():
        raise ConfigError(f"--ckpt_path {checkpoint}: there is no such file. Correct the path, or leave it out.")


def _imported(arguments: list[str]) -> list[str]:
    """The arguments less each `--import MODULE`, which is done."""
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word != "--import" and not word.startswith("--import="):
            rest.append(word)
            continue
        name = word.removeprefix("--import=") if "=" in word else next(words, "")
        try:
            import_module(name)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"--import {name}: {error}. Name a module that Python finds from this folder.") from error
    return rest


def _spare_users_noise() -> None:
    """Keep away what no user of this command can do anything about."""
    # Lightning 2.6 asks torch 2.13's pytree in a way that torch deprecates.
    warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\). is deprecated", FutureWarning)
    # Lightning 2.6 calls jsonargparse 4.53 in ways that it deprecates.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
    # Arguments less `--import`, while `sys.argv` keeps it for the ranks that Lightning starts.
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended to run from within Python")
    # Advertisements for hosted loggers and registries, once per Trainer.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not any(name in record.getMessage() for name in ("[litlogger]", "[litmodels]"))


if __name__ == "__main__":
    sys.exit(main())
