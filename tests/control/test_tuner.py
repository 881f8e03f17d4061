"""The live tuner: cheap steps, closed turns, and a training run that is never disturbed."""

import io
import json
from dataclasses import replace

import pytest
import torch

from lightning_intune.control import DecisionLog, SimulatedBudget, SimulatedPipeline, Tuner, make_agent
from lightning_intune.control.budget import BudgetReading
from lightning_intune.control.tuner import steps_in_buffers
from lightning_intune.control.worlds import Ranges
from lightning_intune.errors import ConfigError
from lightning_intune.meters import FlowStats
from tests.control.played import Clock, FixedBudget, Flow, run, tuned

CALM = Ranges(shift_chance=0.0, noise=(0.02, 0.03))


def test_a_pipeline_with_a_slow_stage_ends_with_that_stage_wide():
    flow = Flow(Clock())
    decisions = run(tuned(flow), flow, 2000)
    # 50 ms of CPU per item on 8 cores: at most 160 a second, which takes 6.4 workers of the 40 ms stage.
    assert flow.targets[1] >= 6
    assert flow.targets[1] > 2 * flow.targets[0]
    assert decisions[-1].samples_per_s > 0.9 * 160
    assert decisions[-1].roofline_samples_per_s == pytest.approx(160, rel=0.02)


def test_the_meters_are_read_only_when_a_turn_needs_them():
    flow = Flow(Clock())
    tuner = tuned(flow)
    decisions = run(tuner, flow, 400)
    assert flow.num_reads <= 2 * len(decisions) + 2


def test_a_turn_is_closed_only_when_live_widths_are_the_asked_ones():
    flow = Flow(Clock())
    tuner = tuned(flow, warm_start={"read": 3, "decode": 4})
    flow.lag = 20
    for _ in range(20):
        flow.advance()
        assert tuner.step(flow.read) is None
    for decision in run(tuner, flow, 200):
        assert decision.widths["read"] >= 3


def test_what_lay_ready_in_a_shrunk_stage_is_no_rate_of_the_new_widths():
    flow = Flow(Clock())
    run(tuned(flow), flow, 30)
    stats = flow.read()
    first, second = stats.stages
    # 40 items in flight at width 20; of width 5 there is room for 10, and an item is half a batch.
    first = replace(first, num_in_flight=40, max_in_flight=40, live_workers=20, num_items=2 * stats.num_batches)
    window = replace(stats, stages=(first, second))
    assert steps_in_buffers(window, {"read": 5}) == 15
    assert steps_in_buffers(window, {}) == 0
    # A stage that grows fills its buffers first: from 0 to 32 items that are a batch each.
    empty = replace(second, num_in_flight=0, max_in_flight=2, live_workers=1, num_items=stats.num_batches)
    assert steps_in_buffers(replace(stats, stages=(first, empty)), {"decode": 16}) == 32


def test_a_pause_is_no_turn():
    flow = Flow(Clock())
    tuner = tuned(flow)
    run(tuner, flow, 3)
    tuner.pause()
    flow.clock.now += 1000.0
    assert tuner.step(flow.read) is None
    tuner.resume()
    decisions = run(tuner, flow, 100)
    assert all(decision.turn_s < 10 for decision in decisions)
    assert decisions[0].samples_per_s == pytest.approx(25, rel=0.1)


def test_a_budget_smaller_than_the_stages_still_leaves_one_worker_each():
    flow = Flow(Clock())

    class Tiny:
        def read(self):
            return BudgetReading(cpus=0.5, memory_bytes=10**8, memory_limit_bytes=10**8 + 1)

    tuner = Tuner(agent=make_agent("dqn"), knobs=flow.knobs, budget=Tiny(), clock=flow.clock)
    run(tuner, flow, 300)
    assert min(flow.targets) >= 1
    assert not tuner.has_failed


def test_decisions_are_plain_json(tmp_path):
    flow = Flow(Clock())
    log = DecisionLog(tmp_path / "logs" / "decisions.jsonl")
    decisions = run(tuned(flow, agent=make_agent("dqn")), flow, 900)
    for decision in decisions:
        log.write(decision)
    lines = (tmp_path / "logs" / "decisions.jsonl").read_text().splitlines()
    assert len(lines) == len(decisions) > 3
    record = json.loads(lines[-1])
    assert record["widths"].keys() == {"read", "decode"}
    assert record["stages"][0]["num_legal_moves"] >= 1


@pytest.mark.parametrize("name", ["dqn", "model"])
def test_a_resumed_tuner_knows_what_it_knew(name):
    flow = Flow(Clock())
    tuner = tuned(flow, agent=make_agent(name))
    run(tuner, flow, 600)
    file = io.BytesIO()
    torch.save(tuner.state_dict(), file)
    file.seek(0)
    fresh = Flow(Clock())
    resumed = tuned(fresh, agent=make_agent(name))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.widths == tuner.widths
    decisions = run(resumed, fresh, 600)
    assert decisions[0].widths == tuner.widths


def test_a_state_of_other_stages_gives_its_widths_where_they_fit():
    flow = Flow(Clock())
    tuner = tuned(flow)
    state = tuner.state_dict() | {"stages": ["read", "gone"], "widths": {"read": 5, "gone": 9}}
    tuner.load_state_dict(state)
    run(tuner, flow, 4)
    assert flow.targets[0] == 5


def test_a_warm_start_of_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match="names 'resize', but the stages are read, decode"):
        tuned(Flow(Clock()), warm_start={"resize": 2})


def test_a_warm_start_out_of_bounds_is_refused():
    with pytest.raises(ConfigError, match=r"asks 99 workers of 'read', whose bounds are \[1, 16\]"):
        tuned(Flow(Clock()), warm_start={"read": 99})


def test_an_unknown_objective_is_refused():
    with pytest.raises(ConfigError, match="'throughput' or 'no_stall'"):
        tuned(Flow(Clock()), objective="speed")


def test_with_auto_a_tuner_at_rest_makes_few_turns_and_a_slower_stage_wakes_it_at_once():
    flow = Flow(Clock())
    tuner = Tuner(
        agent=make_agent("model"), knobs=flow.knobs, budget=FixedBudget(), clock=flow.clock, turn_interval_s="auto"
    )
    calm = run(tuner, flow, 3000)
    resting = [decision for decision in calm if decision.why == "resting"]
    assert min(decision.turn_s for decision in resting[1:]) >= 2.0
    assert max(decision.turn_s for decision in calm[:3]) < 0.6
    flow.costs[1] = 0.160
    began_s, best = flow.clock.now, 8.0 / 0.170  # batches/s of 8 CPUs
    woken = run(tuner, flow, 600)
    recovered = next(turn for turn, decision in enumerate(woken) if decision.samples_per_s > 0.9 * best)
    assert recovered <= 4
    assert woken[recovered].time_s - began_s < 5.0


@pytest.mark.parametrize("name", ["dqn", "model", "static", "even", "greedy", "hill", "random", "plain_dqn"])
def test_every_agent_drives_the_tuner_within_bounds_and_memory(name):
    pipeline = SimulatedPipeline(seed=5, ranges=CALM)
    tuner = Tuner(agent=make_agent(name), knobs=pipeline.knobs, budget=SimulatedBudget(pipeline), clock=pipeline.clock)
    for _ in range(60):
        pipeline.advance()
        tuner.step(pipeline.read)
    assert not tuner.has_failed
    assert pipeline.fleet.violations.sum() == 0
    highs = pipeline.fleet.world.high[0]
    assert all(1 <= width <= high for width, high in zip(pipeline.targets, highs, strict=False))


def slow_trainer(flow, trainer_s):
    """The flow behind a trainer that takes `trainer_s` per batch."""
    advance, read = flow.advance, flow.read

    def step():
        before = flow.clock.now
        advance()
        flow.clock.now = max(flow.clock.now, before + trainer_s)

    def trainer_bound():
        stats = read()
        waited = max(0.0, stats.time_s - stats.num_batches * trainer_s)
        return FlowStats(**{name: getattr(stats, name) for name in stats.__dataclass_fields__} | {"wait_s": waited})

    flow.advance, flow.read = step, trainer_bound
    return flow


def test_no_stall_uses_no_more_workers_than_throughput_where_the_trainer_is_slow():
    used = {}
    for objective in ("throughput", "no_stall"):
        flow = slow_trainer(Flow(Clock()), trainer_s=0.012)
        decisions = run(tuned(flow, objective=objective), flow, 1500)
        used[objective] = sum(flow.targets)
        assert decisions[-1].wait_share < 0.05
    assert used["no_stall"] <= used["throughput"]


class GilFlow(Flow):
    """Two stages that a lock lets compute 0.95 s per second in all, until `read` is moved to processes."""

    def __init__(self, clock):
        super().__init__(clock)
        self.lane = "thread"

    @property
    def knobs(self):
        first, second = super().knobs
        return [replace(first, move=lambda place: setattr(self, "lane", place)), second]

    def advance(self):
        step_s = 0.05 if self.lane == "thread" else 0.02
        self.clock.now += step_s
        self.items += 1
        self.lives = list(self.targets)
        for at in range(2):
            cpu = 0.475 * step_s if self.lane == "thread" else 0.9 * step_s
            self.totals[at] += (self.lives[at] * step_s, 0.0, 0.0, cpu)

    def read(self):
        stats = super().read()
        first, second = stats.stages
        return replace(stats, stages=(replace(first, lane=self.lane), second))


def test_a_stage_found_waiting_for_the_gil_is_moved_once_and_it_is_on_record():
    flow = GilFlow(Clock())
    decisions = run(tuned(flow, warm_start={"read": 3, "decode": 3}), flow, 900)
    moves = [decision.lanes for decision in decisions if decision.lanes]
    assert moves == [{"read": "process"}]
    assert flow.lane == "process"
    assert json.loads(json.dumps(decisions[-1].as_dict()))["lanes"] == {}
