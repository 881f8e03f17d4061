"""Which Arrow types each kind of feature can take, and the error for the others."""

from __future__ import annotations

import pyarrow as pa

from lightning_intune.config import Schema, SparseFeature
from lightning_intune.errors import ConfigError


def check_types(schema: Schema, table: pa.Schema) -> None:
    """ConfigError for the first column of `table` whose type its feature cannot take. Columns must exist."""
    for feature in schema.dense:
        kind = table.field(feature.source_column).type
        if not is_number(plain(kind)):
            raise _mistyped(f"dense feature '{feature.name}'", feature.source_column, kind, "a number or boolean")
    for feature in schema.sparse:
        _check_sparse(feature, table.field(feature.source_column).type)
    weight = [] if schema.weight is None else [schema.weight]
    for role, names in (("label", schema.labels), ("weight", weight)):
        for name in names:
            kind = table.field(name).type
            if not is_number(plain(kind)):
                raise _mistyped(role, name, kind, "a number or boolean")


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves where they are dictionary-encoded."""
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def is_list(kind: pa.DataType) -> bool:
    """Whether rows of this type hold several values."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    """Integers, floats, decimals and booleans; and the type of a column that is null all through."""
    types = pa.types
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def is_text(kind: pa.DataType) -> bool:
    """Strings and bytes of every width."""
    types = pa.types
    wide = types.is_large_string(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    views = types.is_string_view(kind) or types.is_binary_view(kind)
    return types.is_string(kind) or types.is_binary(kind) or wide or views


def _check_sparse(feature: SparseFeature, kind: pa.DataType) -> None:
    value = plain(kind.value_type) if is_list(kind) else plain(kind)
    types = pa.types
    whole = types.is_integer(value) or types.is_boolean(value) or types.is_null(value)
    wants = {
        "hash": (
            "strings, bytes, integers or booleans (for fractions use transform='bucket')",
            whole or is_text(value),
        ),
        "id": ("integers (for strings use transform='hash')", whole),
        "bucket": ("numbers (for strings use transform='hash')", is_number(value)),
    }
    expected, fits = wants[feature.transform]
    if feature.ngram > 1 and not is_list(kind):
        what = f"sparse feature '{feature.name}' (ngram={feature.ngram})"
        raise _mistyped(what, feature.source_column, kind, "lists, whose neighbours it joins")
    if feature.clamp is not None and not whole:
        what = f"sparse feature '{feature.name}' (clamp={tuple(feature.clamp)})"
        raise _mistyped(what, feature.source_column, kind, "integers, or lists of them")
    if not fits:
        what = f"sparse feature '{feature.name}' (transform='{feature.transform}')"
        raise _mistyped(what, feature.source_column, kind, f"{expected}, or lists of them")


def _mistyped(what: str, column: str, kind: pa.DataType, expected: str) -> ConfigError:
    return ConfigError(
        f"{what}: column '{column}' holds {kind}, and needs to hold {expected}. Name another column, or cast it "
        "where the files are written."
    )
