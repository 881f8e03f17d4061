"""The two errors of this library: a user's mistake, and a failure in a run."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """A user's mistake, raised at construction: what is wrong, why it matters, what to do now."""


class StageError(RuntimeError):
    """A stage's function failed in a run; `__cause__` is the original error with its traceback.

    Raised through :func:`stage_error`, the object is also an instance of the original error's
    class, so that ``except ValueError`` written for a plain loop still works behind a stage.
    """

    stage: str
    item: int


def stage_error(stage: str, item: int, cause: BaseException, hint: str = "") -> StageError:
    """A :class:`StageError` for item number `item` (from 0) of `stage`, caused by `cause`.

    >>> error = stage_error("decode", 7, KeyError("price"))
    >>> isinstance(error, StageError), isinstance(error, KeyError), error.item
    (True, True, 7)
    """
    if isinstance(cause, StageError):
        return cause  # an upstream stage has named itself already
    text = f"stage '{stage}': item {item} failed with {type(cause).__name__}: {_words(cause)}"
    text = f"{text}. {hint}" if hint else text
    try:
        return _fill(_both(type(cause), text), text, stage, item, cause)
    except Exception:  # noqa: BLE001 - a class of whatever kind: the plain StageError says it all
        return _fill(StageError(text), text, stage, item, cause)


def _words(cause: BaseException) -> str:
    try:
        return str(cause)
    except Exception as error:  # noqa: BLE001 - a user's `__str__`
        return f"(its text cannot be had: {type(error).__name__})"


def _fill(error: StageError, text: str, stage: str, item: int, cause: BaseException) -> StageError:
    vars(error).update(vars(cause))  # what `except ValueError as error` would have looked at
    if isinstance(error, OSError) and isinstance(cause, OSError):
        error.errno, error.strerror, error.filename = cause.errno, cause.strerror, cause.filename
    error.args = (text,)
    error.stage, error.item = stage, item
    error.__cause__ = cause
    return error


def _both(kind: type[BaseException], text: str) -> StageError:
    """An instance of StageError and, where Python lets them mix, of `kind`, whose class may object in its own way."""
    # StopIteration must not come out of `next` as such: it would end the epoch in silence (PEP 479).
    is_plain = issubclass(kind, Exception) and not issubclass(kind, StopIteration | StopAsyncIteration)
    if not is_plain or issubclass(StageError, kind):
        return StageError(text)
    both = type("StageError", (StageError, kind), {"__str__": _text, "__reduce__": _reduce})
    # The original class's `__new__` knows its layout; its `__init__` may want other arguments than a text. Python lets
    # nobody call MemoryError's for another class, which needs it no more than StageError does.
    return StageError.__new__(both, text) if kind.__new__ is MemoryError.__new__ else kind.__new__(both, text)


def _text(error: BaseException) -> str:
    return str(error.args[0])


def _reduce(error: StageError) -> tuple[Any, ...]:
    cause = error.__cause__ or RuntimeError(str(error))
    return stage_error, (error.stage, error.item, cause)
