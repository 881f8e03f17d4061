"""Functions that do what no function should: raise what cannot be told, return what cannot leave, fork, close files."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, final

import numpy as np

from lightning_intune.errors import StageError
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from tests.faults.functions import WORST
from tests.faults.ledger import Trial
from tests.faults.runner import Scenario

BUFFER = np.arange(3_000_000)
NUM_ITEMS = 60


class TextlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class TwoArgumentsError(Exception):
    """Python cannot make it again from `args`, so it cannot be unpickled."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)
        self.why = why


class HeldError(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.lock = threading.Lock()


class OwnBaseError(BaseException):
    pass


class Bomb:
    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return explode, ()


class Touchy:
    """Raises whatever is asked of it."""

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def explode() -> NoReturn:
    raise RuntimeError("it cannot be made again")


def throw(error: BaseException) -> NoReturn:
    raise error


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1)


def nested() -> list[Any]:
    found: list[Any] = []
    for _ in range(20_000):
        found = [found]
    return found


def forked() -> int:
    """Comes back twice."""
    os.fork()
    return WORST


ODD: dict[str, Callable[[], Any]] = {
    "an error without text": lambda: throw(TextlessError()),
    "an error that cannot be unpickled": lambda: throw(TwoArgumentsError("this", "that")),
    "an error that cannot be pickled": lambda: throw(HeldError("held")),
    "an error with text that is no UTF-8": lambda: throw(ValueError("bad \udcff text")),
    "a group of errors": lambda: throw(ExceptionGroup("both", [ValueError(1), KeyError(2)])),
    "StopIteration": lambda: throw(StopIteration(5)),
    "StopAsyncIteration": lambda: throw(StopAsyncIteration()),
    "GeneratorExit": lambda: throw(GeneratorExit()),
    "KeyboardInterrupt": lambda: throw(KeyboardInterrupt()),
    "an error of its own base": lambda: throw(OwnBaseError("base")),
    "no end of recursion": recurse,
    "no memory": lambda: bytearray(1 << 60),
    "sys.exit": lambda: sys.exit(4),
    "os._exit": lambda: os._exit(5),
    "abort": os.abort,
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "its files closed": lambda: os.closerange(3, 200),
    "a generator": lambda: (n for n in range(3)),
    "a lock": threading.Lock,
    "a deep nest": nested,
    "what cannot be loaded": Bomb,
    "None": lambda: None,
    "what has no length and no truth": Touchy,
    "a view of a shared buffer": lambda: BUFFER[1_000_000:2_000_000],
    "a fork": forked,
}
"""What happens at the worst item, by name."""


@final
@dataclass(frozen=True)
class Odd:
    """Picklable, where a lambda is not."""

    what: str

    def __call__(self, n: int) -> Any:
        return ODD[self.what]() if n == WORST else n


THREAD, PROCESS = frozenset({"thread"}), frozenset({"process"})
ENDS_ITS_PROCESS = frozenset({"os._exit", "abort", "SIGSEGV", "its files closed", "a fork"})
"""In a thread it is the trainer that is ended: nobody can keep it."""
COMES_THROUGH = {
    "None": THREAD | PROCESS, "what has no length and no truth": THREAD | PROCESS,
    "a view of a shared buffer": THREAD | PROCESS, "a fork": PROCESS,
    "a generator": THREAD, "a lock": THREAD, "a deep nest": THREAD, "what cannot be loaded": THREAD,
}  # fmt: skip
"""What is no error, and in which lanes."""


def cases() -> list[tuple[str, str]]:
    """(what, method): all there are."""
    methods = ("thread", "process")
    return [(what, method) for what in ODD for method in methods if method == "process" or what not in ENDS_ITS_PROCESS]


def try_one(trial: Trial, what: str, method: str) -> None:
    """Everything but the worst item comes as it is; that one too, or it is named and all before it came."""
    out = list[Any]()
    node = ElasticMapper(IterableSource(range(NUM_ITEMS)), Odd(what), 2, method=method, name="odd")
    with ElasticLoader(node) as loader:
        if method in COMES_THROUGH.get(what, frozenset()):
            out.extend(loader)
            trial.check(len(out) == NUM_ITEMS, f"lost: {what} in a {method} lane gave {len(out)} items")
            if what == "a view of a shared buffer":
                trial.check(np.array_equal(out[WORST], BUFFER[1_000_000:2_000_000]), "changed: a view")
            out[WORST] = WORST
        else:
            with trial.raises(StageError, "stage 'odd'", item=WORST):
                out.extend(loader)
    trial.came(range(NUM_ITEMS if method in COMES_THROUGH.get(what, frozenset()) else WORST), out)
    trial.inject()


def odd_functions(trial: Trial) -> None:
    """Some of all, at each seed others."""
    for what, method in trial.rng.sample(cases(), 8):
        try_one(trial, what, method)


SCENARIOS = (
    Scenario(name="functions that do odd things", promise="through, or named; nothing shifts", run=odd_functions),
)
