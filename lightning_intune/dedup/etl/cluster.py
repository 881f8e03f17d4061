"""Clusters rows by session within time partitions: out of core, resumable, and verified before it has its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import pyarrow as pa

from lightning_intune.dedup.etl.engine import open_engine, quoted, row_hash, text
from lightning_intune.dedup.etl.inputs import TIE, Inputs, open_inputs
from lightning_intune.dedup.etl.manifest import Manifest, Part, locked
from lightning_intune.dedup.etl.output_file import OutputFile
from lightning_intune.dedup.etl.part_writer import PartSettings, part_metadata, part_name, split_parts, write_part
from lightning_intune.dedup.etl.survey import (
    PART,
    Partition,
    Survey,
    check_session_level,
    find_session_level,
    take_survey,
)
from lightning_intune.dedup.etl.synth_spec import Layout
from lightning_intune.errors import ConfigError

Engine = Literal["duckdb", "ray"]
OnProgress = Callable[[str, int, int], None]
"""(what is being done, rows done, rows in all or 0 where that is not known)."""

_BATCH_ROWS = 8_192


class VerificationError(RuntimeError):
    """The output is not the input in another order. It was not given its name."""


@final
@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """What to cluster, and how. See docs/sessions.md."""

    paths: Sequence[str]
    output: str
    """A folder that shall be: one Parquet file per time partition, in an order that names sort in."""
    session: str
    time: str
    layout: Layout = "rows"
    partition: Partition = "day"
    """UTC days or hours: sessions are joined within one, so no row comes before one of an earlier partition."""
    session_columns: Sequence[str] | None = None
    """For layout `sessions`: what is stored once per session. None: the columns that never change in one, measured."""
    drop_nulls: bool = False
    """Leave out rows without session or time, which are an error else."""
    history: int = 0
    """Of OTTO's format: add a column with the session's last so many item ids before the event."""
    row_group_rows: int = 65_536
    max_session_rows: int = 65_536
    engine: Engine = "duckdb"
    memory_limit_bytes: int = 4 * 2**30
    scratch: str | None = None
    """Where sorting spills; None: beside the output."""
    scratch_limit_bytes: int | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        for field in ("row_group_rows", "max_session_rows", "threads"):
            if getattr(self, field) < 1:
                raise ConfigError(f"cluster: {field}={getattr(self, field)} is below 1. Set it to 1 or more.")
        if self.session == self.time:
            raise ConfigError(f"cluster: session and time are both '{self.time}'. Name two columns.")
        if self.history < 0:
            raise ConfigError(f"cluster: history={self.history} is below 0. Set it to 0 or more.")
        if self.session_columns is not None and self.layout != "sessions":
            raise ConfigError("cluster: --session-columns goes with --layout sessions only. Leave one out.")
        if self.session_columns is not None and self.time in self.session_columns:
            raise ConfigError(f"cluster: the time column '{self.time}' is each row's own. Leave it out.")


@final
@dataclass(frozen=True, kw_only=True)
class ClusterResult:
    """What was written; the counts are of the verified output."""

    output: str
    layout: Layout
    partition: Partition
    num_rows: int
    num_sessions: int
    """Sessions, one that crosses partitions counted in each."""
    num_parts: int
    num_resumed: int
    """Of these, parts that an earlier, unfinished run had done."""
    num_dropped: int
    num_bytes: int
    input_bytes: int
    checksum: str
    session_columns: Sequence[str]
    time_unit: str


def cluster(job: ClusterJob, on_progress: OnProgress = lambda *_: None) -> ClusterResult:
    """Do it, or go on with it: an earlier run that was killed left its finished partitions beside `output`.

    ConfigError for what the user can mend, DiskFullError for a full disk, VerificationError if the written rows are
    not exactly the input's, which would be a fault here.
    """
    output = Path(job.output)
    if output.exists():
        raise ConfigError(f"cluster: '{output}' exists, and would be overwritten. Remove it, or name another output.")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"cluster: the folder '{output.resolve().parent}' does not exist. Create it.")
    work = output.with_name(f".{output.name}.part")
    with ExitStack() as stack:
        stack.enter_context(locked(work))
        shutil.rmtree(work / "scratch", ignore_errors=True)  # what a killed run had spilled
        scratch = Path(job.scratch) if job.scratch is not None else work / "scratch"
        engine = stack.enter_context(
            open_engine(job.memory_limit_bytes, scratch, threads=job.threads, scratch_bytes=job.scratch_limit_bytes)
        )
        inputs = open_inputs(engine, job.paths, history=job.history, line_bytes=job.memory_limit_bytes // 32)
        return _Run(job, work, engine, inputs, on_progress).run(output)


@final
class _Run:
    def __init__(self, job: ClusterJob, work: Path, engine: Any, inputs: Inputs, on_progress: OnProgress) -> None:
        self._job, self._engine, self._inputs, self._on_progress = job, engine, inputs, on_progress
        self._on_progress("looking at the input", 0, 0)
        self._survey = take_survey(
            engine,
            inputs,
            session=job.session,
            time=job.time,
            partition=job.partition,
            drop_nulls=job.drop_nulls,
        )
        level = self._session_level()
        self._settings = PartSettings(
            session=job.session,
            time=job.time,
            partition=job.partition,
            layout=job.layout,
            session_level=level,
            row_group_rows=job.row_group_rows,
            max_session_rows=job.max_session_rows,
        )
        work.mkdir(exist_ok=True)
        self._manifest = Manifest(work, self._identity())

    def run(self, output: Path) -> ClusterResult:
        finished = self._verified_parts()
        num_resumed, num_done = len(finished), sum(part.num_rows for part in finished.values())
        if num_done < self._survey.num_rows:
            self._write_rest(num_done)
        parts = self._manifest.parts.values()
        num_rows, checksum = sum(part.num_rows for part in parts), sum(int(part.checksum) for part in parts)
        if (num_rows, checksum) != (self._survey.num_rows, self._survey.checksum):
            raise VerificationError(
                f"cluster: {num_rows} rows of checksum {checksum} were written, where the input has "
                f"{self._survey.num_rows} of {self._survey.checksum}. Did the input change meanwhile? The output stays "
                f"in '{self._manifest.folder}'."
            )
        result = self._result(output, num_resumed)
        shutil.rmtree(self._manifest.folder / "scratch", ignore_errors=True)
        self._manifest.remove()
        self._manifest.folder.rename(output)
        return result

    def _session_level(self) -> list[str]:
        job = self._job
        if job.layout == "rows":
            return []
        self._on_progress("finding the columns that stay", 0, 0)
        if job.session_columns is None:
            return find_session_level(self._engine, self._inputs, self._survey, session=job.session, time=job.time)
        return check_session_level(
            self._engine, self._inputs, self._survey, job.session_columns, session=job.session, time=job.time
        )

    def _identity(self) -> dict[str, Any]:
        """What a resumed run has to agree on. How the work is done (memory, threads, engine) is free to differ."""
        job = asdict(self._job)
        for free in ("output", "engine", "memory_limit_bytes", "scratch", "scratch_limit_bytes", "threads", "paths"):
            del job[free]
        stats = [(str(Path(file).resolve()), Path(file).stat()) for file in self._inputs.files]
        job["input files"] = [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]
        job["input rows"] = [self._survey.num_rows, str(self._survey.checksum)]
        return job

    def _verified_parts(self) -> dict[int, Part]:
        """The parts of an earlier run, each read again; one that is damaged is forgotten and done anew."""
        for number, part in list(self._manifest.parts.items()):
            self._on_progress(f"verifying {part.file}", 0, 0)
            path = self._manifest.folder / part.file
            if not path.exists() or self._measure(path) != (part.num_rows, int(part.checksum)):
                path.unlink(missing_ok=True)
                del self._manifest.parts[number]
        self._manifest.save()
        return dict(self._manifest.parts)

    def _write_rest(self, num_done: int) -> None:
        total = self._survey.num_rows
        self._on_progress("sorting", 0, 0)
        for number, rows in split_parts(self._sorted(list(self._manifest.parts))):
            path = self._manifest.folder / part_name(number, self._job.partition)
            path.unlink(missing_ok=True)  # written, but not recorded before the kill

            def on_rows(count: int) -> None:
                nonlocal num_done
                num_done += count
                self._on_progress("writing", num_done, total)

            about = part_metadata(self._settings)
            with OutputFile(path, metadata=about, row_group_rows=self._job.row_group_rows) as out:
                num_rows, num_sessions = write_part(rows, out, self._settings, on_rows)
                found = self._measure(out.close())
                if found[0] != num_rows:
                    raise VerificationError(f"cluster: {num_rows} rows went into '{path}', and {found[0]} came back.")
                out.commit()
            self._manifest.parts[number] = Part(
                file=path.name,
                number=number,
                num_rows=num_rows,
                num_sessions=num_sessions,
                checksum=str(found[1]),
                num_bytes=path.stat().st_size,
            )
            self._manifest.save()
            self._on_progress(f"finished {path.name}", num_done, total)

    def _sorted(self, finished: Sequence[int]) -> Iterator[pa.RecordBatch]:
        if self._job.engine == "ray":
            from lightning_intune.dedup.etl.ray_sort import ray_sorted

            batches = ray_sorted(self._inputs, self._survey, self._job, finished)
        else:
            query = sorted_query(self._inputs, self._survey, self._job, finished)
            batches = iter(self._engine.cursor().sql(query).to_arrow_reader(_BATCH_ROWS))
        for batch in batches:
            yield batch if self._inputs.schema is None else _in_types(batch, self._inputs.schema)

    def _measure(self, path: Path) -> tuple[int, int]:
        """(rows, checksum) of a written file, read back from the disk."""
        engine = self._engine.cursor()
        source = f"SELECT * FROM read_parquet({text(str(path))})"
        if self._job.layout == "sessions":
            level = set(self._settings.session_level)
            names = [quoted(n) if n in level else f"unnest({quoted(n)}) AS {quoted(n)}" for n in self._inputs.columns]
            source = f"SELECT {', '.join(names)} FROM ({source})"
        [(rows, checksum)] = engine.sql(
            f"SELECT count(*), sum({row_hash(self._inputs.columns)}::HUGEINT) FROM ({source})"
        ).fetchall()
        return rows, int(checksum or 0)

    def _result(self, output: Path, num_resumed: int) -> ClusterResult:
        parts = list(self._manifest.parts.values())
        num_sessions = sum(part.num_sessions for part in parts)
        return ClusterResult(
            output=str(output),
            layout=self._job.layout,
            partition=self._job.partition,
            num_rows=self._survey.num_rows,
            num_sessions=num_sessions,
            num_parts=len(parts),
            num_resumed=num_resumed,
            num_dropped=self._survey.num_dropped,
            num_bytes=sum(part.num_bytes for part in parts),
            input_bytes=sum(Path(file).stat().st_size for file in self._inputs.files),
            checksum=str(self._survey.checksum),
            session_columns=self._settings.session_level,
            time_unit=self._survey.time_unit,
        )


def _in_types(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns in the types that the files have; where they are `null` or views, in the engine's."""
    fields = [field if field.name == PART else schema.field(field.name) for field in batch.schema]
    odd = [any(word in str(field.type) for word in ("null", "view")) for field in fields]
    return batch.cast(
        pa.schema([own if is_odd else field for own, field, is_odd in zip(batch.schema, fields, odd, strict=True)])
    )


def sorted_query(inputs: Inputs, survey: Survey, job: ClusterJob, finished: Sequence[int]) -> str:
    """SQL for the rows still to be written, with `PART`, in the order of the output."""
    key, time = quoted(job.session), quoted(job.time)
    names = ", ".join(map(quoted, inputs.columns))
    done = f" AND {PART} NOT IN ({', '.join(map(str, finished))})" if finished else ""
    # Rows of one time: as they stood in the file where that is known, else by their hash, so that every run agrees.
    tie = TIE if inputs.kind in ("parquet", "otto") else row_hash(inputs.columns)
    return (
        f"SELECT {names}, {PART} FROM (SELECT *, {survey.part} AS {PART} FROM ({inputs.relation})) "
        f"WHERE {key} IS NOT NULL AND {time} IS NOT NULL{done} ORDER BY {PART}, {key}, {time}, {tie}"
    )
