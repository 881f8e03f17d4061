"""Draws one chunk of sessions: all their events as a record batch, from (seed, chunk number) alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_intune.dedup.etl.synth_spec import SynthFeature, SynthSpec
from lightning_intune.flow.hashing import hash_numbers

SESSIONS_PER_CHUNK = 256
FIRST_MS = 1_659_304_800_000  # 2022-07-31 22:00 UTC, where the OTTO data begin
DAY_MS = 86_400_000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Events of whole sessions, session by session and in time order within each."""

    rows: pa.RecordBatch
    lengths: Ints
    """Events of each session; their sum is the number of rows."""


def draw_chunk(spec: SynthSpec, number: int) -> Chunk:
    """Sessions `number * SESSIONS_PER_CHUNK` and following; which chunks come before does not matter.

    >>> chunk = draw_chunk(SynthSpec(events_per_session=1), 3)
    >>> chunk.rows.num_rows, chunk.rows["session"][0].as_py()
    (256, 768)
    """
    rng = np.random.Generator(np.random.PCG64([spec.seed, number]))
    lengths = spec.session_lengths(SESSIONS_PER_CHUNK, rng)
    session = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    columns: dict[str, pa.Array] = {
        "session": pa.array(session + number * SESSIONS_PER_CHUNK),
        "ts": _times(spec, number, lengths, starts, rng),
    }
    logit = np.zeros(len(session))
    parts = 0.0
    for index, feature in enumerate(spec.features):
        changed = rng.random(len(session)) < feature.change
        changed[starts] = True
        columns[feature.name], part = _feature(feature, changed, session, hash_seed(spec.seed, index), rng)
        logit += feature.weight * part
        parts += feature.weight**2
    for index in range(spec.num_dense):
        dense = rng.standard_normal(len(session))
        columns[f"dense{index}"] = pa.array(dense.astype(np.float32))
        logit += dense
        parts += 1.0
    # Every part has variance 1, so `label_strength` is the spread of the logit however many features there are.
    chance = 1.0 / (1.0 + np.exp(-(spec.label_bias + spec.label_strength * logit / np.sqrt(max(parts, 1e-12)))))
    columns["label"] = pa.array((rng.random(len(session)) < chance).astype(np.int8))
    if spec.with_truth:
        columns["probability"] = pa.array(chance.astype(np.float32))
    return Chunk(rows=pa.RecordBatch.from_pydict(columns), lengths=lengths)


def hash_seed(seed: int, feature: int) -> int:
    """What keys a feature's per-id weights."""
    return (seed * 1_000_003 + feature + 1) % 2**31


def id_weights(ids: Ints, seed: int) -> Floats:
    """Each id's part in the logit: evenly between -sqrt(3) and sqrt(3), of variance 1, by the id's hash."""
    return (hash_numbers(ids, seed).astype(np.float64) / 2.0**64 - 0.5) * np.sqrt(12.0)


def _times(spec: SynthSpec, number: int, lengths: Ints, starts: Ints, rng: np.random.Generator) -> pa.Array:
    # Sessions begin in the order of their numbers, evenly over the days; gaps have a median of 45 s and a long tail.
    num_sessions = max(1.0, spec.num_rows / (spec.events_per_session or 16.8))
    place = (number * SESSIONS_PER_CHUNK + np.arange(len(lengths)) + rng.random(len(lengths))) / num_sessions
    begins = FIRST_MS + place * spec.num_days * DAY_MS
    gaps = np.minimum(np.exp(rng.normal(np.log(45_000.0), 1.8, int(lengths.sum()))), float(DAY_MS))
    gaps[starts] = 0.0
    passed = np.cumsum(gaps)
    times = np.repeat(begins - passed[starts], lengths) + passed
    return pa.array(times.astype(np.int64)).cast(pa.timestamp("ms"))


def _feature(
    feature: SynthFeature, changed: npt.NDArray[np.bool_], session: Ints, seed: int, rng: np.random.Generator
) -> tuple[pa.Array, Floats]:
    """The column, and its part in each row's logit (variance 1)."""
    version = np.cumsum(changed) - 1  # [rows] which of the drawn values a row has
    of_session = session[changed]  # [versions]
    if not feature.is_list:
        ids = _ids(feature, len(of_session), rng)
        return pa.array(ids[version]), id_weights(ids, seed)[version]
    if feature.shift:
        begins, sizes, ids = _windows(feature, of_session, rng)
    else:
        sizes = _sizes(feature, len(of_session), rng)
        begins = np.cumsum(sizes) - sizes
        ids = _ids(feature, int(sizes.sum()), rng)
    sums = np.concatenate([[0.0], np.cumsum(id_weights(ids, seed))])
    part = (sums[begins + sizes] - sums[begins]) / np.sqrt(sizes)
    return _slices(ids, begins[version], sizes[version]), part[version]


def _windows(feature: SynthFeature, of_session: Ints, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """(begin, size) of each version in one stream of ids per session, along which the session's window moves."""
    num_sessions = int(of_session[-1]) + 1
    versions = np.bincount(of_session, minlength=num_sessions)
    sizes = _sizes(feature, num_sessions, rng)
    stream = sizes + (versions - 1) * feature.shift
    stream_begins = np.cumsum(stream) - stream
    first = np.cumsum(versions) - versions
    nth = np.arange(len(of_session)) - first[of_session]
    begins = stream_begins[of_session] + nth * feature.shift
    return begins, sizes[of_session], _ids(feature, int(stream.sum()), rng)


def _slices(ids: Ints, begins: Ints, sizes: Ints) -> pa.Array:
    """List array whose row i is `ids[begins[i] : begins[i] + sizes[i]]`."""
    ends = np.cumsum(sizes)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    places = np.arange(int(ends[-1])) + np.repeat(begins - (ends - sizes), sizes)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids[places]))


def _sizes(feature: SynthFeature, num: int, rng: np.random.Generator) -> Ints:
    return 1 + rng.poisson(feature.mean_length - 1.0, num).astype(np.int64)


def _ids(feature: SynthFeature, num: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    return np.floor(feature.num_ids * rng.random(num) ** feature.skew).astype(np.int64)
