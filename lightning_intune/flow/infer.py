"""A first schema for Parquet files nobody has described yet, from their footers alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from lightning_intune.column_types import is_list, is_number, is_text, plain
from lightning_intune.config import DenseFeature, Schema, SparseFeature, check_columns
from lightning_intune.dedup.footer import has_sessions, impressions_of, session_level
from lightning_intune.flow.source import ParquetSource
from lightning_intune.mistakes import CommandParser, whole_number


def infer_schema(
    table: pa.Schema, *, labels: Sequence[str], weight: str | None = None, num_embeddings: int = 100_000
) -> tuple[Schema, list[str]]:
    """A schema for `table`, and the columns that fit no feature (times, structs, lists of lists).

    Fractions and booleans become dense features, integers, strings and lists of these sparse ones, hashed into
    `num_embeddings` rows. A count held in an integer column is better dense: types do not tell it from an id.
    ConfigError for a label that is not there, and for a table that has nothing else.

    >>> schema, left = infer_schema(pa.schema({"price": pa.float32(), "item": pa.string(), "click": pa.int8()}),
    ...                             labels=["click"])
    >>> [feature.name for feature in schema.dense], [feature.name for feature in schema.sparse], left
    (['price'], ['item'], [])
    """
    check_columns("schema", [*labels, *([] if weight is None else [weight])], table.names)
    dense: list[DenseFeature] = []
    sparse: list[SparseFeature] = []
    left: list[str] = []
    for field in table:
        kind = plain(field.type)
        member = plain(kind.value_type) if is_list(kind) else kind
        if field.name in labels or field.name == weight:
            continue
        if pa.types.is_boolean(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            dense.append(DenseFeature(name=field.name))
        elif is_text(member) or pa.types.is_integer(member):
            sparse.append(SparseFeature(name=field.name, num_embeddings=num_embeddings))
        else:
            left.append(field.name)
            assert not is_number(kind) or pa.types.is_null(kind)
    return Schema(dense=dense, sparse=sparse, labels=labels, weight=weight), left


def main(arguments: Sequence[str]) -> int:
    """`lightning-intune schema`: print the files' columns as the YAML that `fit --config` takes under `data`."""
    parser = CommandParser(
        prog="lightning-intune schema",
        description="Print a first schema for Parquet files, from their footers, as YAML for `fit --config`.",
    )
    parser.add_argument("paths", nargs="+", help="Parquet files, folders, globs or URIs")
    parser.add_argument("--label", action="append", required=True, dest="labels", help="a label's column; repeatable")
    parser.add_argument("--weight", help="the column of sample weights")
    parser.add_argument(
        "--num-embeddings", type=whole_number(2), default=100_000, help="rows per table (default: %(default)s)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object, which `fit --config` takes too")
    how.add_argument("--quiet", action="store_true", help="do not say which columns are left out")
    asked = parser.parse_args(arguments)
    source = ParquetSource(asked.paths)
    table, is_layout = source.arrow_schema, has_sessions(source.about)
    if is_layout:
        table = impressions_of(table, (*session_level(source.about), *source.from_folders))
    schema, left = infer_schema(table, labels=asked.labels, weight=asked.weight, num_embeddings=asked.num_embeddings)
    if asked.json:
        sys.stdout.write(json.dumps({"data": {"schema": as_settings(schema)}}) + "\n")
        return 0
    paths = ", ".join(asked.paths)
    what = "sessions" if is_layout else "rows"
    sys.stdout.write(as_yaml(schema, table, f"{source.num_rows:,} {what} in {paths}"))
    if left and not asked.quiet:
        sys.stderr.write(f"lightning-intune: no feature can take {', '.join(left)}; they are left out.\n")
    return 0


def as_settings(schema: Schema) -> dict[str, Any]:
    """What `as_yaml` writes, as plain values."""
    settings: dict[str, Any] = {
        "dense": [{"name": feature.name} for feature in schema.dense],
        "sparse": [{"name": feature.name, "num_embeddings": feature.num_embeddings} for feature in schema.sparse],
        "labels": list(schema.labels),
        "weight": schema.weight,
    }
    return {key: value for key, value in settings.items() if value}


def as_yaml(schema: Schema, table: pa.Schema, title: str) -> str:
    """`schema` as YAML under `data`, each feature with its column's type."""

    def entry(name: str, **settings: Any) -> str:
        fields = ", ".join(f"{key}: {value}" for key, value in {"name": quoted(name), **settings}.items())
        return f"    - {{{fields}}}  # {table.field(name).type}"

    lines = [f"# {title}", "data:", "  schema:"]
    if schema.dense:
        lines += ["    dense:", *("  " + entry(feature.name) for feature in schema.dense)]
    if schema.sparse:
        lines += ["    sparse:"]
        lines += ["  " + entry(feature.name, num_embeddings=feature.num_embeddings) for feature in schema.sparse]
    lines.append(f"    labels: [{', '.join(map(quoted, schema.labels))}]")
    if schema.weight is not None:
        lines.append(f"    weight: {quoted(schema.weight)}")
    return "\n".join(lines) + "\n"


def quoted(name: str) -> str:
    """`name` as a YAML string; bare where nothing in it could be read otherwise."""
    is_plain = name.isidentifier() and name.lower() not in {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    return name if is_plain else "'" + name.replace("'", "''") + "'"
