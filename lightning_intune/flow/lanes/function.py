"""A stage's function made ready to cross into worker processes: pickled once, checked, shared by all lanes."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import pickletools
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np

from lightning_intune.errors import ConfigError
from lightning_intune.flow.lanes.arena import Mapping, fill, layout
from lightning_intune.flow.lanes.reducers import make_pickler

_PRELOADED = ("numpy", "torch")  # imported before the first fork, once the parent has them too
_HEAD = struct.Struct("<Q")


@final
class PickledFunction:
    """`fn` in a memfd: its pickle and, out-of-band, its arrays, which every lane maps copy-on-write.

    So a dataset bound to the function is in memory once, however many lanes read it. Pickled by
    reference with the standard library; where that cannot work (a lambda, a notebook's `__main__`)
    by value with cloudpickle, if it is installed. ConfigError, naming `stage`, if neither can.
    """

    def __init__(self, fn: Callable[[Any], Any], *, stage: str) -> None:
        self.by_value = False
        try:
            stream, buffers = _pickle(fn, by_value=False)
        except Exception as error:  # noqa: BLE001 - `__reduce__` may be the user's code
            stream, buffers = self._pickle_by_value(fn, stage, f"cannot be pickled: {_cause(error)}")
        else:
            if _names_main(stream) and not main_origin():
                reason = "is defined in a __main__ without a file (notebook, prompt), where processes cannot find it"
                stream, buffers = self._pickle_by_value(fn, stage, reason)
        self.needs_main = _names_main(stream) and not self.by_value
        self.modules = [*_modules(stream), *(["__main__"] if self.needs_main else [])]
        """Modules the function needs, for a fork server to import ahead."""
        self.late_modules: tuple[str, ...] = ()
        """Modules that its first call was seen to import (`LateImports`)."""
        self.fd, self.num_bytes = _write(stream, buffers)
        self._closed = threading.Lock()

    def close(self) -> None:
        """Close the memfd; lanes that have mapped it keep it. Harmless when repeated."""
        if self._closed.acquire(blocking=False):
            os.close(self.fd)

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    def _pickle_by_value(self, fn: Callable[[Any], Any], stage: str, reason: str) -> tuple[bytes, list[memoryview]]:
        what = getattr(fn, "__qualname__", None) or repr(fn)
        if importlib.util.find_spec("cloudpickle") is None:
            raise ConfigError(
                f"stage '{stage}': its function {what} {reason}. A process lane needs a copy. Define it "
                "at the top level of a module, bind data that pickles, pip install cloudpickle, or use method='thread'."
            )
        self.by_value = True
        try:
            return _pickle(fn, by_value=True)
        except Exception as error:
            raise ConfigError(
                f"stage '{stage}': its function {what} {reason}, and cloudpickle fails too: {_cause(error)}."
                " Open files, locks and connections inside the function, do not bind them, or use method='thread'."
            ) from error


def load_function(fd: int, num_bytes: int) -> Callable[[Any], Any]:
    """In the worker process: the function from its memfd, arrays in place, private to this process when written to."""
    memory = np.asarray(Mapping(fd, num_bytes, shared=False))
    (num_buffers,) = _HEAD.unpack_from(memory.data)
    sizes = np.frombuffer(memory, np.uint64, num_buffers, _HEAD.size).tolist()
    offsets, _ = layout([_HEAD.size + 8 * num_buffers, *sizes])
    parts = [memory[offset : offset + size] for offset, size in zip(offsets[1:], sizes, strict=True)]
    return pickle.loads(parts[0].data, buffers=parts[1:])


def _pickle(fn: Callable[[Any], Any], *, by_value: bool) -> tuple[bytes, list[memoryview]]:
    file, buffers = io.BytesIO(), list[memoryview]()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        buffers.append(buffer.raw())
        return False

    make_pickler(file, keep, by_value=by_value).dump(fn)
    return file.getvalue(), buffers


def _write(stream: bytes, buffers: list[memoryview]) -> tuple[int, int]:
    sizes = [len(stream), *(buffer.nbytes for buffer in buffers)]
    head = _HEAD.pack(len(sizes)) + np.array(sizes, np.uint64).tobytes()
    offsets, end = layout([len(head), *sizes])
    fd = os.memfd_create("lightning_intune_fn", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, end)
        memory = np.asarray(Mapping(fd, end))
        for offset, part in zip(offsets, [head, stream, *buffers], strict=True):
            fill(memory, offset, part)
    except BaseException:
        os.close(fd)
        raise
    return fd, end


def _strings(stream: bytes) -> Iterator[str]:
    for _, argument, _ in pickletools.genops(stream):
        if isinstance(argument, str):
            yield argument


def _modules(stream: bytes) -> list[str]:
    named = {text for text in _strings(stream) if text in sys.modules and text != "__main__"}
    return [*(name for name in _PRELOADED if name in sys.modules), *sorted(named.difference(_PRELOADED))]


def _names_main(stream: bytes) -> bool:
    return any(text == "__main__" for text in _strings(stream))


def main_origin() -> dict[str, str]:
    """Where a process can import our `__main__` from, in `multiprocessing.spawn.prepare`'s words; empty if nowhere."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return {"init_main_from_name": name}
    path = getattr(main, "__file__", None)
    if path is None or not os.path.exists(path):  # a notebook, a prompt, a script on standard input
        return {}
    return {"init_main_from_path": os.path.abspath(path)}


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
