"""What a batch asks of the tables, feature by feature, whichever class the features come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

from torch import Tensor

from lightning_intune.dedup import InverseKeyedJaggedTensor, KeyedJagged
from lightning_intune.errors import ConfigError

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Features: TypeAlias = "KeyedJaggedTensor | KeyedJagged | InverseKeyedJaggedTensor"


@final
@dataclass(frozen=True, kw_only=True)
class Bags:
    """One feature: U bags of ids, and which of them each of the B rows of the batch is."""

    ids: Tensor
    """[N], one bag after the other."""
    lengths: Tensor
    """[U]."""
    weights: Tensor | None
    """[N]."""
    inverse: Tensor | None
    """[B]; None where U = B."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.lengths) if self.inverse is None else len(self.inverse)


def bags_of(features: Features) -> dict[str, Bags]:
    """By feature. Repeats that are stored once stay so, TorchRec's `inverse_indices` included.

    ConfigError for a `KeyedJaggedTensor` whose keys' strides vary, without them.
    """
    if not isinstance(features, KeyedJagged | InverseKeyedJaggedTensor):
        return _of_kjt(features)
    if isinstance(features, KeyedJagged):
        return _split(features.keys(), features.values(), features.lengths(), None)
    bags: dict[str, Bags] = {}
    for key in features.keys():  # noqa: SIM118 - a method of TorchRec's interface, not of a dict
        part = features.unique_key(key)
        jagged = part.jagged
        bags[key] = Bags(ids=jagged.values(), lengths=jagged.lengths(), weights=part.weights, inverse=part.inverse)
    return bags


def _of_kjt(kjt: Any) -> dict[str, Bags]:
    if not all(hasattr(kjt, name) for name in ("keys", "values", "lengths", "inverse_indices_or_none")):
        raise ConfigError(
            f"overlap: {type(kjt).__name__} is no KeyedJaggedTensor, KeyedJagged or InverseKeyedJaggedTensor, so its "
            "ids cannot be found. Convert it in the loader."
        )
    if kjt.inverse_indices_or_none() is not None or kjt.variable_stride_per_key():
        return bags_of(InverseKeyedJaggedTensor.from_kjt(kjt))
    return _split(list(kjt.keys()), kjt.values(), kjt.lengths(), kjt.weights_or_none())


def _split(keys: list[str], values: Tensor, lengths: Tensor, weights: Tensor | None) -> dict[str, Bags]:
    if not keys:
        return {}
    by_key = lengths.view(len(keys), len(lengths) // len(keys))
    counts: list[int] = by_key.sum(dim=1).tolist()
    ids = values.split(counts)
    weights_of = [None] * len(keys) if weights is None else list(weights.split(counts))
    return {
        key: Bags(ids=ids[place], lengths=by_key[place], weights=weights_of[place], inverse=None)
        for place, key in enumerate(keys)
    }
