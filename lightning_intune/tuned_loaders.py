"""All loaders of a run that are tuned, by name: what a Trainer was given, and what is known of each from before."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, final

from torch.utils.data import DataLoader

from lightning_intune.control.loader_budgets import LoaderBudgets
from lightning_intune.control.rank_budget import among_ranks
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.tuned import TunedLoader, TunerSettings

_log = logging.getLogger("lightning_intune")

EVALUATIONS = ("val", "test", "predict")


@final
class TunedLoaders(Mapping[str, TunedLoader]):
    """Training's single loader is "", of several each has its place or key; evaluation's begin with its name.

    `widths` and `warm_start` name a stage of training's single loader by itself, others as `loader/stage`. A bare
    stage name in `warm_start` goes for every loader that has such a stage.
    """

    def __init__(self, settings: TunerSettings, warm_start: Mapping[str, int] | None) -> None:
        self._settings, self._warm_start = settings, dict(warm_start or {})
        self._tuned: dict[str, TunedLoader] = {}
        self._budgets: LoaderBudgets | None = None
        self._states: dict[str, Any] = {}

    def __getitem__(self, name: str) -> TunedLoader:
        return self._tuned[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._tuned))  # a copy: the exporter's thread may ask while loaders come

    def __len__(self) -> int:
        return len(self._tuned)

    def clear(self) -> None:
        """Another run: other loaders, and maybe other ranks to share with."""
        for tuned in self._tuned.values():
            tuned.leave()
        self._tuned, self._budgets = {}, None

    def watch(self, split: str, loaders: Any) -> list[str | None]:
        """Make a tuner for each elastic loader among `loaders` that has none yet.

        One that takes the place of another (`reload_dataloaders_every_n_epochs`) gets what was learnt with that, whose
        workers end. Names in the order of the loaders, None for one that is not elastic. `split` is "" for training's.
        """
        names: list[str | None] = []
        for name, loader in _leaves(split, loaders):
            if not isinstance(loader, ElasticLoader):
                names.append(None)
                continue
            names.append(name)
            known = self._tuned.get(name)
            if known is None:
                self._tuned[name] = self._new(name, loader, self._states.get(name))
            elif known.loader is not loader:
                known.leave()
                known.loader.shutdown()
                self._tuned[name] = self._new(name, loader, known.tuner.state_dict())
        return names

    @property
    def widths(self) -> dict[str, int]:
        """The best widths found, of the stages that have a choice: a copy to the device has one worker or none."""
        return {
            f"{name}/{knob.stage}" if name else knob.stage: tuned.tuner.widths[knob.stage]
            for name, tuned in self._tuned.items()
            for knob in tuned.loader.knobs
            if knob.bounds.low < knob.bounds.high
        }

    def state_dict(self) -> dict[str, Any]:
        """What the tuners know: widths, weights, replay. Plain numbers and tensors."""
        return {name: tuned.tuner.state_dict() for name, tuned in self._tuned.items()} or self._states

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Taken up by each tuner when its loader comes."""
        self._states = state

    def __getstate__(self) -> dict[str, Any]:
        # A copy (ddp_spawn, notebooks) tunes other loaders; what was learnt goes along.
        return {**self.__dict__, "_tuned": {}, "_budgets": None, "_states": self.state_dict()}

    def _new(self, name: str, loader: ElasticLoader[Any], state: dict[str, Any] | None) -> TunedLoader:
        if self._budgets is None:
            self._budgets = LoaderBudgets(among_ranks(self._settings.budget))
        budget = self._budgets.part(name)
        tuned = TunedLoader(loader, self._settings, budget=budget, warm_start=self._starts(name, loader))
        if state is not None:
            try:
                tuned.tuner.load_state_dict(state)
            except (KeyError, ValueError, TypeError) as error:
                _log.warning(
                    "InTuneCallback: the checkpoint's tuner state does not fit (%s); tuning starts anew", error
                )
        return tuned

    def _starts(self, name: str, loader: ElasticLoader[Any]) -> dict[str, int]:
        """The widths of `warm_start` that are meant for this loader; a wrong stage among training's is an error."""
        split = name.split("/", 1)[0]
        is_training = split not in EVALUATIONS
        starts: dict[str, int] = {}
        for key, width in self._warm_start.items():
            owner, _, stage = key.rpartition("/")
            if key in loader.stages and not name:
                starts[key] = width
            elif not owner and (is_training or stage in loader.stages):
                starts.setdefault(stage, width)
            elif owner == name and name:
                starts[stage] = width
            elif not name and owner.split("/", 1)[0] not in EVALUATIONS:
                starts[key] = width  # the tuner says that there is no such stage
        return starts


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The loaders in what a Trainer was given, with names, in the order in which Lightning numbers them."""
    head = f"{name}/" if name else ""
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from _leaves(f"{head}{key}", member)
    elif isinstance(value, list | tuple):
        for place, member in enumerate(value):
            yield from _leaves(f"{head}{place}", member)
    elif not isinstance(value, DataLoader | ElasticLoader) and hasattr(value, "iterables"):
        yield from _leaves(name, value.iterables)  # Lightning's CombinedLoader
    elif value is not None:
        yield name, value
