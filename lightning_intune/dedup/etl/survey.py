"""The first look at the rows: how many, their checksum, what is missing, and the unit of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from lightning_intune.config import check_columns
from lightning_intune.dedup.etl.engine import quoted, row_hash
from lightning_intune.dedup.etl.inputs import FILE, Inputs
from lightning_intune.errors import ConfigError

Partition = Literal["day", "hour", "none"]

PART = "__lightning_intune_part"
PART_US = {"day": 86_400_000_000, "hour": 3_600_000_000}
_UNITS = (("s", 1e11, 1_000_000.0), ("ms", 1e14, 1_000.0), ("us", 1e17, 1.0), ("ns", float("inf"), 0.001))


@final
@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found over all rows that shall be in the output."""

    num_rows: int
    checksum: int
    """Sum of the rows' hashes: the same for any order of the same rows, counted as often as they occur."""
    num_dropped: int
    """Rows without a session or a time."""
    time_us: str
    """SQL for a row's time in microseconds since 1970, UTC."""
    time_unit: str
    """What the time column counts in; `type` where its own type says so."""
    partition: Partition

    @property
    def part(self) -> str:
        """SQL for the number of a row's time partition since 1970, rounded down."""
        if self.partition == "none":
            return "CAST(0 AS BIGINT)"
        return f"CAST(floor(({self.time_us}) / {PART_US[self.partition]}.0) AS BIGINT)"


def take_survey(
    engine: Any, inputs: Inputs, *, session: str, time: str, partition: Partition, drop_nulls: bool
) -> Survey:
    """One pass over all rows. ConfigError for missing columns, nulls in `session` or `time`, a time that is none."""
    check_columns("cluster", [session, time], list(inputs.columns))
    key, at = quoted(session), quoted(time)
    if any(mark in str(inputs.columns[session]) for mark in ("[", "STRUCT", "MAP")):
        raise ConfigError(
            f"cluster: session column '{session}' of '{inputs.files[0]}' holds {inputs.columns[session]}, and a "
            "session has one value. Name another column with --session."
        )
    where = f"{key} IS NOT NULL AND {at} IS NOT NULL"
    kept = f"FILTER (WHERE {where})"
    [(total, num_rows, checksum, high)] = engine.sql(
        f"SELECT count(*), count(*) {kept}, sum({row_hash(inputs.columns)}::HUGEINT) {kept}, max({at}) "
        f"FROM ({inputs.relation})"
    ).fetchall()
    if total > num_rows and not drop_nulls:
        _refuse_nulls(engine, inputs, (session, time))
    if num_rows == 0:
        raise ConfigError(f"'{inputs.files[0]}' and what was named beside it hold no row with a session and a time.")
    unit, time_us = _time(inputs, time, high)
    return Survey(
        num_rows=num_rows,
        checksum=int(checksum),
        num_dropped=total - num_rows,
        time_us=time_us,
        time_unit=unit,
        partition=partition,
    )


def find_session_level(engine: Any, inputs: Inputs, survey: Survey, *, session: str, time: str) -> list[str]:
    """The columns that never change within a session and partition, by a pass over all rows; `session` is one."""
    others = [name for name in inputs.columns if name not in (session, time)]
    key = quoted(session)
    if not others:
        return [session]
    spans = ", ".join(
        f"min({row_hash({name: inputs.columns[name]})}) AS low{i}, max({row_hash({name: inputs.columns[name]})}) AS "
        f"high{i}"
        for i, name in enumerate(others)
    )
    equal = ", ".join(f"bool_and(low{i} = high{i})" for i in range(len(others)))
    [row] = engine.sql(
        f"SELECT {equal} FROM (SELECT {spans} FROM ({inputs.relation}) "
        f"WHERE {key} IS NOT NULL AND {quoted(time)} IS NOT NULL GROUP BY {survey.part}, {key})"
    ).fetchall()
    still = {name for name, is_equal in zip(others, row, strict=True) if is_equal}
    return [name for name in inputs.columns if name == session or name in still]


def check_session_level(
    engine: Any, inputs: Inputs, survey: Survey, columns: Sequence[str], *, session: str, time: str
) -> list[str]:
    """`columns` with `session`, in the order of the data; ConfigError for one that changes within a session."""
    check_columns("cluster", columns, list(inputs.columns))
    found = find_session_level(engine, inputs, survey, session=session, time=time)
    changing = [name for name in columns if name not in found]
    if changing:
        raise ConfigError(
            f"cluster: column '{changing[0]}' changes within a session, so storing it once would lose values. Leave it "
            f"out of --session-columns; the columns that stay are: {', '.join(found)}."
        )
    return [name for name in inputs.columns if name == session or name in columns]


def _time(inputs: Inputs, time: str, high: Any) -> tuple[str, str]:
    kind, at = str(inputs.columns[time]), quoted(time)
    if kind.startswith(("TIMESTAMP", "DATE")):
        return "type", f"epoch_us({at})"
    if kind in ("BIGINT", "INTEGER", "UBIGINT", "UINTEGER", "SMALLINT", "USMALLINT", "HUGEINT", "DOUBLE", "FLOAT"):
        for name, end, scale in _UNITS:
            if abs(float(high)) < end:
                return name, f"{at} * {scale}"
        raise ConfigError(
            f"cluster: time column '{time}' of '{inputs.files[0]}' reaches {high}, which is no time in s, ms, us or ns "
            "since 1970. Mend it, or name another column with --time."
        )
    raise ConfigError(
        f"cluster: time column '{time}' of '{inputs.files[0]}' holds {kind}, which is neither a timestamp nor a "
        "number. Cast it, or name another column with --time."
    )


def _refuse_nulls(engine: Any, inputs: Inputs, columns: Sequence[str]) -> None:
    for name in columns:
        found = engine.sql(
            f"SELECT {FILE}, count(*) FROM ({inputs.relation}) WHERE {quoted(name)} IS NULL GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
        if found:
            raise ConfigError(
                f"cluster: column '{name}' is null in {found[0][1]} rows of '{found[0][0]}', and such a row has no "
                "place. Mend them, or leave them out with --drop-nulls."
            )
