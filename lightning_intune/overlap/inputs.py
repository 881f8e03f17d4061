"""Which part of a batch each collection of a model looks up, and in which order: observed, not declared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.bags import Features
from lightning_intune.overlap.collection import OverlappedCollection
from lightning_intune.overlap.lookup import Lookup

_MAX_DEPTH = 4


@final
@dataclass(frozen=True, kw_only=True)
class Input:
    """Where a collection's features lie in a batch."""

    name: str
    """The collection's, in the model."""
    collection: OverlappedCollection
    path: tuple[tuple[bool, Any], ...]
    """From the batch inwards: an attribute's name (True), or a place or key (False)."""

    def features(self, batch: Any) -> Features:
        """They themselves."""
        found = batch
        for is_attribute, name in self.path:
            found = getattr(found, name) if is_attribute else found[name]
        return found


@final
class Probe:
    """Serves as the collections' feed while the model is called once, up to the last collection's first use."""

    is_ahead = False

    def __init__(self, collections: Mapping[str, OverlappedCollection]) -> None:
        self._names = {id(collection): name for name, collection in collections.items()}
        self._seen: dict[str, Features] = {}

    def rows(self, collection: OverlappedCollection, features: Features) -> tuple[Lookup, list[torch.Tensor]]:
        """Zeros: nothing is exchanged, nothing learnt."""
        name = self._names[id(collection)]
        if name in self._seen:
            raise ConfigError(
                f"overlap: '{name}' is looked up twice in one step. Make one lookup of it, with all of the features."
            )
        self._seen[name] = features
        if len(self._seen) == len(self._names):
            raise _SeenAllError
        lookup = collection.tables.lookup(features)
        rows = [
            shard.weights.new_zeros(len(made), shard.stack.dim)
            for made, shard in zip(lookup.requests, collection.shards, strict=True)
        ]
        return lookup, rows

    def settle(self) -> None:
        """There is nothing to wait for."""

    def seen(self, call: Callable[[], Any]) -> dict[str, Features]:
        """What each collection was handed in `call`, in the order of first use; torch's random state stays."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                call()
            except _SeenAllError:
                return self._seen
        unused = [name for name in self._names.values() if name not in self._seen]
        raise ConfigError(f"overlap: the model did not look up '{unused[0]}'. Take it out of the model, or use it.")


def observe(model: nn.Module, collections: Mapping[str, OverlappedCollection], batch: Any) -> list[Input]:
    """The inputs, in the order of first use. ConfigError where one does not lie in the batch as it is."""
    probe = Probe(collections)
    feeds = {name: collection.feed for name, collection in collections.items()}
    for collection in collections.values():
        collection.feed = probe
    try:
        seen = probe.seen(lambda: model(batch))
    finally:
        for name, collection in collections.items():
            collection.feed = feeds[name]
    return [
        Input(name=name, collection=collections[name], path=_path(batch, features, name))
        for name, features in seen.items()
    ]


def _path(batch: Any, features: Features, name: str) -> tuple[tuple[bool, Any], ...]:
    for path, found in _walk(batch, (), _MAX_DEPTH):
        if found is features:
            return path
    raise ConfigError(
        f"overlap: what '{name}' looks up is no part of the batch ({type(batch).__name__}), but made in the model: the "
        "next batch's ids cannot be known before the model runs. Make the features in the loader, and hand them to the "
        "collection as they are."
    )


def _walk(value: Any, path: tuple[tuple[bool, Any], ...], depth: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, value
    if depth == 0 or isinstance(value, torch.Tensor | str | bytes):
        return
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _walk(part, (*path, (False, key)), depth - 1)
    elif isinstance(value, Sequence):
        for place, part in enumerate(value):
            yield from _walk(part, (*path, (False, place)), depth - 1)
    elif hasattr(value, "__dict__"):
        for key, part in vars(value).items():
            yield from _walk(part, (*path, (True, key)), depth - 1)
    for key in getattr(type(value), "__slots__", ()):
        if isinstance(key, str) and hasattr(value, key):
            yield from _walk(getattr(value, key), (*path, (True, key)), depth - 1)


class _SeenAllError(Exception):
    """All has been seen: the rest of the model need not run."""
