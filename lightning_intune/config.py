"""What a column means to the model: the typed feature settings a user writes in Python or YAML."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from lightning_intune.errors import ConfigError

if TYPE_CHECKING:  # pyarrow takes 0.1 s to import, and whoever imports the settings alone need not pay
    import pyarrow as pa

DenseTransform = Literal["none", "log1p"]
SparseTransform = Literal["hash", "bucket", "id"]
End = Literal["first", "last"]


@final
@dataclass(frozen=True, kw_only=True)
class DenseFeature:
    """One float32 column of `Batch.dense`.

    Null, NaN and infinite values become `default`, given in the column's own unit, and then go through
    `transform`: `none` leaves them, `log1p` gives log(1 + x) for counts, negative ones counting as 0.
    """

    name: str
    """What the model calls it."""
    column: str | None = None
    """Column of the table; None: the feature's own name."""
    transform: DenseTransform = "none"
    """`none`, or `log1p` for counts: log(1 + x)."""
    default: float = 0.0
    """Stands for null, NaN and infinite values, before the transform; in the column's unit."""
    clamp: Sequence[float] | None = None
    """(low, high): what lies beyond becomes the nearer of them, after `default` and before the transform."""

    def __post_init__(self) -> None:
        _check_choice(f"dense feature '{self.name}'", "transform", self.transform, ("none", "log1p"))
        if not math.isfinite(self.default):
            raise ConfigError(
                f"dense feature '{self.name}': default={self.default} would put a non-finite number into the "
                "model wherever a value is missing. Set default to a finite number."
            )
        object.__setattr__(self, "clamp", _checked_clamp(f"dense feature '{self.name}'", self.clamp))

    @property
    def source_column(self) -> str:
        """The column it is read from."""
        return self.name if self.column is None else self.column


@final
@dataclass(frozen=True, kw_only=True)
class SparseFeature:
    """One key of `Batch.sparse`: a column of categories, or of lists of them, as rows of an embedding table.

    Row 0 stands for whatever is missing: a null, a NaN, a null inside a list, an unseen id. Known values get
    rows 1 to `num_embeddings - 1`. A null or empty *list* has no values at all, so that pooling gives zeros.

    `hash`: strings, bytes, integers or booleans, spread over the rows by a hash that is the same in every
    process, on every machine (`flow/hashing.py`); tables of one `seed` agree on equal values.
    With `ngram`, each run of so many neighbours in a row's list is one category, beside or instead of the list itself.
    `id`: integers 0 to `num_embeddings - 2`, each its own row (value + 1); others are unseen.
    `bucket`: numbers; x gets row 1 + how many `boundaries` are <= x.
    """

    name: str
    """The key in `Batch.sparse`."""
    column: str | None = None
    """Column of the table; None: the feature's own name."""
    num_embeddings: int = 0
    """Rows of the embedding table, 2 or more. 0 with `bucket`: as many as the boundaries need."""
    transform: SparseTransform = "hash"
    """`hash` for anything, `id` for whole numbers 0 to num_embeddings - 2, `bucket` for numbers by `boundaries`."""
    boundaries: Sequence[float] = ()
    """For `bucket`: strictly ascending finite numbers, in the column's unit."""
    seed: int = 0
    """For `hash`: another seed, another spread; 0 or more."""
    ngram: int = 1
    """For `hash`: 2 makes each pair of neighbours in a list one value, 3 each run of three; 1: each by itself."""
    max_values: int | None = None
    """Of each list only so many values count (FirstX), cut before anything else; None: all of them."""
    keep: End = "first"
    """Which of them `max_values` keeps: the `first`, or the `last` where lists have their newest value last."""
    clamp: Sequence[int] | None = None
    """For `hash` and `id` of integers, (low, high): what lies beyond becomes the nearer one, before the transform."""
    embedding_dim: int | None = None
    """Numbers in one embedding; None leaves it to the model."""

    def __post_init__(self) -> None:
        what = f"sparse feature '{self.name}'"
        _check_choice(what, "transform", self.transform, ("hash", "bucket", "id"))
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        self._check_boundaries(what)
        if self.transform == "bucket" and self.num_embeddings == 0:
            object.__setattr__(self, "num_embeddings", len(self.boundaries) + 2)
        least = len(self.boundaries) + 2 if self.transform == "bucket" else 2
        if self.num_embeddings < least:
            raise ConfigError(
                f"{what}: num_embeddings={self.num_embeddings} leaves known values without a row of their own, "
                f"as row 0 is kept for missing ones. Set num_embeddings to {least} or more."
            )
        if self.seed < 0:
            raise ConfigError(f"{what}: seed={self.seed} is negative. Set seed to 0 or more.")
        if self.ngram < 1 or (self.ngram > 1 and self.transform != "hash"):
            raise ConfigError(
                f"{what}: ngram={self.ngram} with transform='{self.transform}' joins no values. Set ngram to 1 or "
                "more; above 1 only with transform='hash'."
            )
        _check_choice(what, "keep", self.keep, ("first", "last"))
        if self.max_values is not None and self.max_values < 1:
            raise ConfigError(
                f"{what}: max_values={self.max_values} leaves no value of a list. Set it to 1 or more, or leave it out."
            )
        object.__setattr__(self, "clamp", _checked_clamp(what, self.clamp))
        if self.clamp is not None and self.transform == "bucket":
            raise ConfigError(f"{what}: clamp with transform='bucket' moves no value to another bucket. Leave it out.")
        if self.embedding_dim is not None and self.embedding_dim < 1:
            raise ConfigError(
                f"{what}: embedding_dim={self.embedding_dim} holds no number. Set it to 1 or more, or leave it out."
            )

    def _check_boundaries(self, what: str) -> None:
        if bool(self.boundaries) != (self.transform == "bucket"):
            raise ConfigError(
                f"{what}: transform='{self.transform}' with boundaries={tuple(self.boundaries)}. "
                "Give boundaries if, and only if, transform is 'bucket'."
            )
        ascending = all(low < high for low, high in zip(self.boundaries, self.boundaries[1:], strict=False))
        if not ascending or not all(map(math.isfinite, self.boundaries)):
            raise ConfigError(
                f"{what}: boundaries={tuple(self.boundaries)} are not strictly ascending finite numbers, so no value "
                "has one bucket. Sort them and drop repeats, infinities and NaN."
            )

    @property
    def source_column(self) -> str:
        """The column it is read from."""
        return self.name if self.column is None else self.column


@final
@dataclass(frozen=True, kw_only=True)
class Schema:
    """All that a batch holds, in order: dense columns, sparse keys, labels, and at most one weight.

    `labels` and `weight` name columns of numbers or booleans. They may hold no null: a made-up label would
    train the model on an invention, so `ToBatch` raises instead. Weights are 0 or more.

    >>> schema = Schema(dense=[DenseFeature(name="price")], sparse=[SparseFeature(name="item", num_embeddings=80)],
    ...                 labels=["click"])
    >>> schema.columns
    ('price', 'item', 'click')
    """

    dense: Sequence[DenseFeature] = ()
    """Columns of numbers, in the order of `Batch.dense`."""
    sparse: Sequence[SparseFeature] = ()
    """Columns of categories, or of lists of them: the keys of `Batch.sparse`."""
    labels: Sequence[str] = ()
    """Columns of numbers or booleans without nulls: what the model is to predict."""
    weight: str | None = None
    """Column of how much each sample counts, 0 or more; None: all count alike."""

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise ConfigError(f"schema: labels='{self.labels}' is a text. Give a list, as in labels=['{self.labels}'].")
        for field in ("dense", "sparse", "labels"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.dense and not self.sparse:
            raise ConfigError("schema: it names no feature, so a model has no input. Add one to dense or to sparse.")
        _check_repeats("feature", [feature.name for feature in (*self.dense, *self.sparse)])
        _check_repeats("label", self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read, each once, in the order of the batch's parts."""
        features = [feature.source_column for feature in (*self.dense, *self.sparse)]
        weight = [] if self.weight is None else [self.weight]
        return tuple(dict.fromkeys([*features, *self.labels, *weight]))

    def validate(self, table: pa.Schema) -> None:
        """ConfigError unless `table` has every column, of a type its feature can take.

        It costs no read: give it `ParquetSource.arrow_schema` before any worker starts.
        """
        from lightning_intune.column_types import check_types

        check_columns("schema", self.columns, table.names)
        check_types(self, table)


def check_columns(what: str, wanted: Iterable[str], present: Sequence[str]) -> None:
    """ConfigError naming each wanted column that is not present, with the names nearest to it."""
    missing = [name for name in wanted if name not in set(present)]
    if not missing:
        return
    hints: list[str] = []
    for name in missing:
        near = difflib.get_close_matches(name, present, n=3)
        hints.append(f"'{name}'" + (f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""))
    shown = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
    raise ConfigError(
        f"{what}: the data has no column {', '.join(hints)}. Its columns are: {shown or 'none'}. Correct the name."
    )


def _check_choice(what: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{what}: {field}='{value}' is unknown. Set {field} to one of {', '.join(choices)}.")


def _checked_clamp(what: str, clamp: Sequence[float] | None) -> tuple[float, float] | None:
    if clamp is None:
        return None
    if len(clamp) != 2 or not clamp[0] <= clamp[1] or not all(map(math.isfinite, clamp)):
        raise ConfigError(
            f"{what}: clamp={tuple(clamp)} is no range. Give two finite numbers, the lower first, as in clamp=(0, 100)."
        )
    return clamp[0], clamp[1]


def _check_repeats(noun: str, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"schema: {noun} '{repeated[0]}' is named {Counter(names)[repeated[0]]} times, so its values could not be "
            f"told apart. Give each {noun} its own name; several features may share one `column`."
        )
