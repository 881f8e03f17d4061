"""An agent's state as tensors and numbers, which torch loads with `weights_only=True`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_intune.control.agent import Agent
from lightning_intune.control.guard import Guard
from lightning_intune.control.knowledge import Knowledge
from lightning_intune.control.online import OnlineLearning
from lightning_intune.control.q_policy import QPolicy
from lightning_intune.control.qnet import QNet

VERSION = 5
_MODEL = (
    "weight", "cpu_sum", "used_sum", "used_weight", "slope_sums", "queue_sums", "crowd_sums", "last_rate",
    "trainer_sum", "is_closed",
)  # fmt: skip
_GUARD = ("quiet_turns", "num_reverts", "fewer_wait", "fewer_turns", "age")
_BEST = ("widths", "rate", "visits")
_STEPS = ("least_s", "smooth_s")
_SHIFTS = ("suspicion", "reference", "doubt", "alarms", "last_cpus", "last_limit")
_KNOWN = (
    "turns",
    "last_widths",
    "last_rate",
    "room_bytes",
    "room_weight",
    "least_used_s",
    "others",
    "base_bytes",
    "trust",
)


def agent_state(agent: Agent) -> dict[str, Any]:
    """Knowledge and weights of `agent`."""
    import torch

    state: dict[str, Any] = {"version": VERSION, "name": agent.name}
    if agent.knowledge is not None and agent.guard is not None:
        arrays = _arrays(agent.knowledge, agent.guard)
        state["knowledge"] = {name: torch.tensor(array) for name, array in arrays.items()}
        state["shape"] = list(agent.knowledge.last_widths.shape)
    if isinstance(agent.policy, QPolicy):
        if isinstance(agent.policy.follower, OnlineLearning):
            state["learning"] = agent.policy.follower.state_dict()
        state["weights"] = {name: torch.tensor(array) for name, array in agent.policy.net.weights.items()}
    return state


def load_agent_state(agent: Agent, state: Mapping[str, Any]) -> None:
    """The counterpart of `agent_state`. A state of another version or agent changes nothing."""
    if state.get("version") != VERSION or state.get("name") != agent.name:
        return
    if "knowledge" in state:
        num_pipelines, num_stages = state["shape"]
        knowledge = agent.size(num_pipelines, num_stages)
        assert agent.guard is not None
        for name, array in _arrays(knowledge, agent.guard).items():
            array[...] = np.asarray(state["knowledge"][name])
        knowledge.model.refresh()
    if isinstance(agent.policy, QPolicy) and "weights" in state:
        if isinstance(agent.policy.follower, OnlineLearning):
            agent.policy.follower.load_state_dict(state.get("learning", {}))
        agent.policy.net = QNet({name: np.asarray(array, dtype=np.float32) for name, array in state["weights"].items()})


def _arrays(knowledge: Knowledge, guard: Guard) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    found = {f"model.{name}": getattr(knowledge.model, name) for name in _MODEL}
    found |= {f"best.{name}": getattr(knowledge.best, name) for name in _BEST}
    found |= {f"shifts.{name}": getattr(knowledge.shifts, name) for name in _SHIFTS}
    found |= {f"steps.{name}": getattr(knowledge.step_time, name) for name in _STEPS}
    found |= {f"guard.{name}": getattr(guard, name) for name in _GUARD}
    return found | {f"known.{name}": getattr(knowledge, name) for name in _KNOWN}
