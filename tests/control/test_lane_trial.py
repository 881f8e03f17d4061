"""When a stage of `method="auto"` is moved to processes, and when it is moved back."""

import pytest

from lightning_intune.control.lane_trial import LaneTrial
from lightning_intune.errors import ConfigError
from lightning_intune.knobs import Bounds, Knob
from lightning_intune.meters import FlowStats, StageStats


class Stage:
    """A knob that says where it was moved."""

    def __init__(self, name="parse", *, can_cross=True):
        self.name, self.lane, self.can_cross, self.width = name, "thread", can_cross, 3

    def move(self, place):
        if not self.can_cross:
            raise ConfigError("it does not pickle")
        self.lane = place

    @property
    def knob(self):
        return Knob(
            stage=self.name,
            bounds=Bounds(low=1, high=8),
            target=lambda: self.width,
            live=lambda: self.width,
            turn=lambda width: setattr(self, "width", width),
            move=self.move,
        )


def window(rate, *, lane="thread", busy=3.0, cpu=0.95, delay=0.0, wait=0.6, live=3):
    """One second: three busy workers that together compute for 0.95 s, which is what the GIL looks like."""
    stage = StageStats(
        name="parse", lane=lane, num_items=100, busy_s=busy, starved_s=0.0, blocked_s=0.0, cpu_s=cpu,
        run_delay_s=delay, target_workers=live, live_workers=live, min_workers=1, max_workers=8, num_in_flight=3,
        max_in_flight=6, num_ready=0, bytes_ready=0, item_bytes=1e3,
    )  # fmt: skip
    process_s = cpu + 0.05 if lane == "thread" else 0.1
    return FlowStats(
        time_s=1.0, num_batches=int(rate), num_samples=int(rate), wait_s=wait, process_cpu_s=process_s, stages=(stage,)
    )


def play(trial, stage, windows, cpus=4.0):
    return [trial.turn(each, [stage.knob], cpus) for each in windows]


def test_a_stage_that_waits_for_the_gil_is_moved_in_the_third_turn_and_stays_where_it_is_faster():
    stage, trial = Stage(), LaneTrial()
    assert play(trial, stage, [window(100)] * 3) == [{}, {}, {"parse": "process"}]
    assert play(trial, stage, [window(200, lane="process")] * 8) == [{}] * 8
    assert stage.lane == "process"


def test_a_move_that_brought_nothing_is_taken_back_once_and_for_all():
    stage, trial = Stage(), LaneTrial()
    play(trial, stage, [window(100)] * 3)
    # Two turns while processes start, three that count.
    moved = play(trial, stage, [window(90, lane="process")] * 5)
    assert moved == [{}, {}, {}, {}, {"parse": "thread"}]
    assert play(trial, stage, [window(100)] * 10) == [{}] * 10
    assert stage.lane == "thread"


@pytest.mark.parametrize(
    "other",
    [
        {"wait": 0.02},  # the trainer does not wait
        {"cpu": 2.9},  # it computes in parallel
        {"cpu": 0.2},  # it waits for a disk
        {"delay": 1.9},  # it waits for a core
        {"busy": 1.0},  # nobody waits for anything
    ],
)
def test_other_reasons_to_be_slow_move_nothing(other):
    stage, trial = Stage(), LaneTrial()
    assert play(trial, stage, [window(100, **other)] * 6) == [{}] * 6


def test_without_idle_cpus_nothing_is_moved():
    stage, trial = Stage(), LaneTrial()
    assert play(trial, stage, [window(100)] * 6, cpus=1.2) == [{}] * 6


def test_a_function_that_cannot_cross_is_asked_once():
    stage, trial = Stage(can_cross=False), LaneTrial()
    assert play(trial, stage, [window(100)] * 12) == [{}] * 12
    assert stage.lane == "thread"


def test_a_stage_gets_a_process_for_each_cpu_and_its_threads_back_when_it_returns():
    stage, trial = Stage(), LaneTrial()
    stage.width = 8
    play(trial, stage, [window(100)] * 3, cpus=2.5)
    assert (stage.lane, stage.width) == ("process", 3)
    stage.width = 2  # by the tuner, meanwhile
    play(trial, stage, [window(90, lane="process")] * 5, cpus=2.5)
    assert (stage.lane, stage.width) == ("thread", 8)


def test_while_its_processes_start_a_stage_is_settling_and_then_is_judged():
    stage, trial = Stage(), LaneTrial()
    seen = []
    for each in [window(100)] * 3 + [window(10, lane="process")] * 2 + [window(150, lane="process")] * 3:
        play(trial, stage, [each])
        seen.append(trial.settling)
    assert seen == [None, None, "parse", "parse", "parse", None, None, None]


def test_a_function_that_cannot_cross_keeps_its_threads():
    stage, trial = Stage(can_cross=False), LaneTrial()
    stage.width = 8
    play(trial, stage, [window(100)] * 4, cpus=2.0)
    assert stage.width == 8


def test_a_single_thread_tried_again_in_between_is_no_evidence_against_the_lock():
    stage, trial = Stage(), LaneTrial()
    alone = window(100, live=1, busy=0.97)
    assert play(trial, stage, [window(100), alone, window(100), alone, alone, window(100)])[-1] == {"parse": "process"}


def test_a_turn_in_which_threads_worked_side_by_side_is():
    stage, trial = Stage(), LaneTrial()
    parallel = window(200, cpu=2.8)
    assert play(trial, stage, [window(100), parallel, window(100), parallel, window(100), parallel] * 2) == [{}] * 12


def test_a_turn_without_samples_says_nothing():
    stage, trial = Stage(), LaneTrial()
    assert play(trial, stage, [window(100), window(100), window(0), window(100)])[2:] == [{}, {"parse": "process"}]
