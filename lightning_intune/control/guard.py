"""The safety layer every agent runs behind: memory as a hard limit, harm taken back, rest when nothing is to gain."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, Ints
from lightning_intune.control.knowledge import Situation
from lightning_intune.control.reading import Reading


class Why(IntEnum):
    """Why the widths asked for are what they are."""

    MOVED = 0
    HELD = 1
    REVERTED = 2
    RESTING = 3
    TABOO = 4
    MEMORY = 5
    BLIND = 6
    EXPLORED = 7
    FEWER = 8


@final
@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """When a move counts as harm, and when there is no more to gain. Shares are of the rate."""

    harm: float = 0.03
    harm_sigmas: float = 1.6
    rest_after: int = 3
    """Turns at the best known widths after which the pipeline rests."""
    most_reverts: int = 2
    """Moves taken back since the last shift after which it rests at the best known widths."""
    patience: int = 9
    """Turns since the last shift after which it does so in any case."""
    fewer_soon: tuple[int, int] = (3, 8)
    """Of the first turns, those in which a crowded pipeline may have its trial with fewer workers."""
    fewer_use: float = 0.85
    """Share of the CPUs in use, at least, in a crowded pipeline."""
    fewer_crowd: float = 0.45
    """Threads that compute, over the CPUs, more than with fewer workers, in a crowded pipeline."""
    fewer_after: int = 2
    """Turns at the best known widths after which fewer workers are tried, where some only waited for a core."""
    fewer_again: float = 24.0
    """Turns until they are tried again, twice as many after each trial, for one noisy turn decides nothing; and turns
    after which a pipeline that became crowded later is tried."""
    fewer_delay: float = 0.3
    """Share of the workers' busy time that was waiting for a core, at least: waiting for storage is none of it."""
    fewer_gain: float = 0.1
    """What the model must foretell for them over the present rate, which is without waiting for cores."""
    full: float = 0.01
    """Gain that may be foretold where a pipeline counts as full."""
    full_idle: float = 0.06
    """Share of the CPUs that may then be idle, or taken by others for a moment: what is free is known that well."""
    full_heavy: float = 0.2
    """Growth, as a share of the memory in use, from which on the last percents of the CPUs are not worth it."""
    full_heavy_idle: tuple[float, float] = (0.1, 0.3)
    """What those are: with one CPU, and the power of the CPUs by which it falls. As the model's `cpu_gap`."""


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The widths that are really asked for [B, N] and why [B] (a `Why`)."""

    widths: Floats
    why: Ints


@final
class Guard:
    """Turns what an agent wants into what is asked of the pipeline. One thread's."""

    def __init__(self, num_pipelines: int, settings: GuardSettings | None = None) -> None:
        self.settings = settings or GuardSettings()
        self.quiet_turns = np.zeros(num_pipelines)
        self.num_reverts = np.zeros(num_pipelines)
        self.fewer_wait = np.zeros(num_pipelines)
        self.fewer_turns = np.zeros(num_pipelines)
        self.age = np.zeros(num_pipelines)

    def restart(self, rows: Bools) -> None:
        """Fresh pipelines in the chosen rows."""
        self.quiet_turns[rows] = 0.0
        self.num_reverts[rows] = 0.0
        self.fewer_wait[rows] = self.fewer_turns[rows] = self.age[rows] = 0.0

    def judge(
        self, situation: Situation, wanted: Floats, known: tuple[Floats, Floats], is_sure: Bools | None = None
    ) -> Verdict:
        """`known`: (rate, visits) [..., B] of what was measured that bears on `wanted`; `is_sure` [B] as in `Wish`."""
        reading = situation.reading
        wanted = reading.legal(np.round(wanted))
        why = np.where((wanted == reading.width).all(1), int(Why.HELD), int(Why.MOVED))
        wanted, why = self._avoid_harm(situation, wanted, why, known)
        wanted, why = self._rest(situation, wanted, why, is_sure)
        wanted, why = self._hold_full(situation, wanted, why)
        wanted, why = self._try_fewer(situation, wanted, why)
        blind = ~reading.is_valid
        wanted = np.where(blind[:, None], np.where(reading.is_stage, reading.width, 0.0), wanted)
        why = np.where(blind, int(Why.BLIND), why)
        # What does not fit gives way to the proposal, which spreads the memory over all stages.
        fitted = fit_memory(reading, wanted)
        too_much = (fitted != wanted).any(1)
        if too_much.any():
            fitted = fit_memory(reading, np.where((too_much & ~blind)[:, None], situation.proposal.widths, wanted))
            why = np.where(too_much, int(Why.MEMORY), why)
        return Verdict(widths=fitted, why=why)

    def _avoid_harm(
        self, situation: Situation, wanted: Floats, why: Ints, known: tuple[Floats, Floats]
    ) -> tuple[Floats, Ints]:
        reading, settings = situation.reading, self.settings
        best = situation.best_widths

        def is_worse(rate: Floats, visits: Floats) -> Bools:
            doubt = settings.harm_sigmas * reading.noise * np.sqrt(0.5 + 1.0 / np.maximum(visits, TINY))
            bar = situation.best_rate * (1.0 - np.maximum(settings.harm, doubt))
            return (visits > 0) & (rate < bar)

        away = (reading.width != best).any(1)
        reverts = is_worse(situation.rate, situation.visits) & away
        taboo = np.atleast_2d(is_worse(*known)).any(0) & ~reverts
        wanted = np.where((reverts | taboo)[:, None], best, wanted)
        return wanted, np.where(reverts, int(Why.REVERTED), np.where(taboo, int(Why.TABOO), why))

    def _rest(self, situation: Situation, wanted: Floats, why: Ints, is_sure: Bools | None) -> tuple[Floats, Ints]:
        reading = situation.reading
        held = (reading.width == situation.last_widths).all(1)
        at_best = (reading.width == situation.best_widths).all(1)
        self.quiet_turns = np.where(situation.has_shifted | ~(held & at_best), 0.0, self.quiet_turns + 1.0)
        # A gain that the model is sure of ends the rest.
        sure = np.maximum(0.05, 2.0 * reading.noise / np.sqrt(np.maximum(situation.visits, 1.0)))
        promising = situation.predicted_proposal > situation.rate * (1.0 + sure)
        if is_sure is not None:  # so does one that the policy is sure of, be it that it stays where it is
            promising |= is_sure & (why <= int(Why.HELD))
        settings = self.settings
        self.num_reverts = np.where(situation.has_shifted, 0.0, self.num_reverts + (why == int(Why.REVERTED)))
        # Who goes on trying among settings that noise cannot tell apart ends on a random one of them.
        tired = (self.num_reverts >= settings.most_reverts) | (situation.turns >= settings.patience)
        rests = ((self.quiet_turns >= settings.rest_after) | tired) & ~promising
        wanted = np.where(rests[:, None], situation.best_widths, wanted)
        return wanted, np.where(rests, int(Why.RESTING), why)

    def _hold_full(self, situation: Situation, wanted: Floats, why: Ints) -> tuple[Floats, Ints]:
        # All CPUs are busy, and the model foretells no gain either: more threads only crowd it. What goes back to
        # widths that were measured to be better is not held.
        reading, settings = situation.reading, self.settings
        is_full = reading.cpu_used >= (1.0 - settings.full_idle) * reading.free_cpus
        is_full &= situation.predicted_proposal < situation.rate * (1.0 + settings.full)
        is_full |= self._is_heavy(situation, wanted)
        holds = is_full & (why == int(Why.MOVED)) & ((wanted - reading.width).sum(1) > 0)
        wanted = np.where(holds[:, None], reading.width, wanted)
        return wanted, np.where(holds, int(Why.HELD), why)

    def _is_heavy(self, situation: Situation, wanted: Floats) -> Bools:
        # Nearly full by this turn or by all at these widths, nothing foretold over what the model expects of them
        # already, and much memory to pay: twice the workers for the last percents, which crowding mostly eats up.
        reading, settings = situation.reading, self.settings
        at_one, power = settings.full_heavy_idle
        used = 1.0 - np.maximum(settings.full_idle, at_one * reading.free_cpus**-power)
        is_full = reading.cpu_used >= used * reading.free_cpus
        is_full |= situation.rate >= used * situation.proposal.roofline_samples_per_s
        expected = np.maximum(situation.rate, situation.predicted)
        is_full &= situation.predicted_proposal < expected * (1.0 + settings.full)
        growth = ((wanted - reading.width) * reading.room_bytes).sum(1)
        return is_full & (growth > settings.full_heavy * reading.memory_bytes)

    def _try_fewer(self, situation: Situation, wanted: Floats, why: Ints) -> tuple[Floats, Ints]:
        # Threads that mostly wait for a core slow the others down by more than any model of ours foretells: `Trial`.
        # Once soon after the start, where they are many, as all later decisions gain by what it tells; then at rest.
        reading, settings = situation.reading, self.settings
        # What was lost before a shift counts no more, but a shift is often the outcome of a trial: not at once.
        most = np.where(situation.has_shifted, settings.fewer_again, np.inf)
        self.fewer_wait, self.fewer_turns = np.minimum(self.fewer_wait - 1.0, most), np.minimum(self.fewer_turns, most)
        self.age = self.age + reading.is_valid
        is_less = (situation.fewer != reading.width).any(1)
        is_full = reading.cpu_used >= settings.fewer_use * reading.free_cpus
        is_crowded = is_full & (situation.crowd - situation.fewer_crowd > settings.fewer_crowd)
        first, last = settings.fewer_soon
        is_soon = is_crowded & reading.is_valid & (self.age >= first) & (self.age < last) & (self.fewer_turns == 0)
        is_soon &= (why != int(Why.REVERTED)) & (why != int(Why.TABOO))
        is_late = reading.run_delay.sum(1) > settings.fewer_delay * reading.busy.sum(1)
        is_late &= situation.predicted_fewer > situation.rate * (1.0 + settings.fewer_gain)
        is_late |= is_crowded & (self.age > settings.fewer_again)
        stays = (wanted == reading.width).all(1) & (reading.width == situation.best_widths).all(1)
        stays &= self.quiet_turns >= settings.fewer_after
        tries = is_less & (is_soon | (stays & is_late)) & (self.fewer_wait <= 0)
        self.fewer_turns = np.where(tries, np.maximum(settings.fewer_again, 2.0 * self.fewer_turns), self.fewer_turns)
        self.fewer_wait = np.where(tries, self.fewer_turns, self.fewer_wait)
        return np.where(tries[:, None], situation.fewer, wanted), np.where(tries, int(Why.FEWER), why)


def fit_memory(reading: Reading, wanted: Floats) -> Floats:
    """`wanted`, with growth given up where full buffers would exceed the memory limit; shrunk where they do now.

    Growth needs `room_error` to spare; widths that are live already need none, or noise would shake them. The
    stage holding the most bytes above its live width gives up half of its growth at a time; a pipeline
    that is over its limit as it is takes workers from its greatest holder.
    """
    room = reading.room_bytes
    budget, tight = reading.buffer_budget_bytes(reading.room_error), reading.buffer_budget_bytes(0.0)
    widths = wanted.copy()
    rows = np.arange(len(widths))
    for _ in range(10 * reading.num_stages):
        grows = (widths > reading.width).any(1)
        over = (widths * room).sum(1) > np.where(grows, budget, tight)
        over &= np.isfinite(budget)
        growth = np.where(widths > reading.width, (widths - reading.width) * room, 1e-9 * widths * room)
        worst = np.where(widths > reading.low, growth, 0.0)
        at = worst.argmax(1)
        over &= worst[rows, at] > 0
        if not bool(over.any()):
            break
        now, live = widths[rows, at], reading.width[rows, at]
        smaller = np.where(now > live, np.floor(0.5 * (now + live)), now - 1.0)
        widths[rows, at] = np.where(over, np.maximum(smaller, reading.low[rows, at]), now)
    return widths
