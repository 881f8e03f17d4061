"""What follows from the ranks' reports on one window: worked out by every rank for itself, and the same on all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from lightning_intune.flow.rank_share import NOTHING_TO_COPY, Report

Mode = Literal["drop", "pad"]


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How many steps the window has, whether the epoch ends with it, and the error that ends it, if one does."""

    num_steps: int
    is_last: bool
    failed_rank: int | None = None
    """Whose own error it is, where there is one."""
    failure: str | None = None


def verdict(reports: Sequence[Report], *, size: int, mode: Mode, left: int | None) -> Verdict:
    """The verdict on a window of up to `size` items per rank, of an epoch that has `left` steps left, if that is known.

    >>> def report(n): return Report(num_items=n, can_pad=True, error=None, restart={})
    >>> verdict([report(4), report(3)], size=4, mode="drop", left=None)
    Verdict(num_steps=3, is_last=True, failed_rank=None, failure=None)
    >>> verdict([report(4), report(0)], size=4, mode="pad", left=9).num_steps
    4
    """
    counts = [report.num_items for report in reports]
    num_steps = min(counts) if mode == "drop" else max(counts)
    failed = [rank for rank, report in enumerate(reports) if report.error is not None]
    if failed:
        bounds = [counts[rank] for rank in failed] + ([] if left is None else [left])
        num_steps = min(num_steps, *bounds)
        text = (
            f"EqualSteps: rank {failed[0]} failed with {reports[failed[0]].error}, and no rank can go on without "
            "it. See that rank's own traceback."
        )
        return _checked(reports, mode, Verdict(num_steps=num_steps, is_last=True, failed_rank=failed[0], failure=text))
    if left is None:
        return _checked(reports, mode, Verdict(num_steps=num_steps, is_last=num_steps < size))
    if mode == "pad" and num_steps > left:
        text = unkept(counts.index(num_steps), "has more items than its num_items")
        return Verdict(num_steps=left, is_last=True, failure=text)
    if mode == "drop" and num_steps < min(size, left):
        text = unkept(counts.index(num_steps), "has ended before its num_items")
        return Verdict(num_steps=num_steps, is_last=True, failure=text)
    num_steps = min(size, left)
    return _checked(reports, mode, Verdict(num_steps=num_steps, is_last=num_steps == left))


def _checked(reports: Sequence[Report], mode: Mode, found: Verdict) -> Verdict:
    """`found`, unless it asks for copies of an item from a rank that never had one."""
    bare = [rank for rank, report in enumerate(reports) if not report.can_pad]
    if mode == "drop" or found.num_steps == 0 or not bare:
        return found
    return Verdict(num_steps=0, is_last=True, failure=NOTHING_TO_COPY.format(rank=bare[0]))


def unkept(rank: int, what: str) -> str:
    """The error's text for a source that does not give what was told of it."""
    return (
        f"EqualSteps: rank {rank} {what}, so that the length told beforehand is wrong. Give a num_items that the "
        "source surely reaches (mode='drop') or never exceeds (mode='pad'), or leave it out."
    )
