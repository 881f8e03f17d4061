"""Sorts on a Ray cluster what one machine would sort by itself; the writing and the checks stay where they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.dedup.etl.inputs import Inputs
from lightning_intune.dedup.etl.survey import PART, PART_US, Survey
from lightning_intune.errors import ConfigError

if TYPE_CHECKING:
    from lightning_intune.dedup.etl.cluster import ClusterJob

_BATCH_ROWS = 8_192


def ray_sorted(inputs: Inputs, survey: Survey, job: ClusterJob, finished: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """The rows still to be written, with `PART`, in the order of the output; rows of one time in no set order.

    The cluster is the one that Ray is connected to, else RAY_ADDRESS's, else this machine. Every node has to see the
    files under the same paths. ConfigError for what is not Parquet, and without Ray Data, which needs pandas too.
    """
    if inputs.kind != "parquet" or inputs.schema is None:
        raise ConfigError("cluster: --engine ray sorts Parquet. Convert by --engine duckdb, or give Parquet files.")
    try:
        import ray.data
    except ImportError as error:
        raise ConfigError(f"cluster: --engine ray needs Ray Data ({error}): pip install 'ray[data]'.") from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # a sort's blocks come in their order
    context.enable_progress_bars = False
    schema, session, time = inputs.schema, job.session, job.time
    unit, length_us, done = survey.time_unit, PART_US.get(job.partition), list(finished)

    def number(rows: pa.Table) -> pa.Table:
        rows = rows.select(schema.names).cast(schema)
        rows = rows.filter(pc.and_(pc.is_valid(rows.column(session)), pc.is_valid(rows.column(time))))
        rows = rows.append_column(PART, _parts(rows.column(time), unit, length_us))
        return rows.filter(pc.invert(pc.is_in(rows.column(PART), value_set=pa.array(done, pa.int64()))))

    data: Any = ray.data.read_parquet(list(inputs.files), columns=schema.names)
    data = data.map_batches(number, batch_format="pyarrow", batch_size=None).sort([PART, session, time])
    target = schema.append(pa.field(PART, pa.int64()))
    for rows in data.iter_batches(batch_format="pyarrow", batch_size=_BATCH_ROWS):
        yield from rows.select(target.names).cast(target).combine_chunks().to_batches()


def _parts(times: pa.ChunkedArray, unit: str, length_us: int | None) -> pa.ChunkedArray:
    """The partition's number of each row: as DuckDB computes it for the other engine."""
    if length_us is None:
        return pa.chunked_array([pa.repeat(pa.scalar(0, pa.int64()), len(times))])
    if unit == "type":
        scaled = pc.cast(pc.cast(times.cast(pa.timestamp("us"), safe=False), pa.int64()), pa.float64())
    else:
        scale = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}[unit]
        scaled = pc.multiply(pc.cast(times, pa.float64()), scale)
    return pc.cast(pc.floor(pc.divide(scaled, float(length_us))), pa.int64())
