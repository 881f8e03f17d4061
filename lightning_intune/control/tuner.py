"""The live tuner: between training steps it reads the meters, lets the agent decide, and turns the knobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, final

import numpy as np

from lightning_intune.control.agent import Agent, Choice
from lightning_intune.control.budget import Budget, ReadsBudget
from lightning_intune.control.decision import Decision, stage_views, why_text
from lightning_intune.control.lane_trial import LaneTrial
from lightning_intune.control.neighbours import Neighbours
from lightning_intune.control.noise import NoiseMeter
from lightning_intune.control.reading import live_reading
from lightning_intune.control.reward import Objective, RewardSettings, moved_share, no_stall_reward, reward
from lightning_intune.control.shared_budget import SharedBudget, demand_of
from lightning_intune.control.turn import Phase, TurnTimer
from lightning_intune.errors import ConfigError
from lightning_intune.knobs import Knob
from lightning_intune.meters import FlowStats

_log = logging.getLogger("lightning_intune")

Read = Callable[[], FlowStats]

_MIN_FLUSH = 3
"""Training steps after a resize that belong to the widths before it, at least."""
_LITTLE_WAIT = 0.03
"""A share of the time that training waits below which there is no hurry."""


@final
class Tuner:
    """Call `step` once per training step, from the training thread; it never raises and rarely does anything.

    A turn is closed only when the live widths equal the asked ones. An agent or meter that fails is logged
    once; from then on the widths stay as they are and training goes on. Raises ConfigError at construction
    for an unknown stage in `warm_start`, a width out of bounds, or an unknown objective.
    """

    def __init__(
        self,
        *,
        agent: Agent,
        knobs: Sequence[Knob],
        budget: ReadsBudget | None = None,
        objective: Objective = "throughput",
        turn_interval_s: float | Literal["auto"] = 0.5,
        clock: Callable[[], float] = time.monotonic,
        rng: np.random.Generator | None = None,
        warm_start: Mapping[str, int] | None = None,
    ) -> None:
        if objective not in ("throughput", "no_stall"):
            raise ConfigError(f"tuner: objective={objective!r} is unknown. Give 'throughput' or 'no_stall'.")
        self._agent, self._knobs, self._budget = agent, tuple(knobs), budget or Budget()
        self._objective: Objective = objective
        self._clock = clock
        self._timer = TurnTimer(turn_interval_s)
        self._noise = NoiseMeter()
        self._start: FlowStats | None = None
        self._neighbours = Neighbours()
        self._lanes = LaneTrial()
        self._turn, self._scale, self._wait_share = 0, 0.0, 1.0
        self._is_paused, self.has_failed = False, False
        self._wanted = _checked(self._knobs, warm_start or {})
        agent.is_frugal = objective == "no_stall"
        if rng is not None:
            agent.rng = rng

    def step(self, read: Read) -> Decision | None:
        """One training step has ended; `read` gives cumulative meters and is only called when a turn needs them."""
        if self._is_paused or self.has_failed or not self._knobs:
            return None
        now_s = self._clock()
        phase = self._timer.tick(now_s)
        if phase is Phase.MEASURING or phase is Phase.SETTLING:
            return None
        try:
            return self._close(read, now_s) if phase is Phase.DUE else self._open(read, now_s)
        except Exception:  # noqa: BLE001
            # Training must outlive its tuner: whatever went wrong, the widths stay and nobody is disturbed again.
            self.has_failed = True
            _log.exception("tuner: turn %d failed; the widths stay as they are and training goes on", self._turn)
            return None

    def pause(self) -> None:
        """Training stands still (validation, checkpoint, compilation): the turn under way does not count."""
        self._is_paused = True

    def resume(self) -> None:
        """Training goes on; a new turn starts once the buffers that filled meanwhile have been used up."""
        self._is_paused = False
        self._start = None
        self._timer.restart(None, flush_steps=4)

    def spent(self, cost_s: float) -> None:
        """The turn just closed took that many seconds of the training thread, whoever wrote it down included."""
        self._timer.spent(cost_s, waits=self._wait_share >= _LITTLE_WAIT)

    @property
    def widths(self) -> dict[str, int]:
        """The best known width of each stage; the asked ones while nothing is known."""
        knowledge = self._agent.knowledge
        if knowledge is not None and knowledge.last_widths.shape[0] == 1 and bool(knowledge.best.visits.any()):
            best, _, _ = knowledge.best.best(np.array([self._noise.noise]))
            return {knob.stage: int(width) for knob, width in zip(self._knobs, best[0], strict=True)}
        return {knob.stage: knob.target() for knob in self._knobs}

    def _open(self, read: Read, now_s: float) -> None:
        if self._wanted:
            self._ask(self._wanted, now_s)
            self._wanted = {}
            return
        is_live = all(knob.live() == knob.target() for knob in self._knobs)
        if not is_live and not self._timer.settle_timed_out(now_s):
            return
        self._start = read()
        if self._turn == 0:
            self._neighbours.observe(self._start, self._budget.read())
        self._timer.measure(now_s)

    def _close(self, read: Read, now_s: float) -> Decision:
        end = read()
        window = end.since(self._start or end)
        self._noise.observe(window.samples_per_s, tuple(knob.live() for knob in self._knobs))
        noise = max(self._noise.noise, min(0.2, 0.5 * self._timer.error()))
        budget = self._budget.read()
        others = self._neighbours.observe(end, budget)
        if isinstance(self._budget, SharedBudget):
            window = self._budget.own(window)
        reading = live_reading(window, self._knobs, budget, noise, others)
        if isinstance(self._budget, SharedBudget) and bool(reading.is_valid[0]):
            self._budget.tell(demand_of(reading, window))
        choice = self._agent.decide(reading)
        lanes = self._lanes.turn(window, self._knobs, budget.cpus)
        unknown = {*lanes, self._lanes.settling} - {None}
        if unknown:  # what was known of these stages no longer holds; while processes start, nothing new does
            moved = np.array([[knob.stage in unknown for knob in self._knobs]])
            self._agent.forget(moved)
            targets = np.array([[float(knob.target()) for knob in self._knobs]])
            choice = replace(choice, widths=np.where(moved, targets, choice.widths))
        decision = self._record(now_s, window, choice, lanes)
        self._wait_share = decision.wait_share
        asked = decision.asked
        changes = {knob.stage: asked[knob.stage] for knob in self._knobs if asked[knob.stage] != knob.target()}
        self._turn += 1
        if changes or lanes:
            self._start = None
            self._ask(changes, now_s, flush_steps=_MIN_FLUSH + steps_in_buffers(window, changes))
        else:
            self._start = end
            self._timer.measure(now_s, rests=decision.why == "resting")
        return decision

    def _ask(self, widths: Mapping[str, int], now_s: float, flush_steps: int = _MIN_FLUSH) -> None:
        for knob in self._knobs:
            if knob.stage in widths:
                knob.turn(knob.bounds.clip(widths[knob.stage]))
        self._timer.restart(now_s, flush_steps=flush_steps)

    def _record(self, now_s: float, window: FlowStats, choice: Choice, lanes: dict[str, str]) -> Decision:
        situation = choice.situation
        reading = situation.reading
        roofline = float(situation.proposal.roofline_samples_per_s[0])
        roofline = roofline if np.isfinite(roofline) and roofline < 1e11 else 0.0
        if self._scale <= 0 or bool(situation.has_shifted[0]):
            self._scale = roofline or window.samples_per_s
        names = [knob.stage for knob in self._knobs]
        return Decision(
            turn=self._turn,
            time_s=now_s,
            turn_s=window.time_s,
            widths={name: int(width) for name, width in zip(names, reading.width[0], strict=True)},
            asked={name: int(width) for name, width in zip(names, choice.widths[0], strict=True)},
            samples_per_s=float(reading.samples_per_s[0]),
            roofline_samples_per_s=roofline,
            roofline_share=float(reading.samples_per_s[0]) / roofline if roofline > 0 else 0.0,
            wait_share=float(reading.wait_share[0]),
            reward=self._reward(choice),
            why=why_text(choice),
            shifted=bool(situation.has_shifted[0]),
            cpus=float(reading.cpus[0]),
            cpu_used=float(reading.cpu_used[0]),
            memory_bytes=int(reading.memory_bytes[0]),
            memory_limit_bytes=int(min(reading.memory_limit_bytes[0], 2.0**62)),
            stages=stage_views(names, choice),
            lanes=lanes,
        )

    def _reward(self, choice: Choice) -> float:
        reading, settings = choice.situation.reading, RewardSettings()
        if self._objective == "no_stall":
            return float(no_stall_reward(reading.wait_share, reading.width.sum(1), reading.cpus, settings)[0])
        share = reading.memory_bytes / reading.memory_limit_bytes
        last = choice.situation.last_widths
        moved = moved_share(np.where(last > 0, last, reading.width), reading.width)
        lost = choice.situation.lost
        return float(reward(reading.samples_per_s, np.array([self._scale]), share, moved, settings, lost)[0])

    def state_dict(self) -> dict[str, Any]:
        """Widths, knowledge and weights as plain numbers and tensors."""
        from lightning_intune.control.state import agent_state

        return {"turn": self._turn, "scale": self._scale, "widths": self.widths, "agent": agent_state(self._agent),
                "noise": self._noise.state_dict(), "stages": [knob.stage for knob in self._knobs]}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. Of other stages, or of an older version, only the widths that fit are taken."""
        from lightning_intune.control.state import load_agent_state

        known = {knob.stage: knob for knob in self._knobs}
        widths = {name: known[name].bounds.clip(int(width)) for name, width in state["widths"].items() if name in known}
        self._wanted = widths
        self._turn, self._scale = int(state["turn"]), float(state["scale"])
        if list(state["stages"]) == list(known):
            load_agent_state(self._agent, state["agent"])
            self._noise.load_state_dict(state["noise"])


def steps_in_buffers(window: FlowStats, changes: Mapping[str, int]) -> int:
    """Training steps by which the stages' buffers will fill or drain when `changes` come true, by stage.

    Until they are over the rate is not that of the new widths: a shrunk stage delivers what lay ready, and
    would be remembered as fast. `window` is of the turn before the change.
    """
    steps = 0.0
    for stage in window.stages:
        if stage.name in changes and stage.num_items > 0:
            room = stage.max_in_flight * changes[stage.name] / max(1, stage.live_workers)
            steps += abs(room - stage.num_in_flight) * window.num_batches / stage.num_items
    return int(min(steps, 1e6))


def _checked(knobs: Sequence[Knob], widths: Mapping[str, int]) -> dict[str, int]:
    known = {knob.stage: knob.bounds for knob in knobs}
    if len(known) != len(knobs):
        raise ConfigError("tuner: two knobs turn a stage of one name. Give every stage a name of its own.")
    for name, width in widths.items():
        bounds = known.get(name)
        if bounds is None:
            raise ConfigError(
                f"tuner: warm_start names '{name}', but the stages are {', '.join(known)}. Use those names."
            )
        if bounds.clip(width) != width:
            raise ConfigError(
                f"tuner: warm_start asks {width} workers of '{name}', whose bounds are "
                f"[{bounds.low}, {bounds.high}]. Give a width within them, or widen the stage's bounds."
            )
    return dict(widths)
