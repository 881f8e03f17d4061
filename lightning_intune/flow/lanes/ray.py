"""Ray lanes: a worker thread's own actor, on any machine of a Ray cluster. The extra `[ray]`."""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import pickle
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from lightning_intune.errors import ConfigError
from lightning_intune.flow.lanes.child import RunQueue, call
from lightning_intune.flow.lanes.lane import Failed, Lane, LaneDiedError, LanePool
from lightning_intune.flow.lanes.reducers import UnpicklableError, by_value_pickler

_START_S = 60.0

# A value between processes: its pickle, and its buffers as arrays, which Ray carries without copies of its own.
_Packed = tuple[bytes, list[Any]]


@final
class RayLane(Lane):
    """One Ray actor. Made by `RayLanePool.open`."""

    def __init__(self, actor: Any, *, stage: str, start_timeout_s: float) -> None:
        self._ray: Any = importlib.import_module("ray")
        self._actor, self._stage = actor, stage
        self._cpu_s, self._fn_s, self._run_delay_s = 0.0, 0.0, 0.0
        self._end = weakref.finalize(self, _kill, self._ray, actor)
        try:
            self._get(actor.ready.remote(), timeout=start_timeout_s)
        except self._ray.exceptions.GetTimeoutError:
            self.close()
            raise LaneDiedError(
                f"stage '{stage}': no actor could start within {start_timeout_s:g} s. The cluster has no free CPU: "
                f"{self._ray.available_resources()}. Lower the stage's max workers or add CPUs."
            ) from None

    def run(self, items: Sequence[Any], *, within_s: float = math.inf) -> list[Any]:
        packed, failures = list[_Packed](), dict[int, UnpicklableError]()
        for index, item in enumerate(items):
            try:
                packed.append(_pack(item))
            except Exception as error:  # noqa: BLE001 - `__reduce__` is the user's code
                failures[index] = UnpicklableError(f"{type(item).__name__} cannot be pickled: {error}")
        replies, self._cpu_s, self._fn_s, self._run_delay_s = self._get(self._actor.run.remote(packed, within_s))
        outcomes = [_unpack(reply) for reply in replies]
        for index, error in sorted(failures.items()):
            if index <= len(outcomes):  # not behind items that were not begun
                outcomes.insert(index, Failed(error))
        return outcomes

    @property
    def cpu_s(self) -> float:
        return self._cpu_s

    @property
    def run_delay_s(self) -> float:
        return self._run_delay_s

    @property
    def fn_s(self) -> float:
        return self._fn_s

    def close(self) -> None:
        self._end()

    def kill(self) -> None:
        self._end()

    def _get(self, reference: Any, **options: Any) -> Any:
        try:
            return self._ray.get(reference, **options)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
            self.close()
            raise LaneDiedError(f"stage '{self._stage}': its Ray actor is gone: {error}") from error


def _kill(ray: Any, actor: Any) -> None:
    if ray.is_initialized():  # else the cluster's end was the actor's too
        ray.kill(actor, no_restart=True)


@final
class RayLanePool(LanePool):
    """Ray actors for one stage's function, each on `num_cpus` of the cluster's CPUs.

    Connects by `ray.init()` if you have not; the connection stays yours to end. The function is
    pickled here and now (ConfigError), by value where it is a closure or lives in `__main__`; modules it
    comes from, and this package, must be installed on the cluster's machines. Results are private
    copies, writable like fresh ones. No spare is kept: Ray keeps its own idle workers warm.
    """

    kind = "ray"

    def __init__(
        self, fn: Callable[[Any], Any], *, name: str, num_cpus: float = 1.0, start_timeout_s: float = _START_S
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                f"stage '{name}': method='ray' needs Ray, which is not installed. "
                "Run pip install 'lightning-intune[ray]', or use method='process'."
            )
        self._fn, self._stage = fn, name
        self._num_cpus, self._start_timeout_s = num_cpus, start_timeout_s
        try:
            self._pickled = _cloudpickle().dumps(fn)
        except Exception as error:
            raise ConfigError(
                f"stage '{name}': its function {getattr(fn, '__qualname__', fn)!r} cannot be pickled for Ray actors: "
                f"{error}. Open files, locks and connections inside it instead of binding them, or use method='thread'."
            ) from error

    def open(self) -> RayLane:
        ray: Any = importlib.import_module("ray")
        if not ray.is_initialized():
            ray.init()
        remote = ray.remote(num_cpus=self._num_cpus, max_restarts=0, max_task_retries=0)(_Actor)
        return RayLane(remote.remote(self._pickled), stage=self._stage, start_timeout_s=self._start_timeout_s)

    def close(self) -> None:
        """Nothing is shared or spare."""

    def __reduce__(self) -> Any:
        return _remake, (self._fn, self._stage, self._num_cpus, self._start_timeout_s)


def _remake(fn: Callable[[Any], Any], name: str, num_cpus: float, start_timeout_s: float) -> RayLanePool:
    return RayLanePool(fn, name=name, num_cpus=num_cpus, start_timeout_s=start_timeout_s)


class _Actor:
    """Runs in the actor's process. Not final: Ray makes a subclass."""

    def __init__(self, pickled: bytes) -> None:
        self._fn: Callable[[Any], Any] = pickle.loads(pickled)
        self._start_s, self._fn_s = time.process_time(), 0.0
        self._queue: RunQueue | None = None

    def ready(self) -> None:
        """Answered once the function is loaded."""

    def run(self, items: list[_Packed], within_s: float) -> tuple[list[_Packed], float, float, float]:
        self._queue = self._queue or RunQueue()  # of the thread that Ray runs the items in
        replies, began_s = list[_Packed](), time.perf_counter()
        for item in items:
            replies.append(self._reply(item))
            if time.perf_counter() - began_s > within_s:
                break
        self._fn_s += time.perf_counter() - began_s
        return replies, time.process_time() - self._start_s, self._fn_s, self._queue.run_delay_s()

    def _reply(self, item: _Packed) -> _Packed:
        loaded = _unpack(item)
        outcome = loaded if isinstance(loaded, Failed) else call(self._fn, loaded)
        try:
            return _pack(outcome)
        except Exception as error:  # noqa: BLE001 - `__reduce__` is the user's code
            text = f"the function's result cannot leave its actor: {type(outcome).__name__} cannot be pickled: {error}"
            return _pack(Failed(UnpicklableError(text)))


def _pack(value: Any) -> _Packed:
    file, buffers = io.BytesIO(), list[Any]()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        buffers.append(np.frombuffer(buffer.raw(), np.uint8))
        return False

    by_value_pickler(_cloudpickle().Pickler, file, keep).dump(value)
    return file.getvalue(), buffers


def _unpack(packed: _Packed) -> Any:
    stream, buffers = packed
    try:
        # Ray's arrays are read-only views of its object store: copies are writable, and hold nothing there.
        return pickle.loads(stream, buffers=[buffer.copy() for buffer in buffers])
    except Exception as error:  # noqa: BLE001 - `__setstate__` is the user's code
        return Failed(UnpicklableError(f"a value cannot be unpickled: {error}"))


def _cloudpickle() -> Any:
    return importlib.import_module("ray.cloudpickle")
