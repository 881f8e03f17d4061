"""The simulated contest: our agent, its rivals and its ablations on pipelines that no training has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import put
from lightning_intune.control import make_agent
from lightning_intune.control.agent import Agent
from lightning_intune.control.contest import Outcome, run_contest
from lightning_intune.control.fleet import Fleet
from lightning_intune.control.observation import STAGE_FEATURES
from lightning_intune.control.q_policy import MARGIN, QPolicy
from lightning_intune.control.qnet import HIDDEN, QNet, Weights, shuffled
from lightning_intune.control.weight_file import load_weights, shipped
from lightning_intune.control.world import Shift
from lightning_intune.control.worlds import CROWDED, FULL, HARD, Ranges

SEED = 202_611
"""Neither training nor validation, nor the tuning of constants, drew these pipelines."""
TURNS = 20
RIVALS = ("model", "plain_dqn", "greedy", "hill", "even", "static", "random")
OTHER_SEEDS = Path(__file__).parent / "weights"


def contest(quick: bool) -> dict[str, Any]:
    """The keys under `sim` and `ablations`."""
    num = 40 if quick else 500
    ours = _run(make_agent("dqn", learn=False, explore=0.0), num)
    sim: dict[str, Any] = {
        "num_pipelines": num,
        "turns": TURNS,
        "regret_mean": float(ours.regret.mean()),
        "regret_p95": float(np.percentile(ours.regret, 95)),
        "turns_to_95pct": float(ours.turns_to().mean()),
        "memory_violations": int(ours.violations.sum()),
        "full_world": _summary(_run(make_agent("dqn", learn=False, explore=0.0), num, FULL)),
        "baselines": {},
        "advantage_ci": {},
        "seeds": {},
    }
    seeds = {path.stem: _seeded(path, num) for path in _other_weights()}
    rivals: dict[str, Outcome] = {}
    for name in RIVALS:
        rival = rivals[name] = _run(_rival(name), num)
        sim["baselines"][name] = _summary(rival)
        sim["advantage_ci"][name] = paired_interval(rival.regret - ours.regret)
    for stem, outcome in seeds.items():
        intervals = {name: paired_interval(rival.regret - outcome.regret) for name, rival in rivals.items()}
        sim["seeds"][stem] = _summary(outcome) | {"advantage_ci": intervals}
    sim["repeated"] = repeated(num, repeats=2 if quick else 8)
    sim["crowded"] = crowded(num, repeats=1 if quick else 4)
    if not quick:
        sim["larger"] = repeated(2000, repeats=1, seed=SEED + 2)
    return {"sim": sim, "ablations": _ablations(num, quick) | {"none": _summary(ours)}}


def crowded(num: int, *, repeats: int) -> dict[str, Any]:
    """The same contest where threads beyond the CPUs cost more than in `HARD`: every agent, and our seeds repeated."""
    ours = _run(make_agent("dqn", learn=False, explore=0.0), num, CROWDED)
    rivals = {name: _run(_rival(name), num, CROWDED) for name in RIVALS}
    return {
        **_summary(ours),
        "baselines": {name: _summary(rival) for name, rival in rivals.items()},
        "advantage_ci": {name: paired_interval(rival.regret - ours.regret) for name, rival in rivals.items()},
        "repeated": repeated(num, repeats=repeats, ranges=CROWDED),
    }


def repeated(num: int, *, repeats: int, seed: int = SEED, ranges: Ranges = HARD) -> dict[str, Any]:
    """Our training seeds beside the model alone on `num` pipelines, each run `repeats` times with other noise.

    One run's luck with noise is most of what a single contest's interval is made of. A pipeline counts once, by the
    mean of its runs: the interval is over pipelines.
    """
    agents: dict[str, Callable[[], Agent]] = {"model": lambda: _rival("model")}
    agents["shipped"] = lambda: make_agent("dqn", learn=False, explore=0.0)
    for path in _other_weights():
        agents[path.stem] = lambda path=path: make_agent("dqn", weights=path, learn=False, explore=0.0)
    regrets = {
        name: np.stack([_run(make(), num, ranges, seed=seed, repeat=repeat).regret for repeat in range(repeats)])
        for name, make in agents.items()
    }
    found: dict[str, Any] = {"num_pipelines": num, "repeats": repeats}
    for name, regret in regrets.items():
        found[name] = {"regret_mean": float(regret.mean()), "regret_p95": float(np.percentile(regret, 95))}
        if name != "model":
            found[name]["advantage_ci"] = paired_interval((regrets["model"] - regret).mean(0))
    return found


def drift(quick: bool) -> dict[str, Any]:
    """Turns back to 95 % of the new best after a stage became 4 times slower, or half the CPUs went."""
    num = 40 if quick else 400
    out: dict[str, Any] = {}
    for name in ("slow_stage", "half_cpus"):
        rng = np.random.default_rng(SEED + 1)
        fleet = Fleet.draw(num, replace(HARD, shift_chance=0.0), rng)
        stage = (rng.random(num) * fleet.world.is_stage.sum(1)).astype(np.int64)
        chosen = np.arange(fleet.world.num_stages)[None, :] == stage[:, None]
        factor = np.where(chosen & (name == "slow_stage"), 4.0, 1.0)
        cpus = np.full(num, 0.5 if name == "half_cpus" else 1.0)
        shift = Shift(turn=np.full(num, 10.0), cpu_factor=factor, latency_factor=factor, cpus_factor=cpus)
        fleet = Fleet.of(fleet.world, rng, shift)
        agent, shares = make_agent("dqn", learn=False, explore=0.0), []
        for _ in range(24):
            fleet.step(agent.decide(fleet.read()).widths)
            shares.append(fleet.share)
        after = np.stack(shares[10:]) >= 0.95  # row 0: after the first turn that could know of the shift
        turns = np.where(after.any(0), after.argmax(0) + 1.0, 15.0)
        turns = np.where(np.stack(shares)[9] >= 0.95, 0.0, turns)
        out[f"sim_{name}"] = {
            "turns_to_95pct": float(turns.mean()),
            "turns_to_95pct_p95": float(np.percentile(turns, 95)),
        }
    return out


def paired_interval(difference: np.ndarray[Any, np.dtype[np.float64]], num_draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the mean difference, pipeline by pipeline."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(difference), (num_draws, len(difference)))
    means = difference[draws].mean(1)
    return [float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))]


def _run(agent: Agent, num: int, ranges: Ranges = HARD, *, seed: int = SEED, repeat: int = 0) -> Outcome:
    return run_contest(agent, ranges, num=num, turns=TURNS, seed=seed, repeat=repeat)


def _other_weights() -> list[Path]:
    return sorted(OTHER_SEEDS.glob("dqn-*.safetensors"))


def _rival(name: str) -> Agent:
    if name == "plain_dqn":
        return make_agent("plain_dqn", learn=False, explore=0.0)
    return make_agent(name)  # type: ignore[arg-type]


def _seeded(path: Path, num: int) -> Outcome:
    return _run(make_agent("dqn", weights=path, learn=False, explore=0.0), num)


def _summary(outcome: Outcome) -> dict[str, float]:
    back = outcome.turns_back()
    return {
        "regret_mean": float(outcome.regret.mean()),
        "regret_p95": float(np.percentile(outcome.regret, 95)),
        "turns_to_95pct": float(outcome.turns_to().mean()),
        "turns_back_mean": float(back.mean()),
        "turns_back_p95": float(np.percentile(back, 95)),
        "memory_violations": float(outcome.violations.sum()),
    }


def _ablations(num: int, quick: bool) -> dict[str, Any]:
    weights = load_weights(shipped("dqn"), 9)
    blind: Weights = {name: array.copy() for name, array in weights.items()}
    blind["advantage1.weight"][HIDDEN:] = 0.0  # the pooled context's share of the advantage head
    blind["joint1.weight"][: 4 * len(STAGE_FEATURES)] = 0.0  # and what joint moves know of the stages
    found: dict[str, Any] = {}
    for name, changed in (
        ("shuffled_weights", shuffled(weights, np.random.default_rng(0))),
        ("no_pooled_context", blind),
    ):
        agent = Agent(QPolicy(QNet(changed), margin=MARGIN), rng=np.random.default_rng(0))
        found[name] = _summary(_run(agent, num))
    found |= _learning(3 if quick else 60)
    return found


def _learning(num: int) -> dict[str, Any]:
    """Each pipeline alone, as live: with and without learning on it (40 turns, small exploration in both)."""
    found: dict[str, Any] = {}
    for name, learn in (("no_online_learning", False), ("online_learning", True)):
        regrets: list[float] = []
        for row in range(num):
            agent = make_agent("dqn", seed=row, learn=learn)
            fleet = Fleet.draw(1, HARD, np.random.default_rng([SEED, row]), max_stages=10)
            for _ in range(40):
                fleet.step(agent.decide(fleet.read()).widths)
            regrets.append(1.0 - float(fleet.share[0]))
        put(found, f"{name}_alone", regrets)
        found[name] = {"regret_mean": float(np.mean(regrets)), "num_pipelines": num}
        del found[f"{name}_alone"], found[f"{name}_alone_spread"]
    return found
