"""Pipelines as Gymnasium environments: the simulated and the live one share class, spaces and rewards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, SupportsFloat, final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lightning_intune.control.action import MOVES, MoveSet
from lightning_intune.control.arrays import Bools, Floats
from lightning_intune.control.budget import Budget, ReadsBudget
from lightning_intune.control.guard import fit_memory
from lightning_intune.control.knowledge import Knowledge, Situation
from lightning_intune.control.noise import NoiseMeter
from lightning_intune.control.observation import GLOBAL_FEATURES, STAGE_FEATURES, observe
from lightning_intune.control.reading import live_reading
from lightning_intune.control.reward import RewardSettings, moved_share, reward
from lightning_intune.control.simulator import SimulatedBudget, SimulatedPipeline
from lightning_intune.control.worlds import FULL, Ranges
from lightning_intune.errors import ConfigError
from lightning_intune.knobs import Knob
from lightning_intune.meters import FlowStats

Seen = NDArray[np.float32]


class DrivesPipeline(Protocol):
    """What an environment needs of a pipeline. A live one: `advance` takes one batch from its loader."""

    @property
    def knobs(self) -> Sequence[Knob]:
        """Its handles."""
        ...

    def read(self) -> FlowStats:
        """Cumulative meters, stages in the order of `knobs`."""
        ...

    def advance(self) -> None:
        """Consume a batch, or play a simulated turn."""
        ...


class PipelineEnv(gymnasium.Env[Seen, NDArray[np.int64]]):
    """One turn per step. Action: one of `MOVES` per stage (padded to `max_stages`); an illegal one holds.

    Observation: stage features [max_stages x 25], whole features [37], real stages [max_stages] and the
    legal moves [max_stages x 9], flat. With `single=True` an action moves one stage only, Discrete, for
    learners without joint actions. Reward: rate over a fixed scale, less memory, moves and slower steps (`reward`).
    `info` has `share` of the oracle where there is one, `samples_per_s`, `widths` and `action_mask`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, *, max_stages: int, num_turns: int, single: bool) -> None:
        if max_stages < 1 or num_turns < 1:
            raise ConfigError(
                f"env: max_stages={max_stages}, num_turns={num_turns} leave nothing to do. Give 1 or more."
            )
        self._max_stages, self._num_turns, self._single = max_stages, num_turns, single
        size = max_stages * (len(STAGE_FEATURES) + 1 + len(MOVES)) + len(GLOBAL_FEATURES)
        self.observation_space = spaces.Box(-4.0, 4.0, (size,), dtype=np.float32)
        joint = spaces.MultiDiscrete([len(MOVES)] * max_stages)
        self.action_space = spaces.Discrete(1 + max_stages * (len(MOVES) - 1)) if single else joint  # type: ignore[assignment]
        self._moves = MoveSet()
        self.render_mode = None

    def _begin(self, seed: int) -> tuple[DrivesPipeline, ReadsBudget]:
        """Give a pipeline at the start of an episode."""
        raise NotImplementedError

    def _play(self, pipeline: DrivesPipeline) -> FlowStats:
        """Play one turn; its window of meters."""
        raise NotImplementedError

    def _share(self) -> float | None:
        """The true rate over the oracle's, where there is an oracle."""
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        """A new episode; equal seeds give equal simulated pipelines."""
        super().reset(seed=seed, options=options)
        self._pipeline, self._budget = self._begin(int(self.np_random.integers(2**31)))
        num = len(self._pipeline.knobs)
        if num > self._max_stages:
            raise ConfigError(f"env: the pipeline has {num} stages, max_stages is {self._max_stages}. Raise it.")
        self._knowledge, self._noise = Knowledge(1, num), NoiseMeter()
        self._turn, self._scale = 0, 0.0
        self._situation = self._look()
        return self._seen(), self._info()

    def step(self, action: NDArray[np.int64]) -> tuple[Seen, SupportsFloat, bool, bool, dict[str, Any]]:
        """One turn with the moves in `action`; never terminates, truncates after `num_turns`."""
        before = self._situation
        num = before.reading.num_stages
        widths = self._moves.widths(before)
        legal = self._moves.legal(before, widths)[0]
        joint = self._joint(action)[:num]
        joint = np.where(legal[np.arange(num), joint], joint, 0)
        asked = fit_memory(before.reading, widths[0, np.arange(num), joint][None, :])
        for knob, width in zip(self._pipeline.knobs, asked[0], strict=True):
            knob.turn(knob.bounds.clip(int(width)))
        self._turn += 1
        self._situation = self._look()
        paid = self._reward(before, self._situation)
        return self._seen(), paid, False, self._turn >= self._num_turns, self._info()

    def _joint(self, action: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._single:
            return np.asarray(action, dtype=np.int64)
        joint = np.zeros(self._max_stages, dtype=np.int64)
        if int(action) > 0:
            stage, move = divmod(int(action) - 1, len(MOVES) - 1)
            joint[stage] = move + 1
        return joint

    def _look(self) -> Situation:
        window = self._play(self._pipeline)
        knobs = tuple(self._pipeline.knobs)
        self._noise.observe(window.samples_per_s, tuple(knob.live() for knob in knobs))
        return self._knowledge.observe(live_reading(window, knobs, self._budget.read(), self._noise.noise))

    def _reward(self, before: Situation, now: Situation) -> float:
        if self._scale <= 0 or bool(now.has_shifted[0]):
            roofline = now.proposal.roofline_samples_per_s
            known = np.where(roofline < 1e11, roofline, now.reading.samples_per_s)
            self._scale = float(known[0])
        r = now.reading
        moved = moved_share(before.reading.width, r.width)
        share = r.memory_bytes / r.memory_limit_bytes
        return float(reward(r.samples_per_s, np.array([self._scale]), share, moved, RewardSettings(), now.lost)[0])

    def _mask(self) -> Bools:
        mask = np.zeros((self._max_stages, len(MOVES)), dtype=np.bool_)
        mask[:, 0] = True
        legal = self._moves.legal(self._situation, self._moves.widths(self._situation))[0]
        mask[: len(legal)] = legal
        return mask

    def _seen(self) -> Seen:
        seen = observe(self._situation)
        num = seen.stages.shape[1]
        stages = np.zeros((self._max_stages, len(STAGE_FEATURES)))
        stages[:num] = seen.stages[0]
        is_stage: Floats = (np.arange(self._max_stages) < num).astype(np.float64)
        parts = [stages.ravel(), seen.whole[0], is_stage, self._mask().ravel().astype(np.float64)]
        return np.concatenate(parts).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        r = self._situation.reading
        info: dict[str, Any] = {
            "samples_per_s": float(r.samples_per_s[0]),
            "widths": {k.stage: k.target() for k in self._pipeline.knobs},
            "action_mask": self._mask(),
        }
        share = self._share()
        return info if share is None else info | {"share": share}


@final
class SimulatedPipelineEnv(PipelineEnv):
    """`lightning_intune/SimulatedPipeline-v0`: a random simulated pipeline of `ranges` per episode, from width 1."""

    def __init__(
        self, ranges: Ranges = FULL, *, max_stages: int = 10, num_turns: int = 20, single: bool = False
    ) -> None:
        super().__init__(max_stages=max_stages, num_turns=num_turns, single=single)
        self._ranges = ranges

    def _begin(self, seed: int) -> tuple[DrivesPipeline, ReadsBudget]:
        self._simulated = SimulatedPipeline(seed, self._ranges)
        return self._simulated, SimulatedBudget(self._simulated)

    def _play(self, pipeline: DrivesPipeline) -> FlowStats:
        before = pipeline.read()
        pipeline.advance()
        return pipeline.read().since(before)

    def _share(self) -> float | None:
        return self._simulated.share


@final
class LivePipelineEnv(PipelineEnv):
    """`lightning_intune/LivePipeline-v0`: a running pipeline, the same spaces. Close the pipeline yourself.

    A turn takes `turn_s` seconds and at least 4 batches once the asked widths are live. `reset` sets all
    widths to their lower bounds, at least 1, and forgets what was learnt of the pipeline.
    """

    def __init__(
        self,
        pipeline: DrivesPipeline,
        *,
        budget: ReadsBudget | None = None,
        turn_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        max_stages: int = 10,
        num_turns: int = 20,
        single: bool = False,
    ) -> None:
        super().__init__(max_stages=max_stages, num_turns=num_turns, single=single)
        self._live, self._turn_s, self._clock = pipeline, turn_s, clock
        self._its_budget = budget or Budget()

    def _begin(self, seed: int) -> tuple[DrivesPipeline, ReadsBudget]:
        del seed  # a live pipeline has no seed
        for knob in self._live.knobs:
            knob.turn(max(1, knob.bounds.low))
        return self._live, self._its_budget

    def _play(self, pipeline: DrivesPipeline) -> FlowStats:
        started = self._clock()
        while any(knob.live() != knob.target() for knob in pipeline.knobs):
            pipeline.advance()
            if self._clock() - started > 4.0 * self._turn_s:
                break
        before, started, steps = pipeline.read(), self._clock(), 0
        while steps < 4 or self._clock() - started < self._turn_s:
            pipeline.advance()
            steps += 1
            if self._clock() - started > 8.0 * self._turn_s:
                break
        return pipeline.read().since(before)


def register_environments() -> None:
    """Make the two ids known to Gymnasium; harmless when repeated."""
    for name in ("SimulatedPipeline", "LivePipeline"):
        ident = f"lightning_intune/{name}-v0"
        if ident not in gymnasium.registry:
            gymnasium.register(id=ident, entry_point=f"lightning_intune.control.env:{name}Env")
