"""host_ring, a process per rank: every tensor arrives, training equals gloo's, and a rank at fault is named on all."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_intune.errors import ConfigError
from lightning_intune.overlap import HostRingTransport, make_transport, staging
from tests.overlap.gloo_ranks import STAGES
from tests.started import told_by


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """One start of Python for all of the quick ones."""
    return told_by(
        "tests.overlap.ring_ranks",
        "swap:2",
        "tcp:3",
        "swap:4",
        "train:",
        "dies:marks",
        "dies:halfway",
        "fails:rest",
        "garbles:all",
    )


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("case", "num_ranks"), [("swap:2", 2), ("tcp:3", 3), ("swap:4", 4)])
def test_what_arrives_is_what_gloo_brings_in_any_dtype_and_size(
    told: dict[str, Any], case: str, num_ranks: int
) -> None:
    where = "from which it reaches localhost" if case == "tcp:3" else "no TCP store"
    for rank in range(num_ranks):
        out = told[f"{case}/{rank}"]
        assert out["differ"] == []
        assert out["left"] <= 0  # it closed both; gloo's, of a rank that has ended since, may have gone as well
        assert f"found {num_ranks} rank(s), " in out["describe"]
        assert f"rank {rank} at " in out["describe"]
        assert where in out["describe"]


@pytest.mark.timeout(200)
def test_training_over_the_ring_is_that_over_gloo_bit_for_bit(told: dict[str, Any]) -> None:
    for rank in range(2):
        out = told[f"train/{rank}"]
        losses, state = out["gloo True"]
        assert len(losses) == 12
        assert state
        assert all(one == [losses, state] for one in out.values())
        assert len(out) == 4


def check_named(told: dict[str, Any], case: str) -> None:
    for rank in (0, 2, 3):
        text, num_sockets, seconds = told[f"{case}/{rank}"]
        assert text.startswith("RuntimeError: overlap: rank"), (case, text)
        assert "What is known: rank 1 did not come" in text or "What is known: rank 1 had come, and has" in text, text
        assert num_sockets <= 0
        assert seconds < 60  # of which 6 are the timeout, and the rest a busy machine's


@pytest.mark.timeout(200)
@pytest.mark.parametrize("case", ["dies:marks", "dies:halfway", "fails:rest"])
def test_a_rank_that_dies_is_named_on_every_other_neighbour_or_not(told: dict[str, Any], case: str) -> None:
    check_named(told, case)


@pytest.mark.timeout(200)
def test_ranks_that_are_not_at_the_same_call_are_told_which(told: dict[str, Any]) -> None:
    texts = {told[f"garbles:all/{rank}"][0].partition("What is known: ")[2] for rank in range(4)}
    [text] = texts  # the same on all
    assert "rank 1" in text
    assert "they are not at the same call" in text


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["dies", "stalls", "ends", "fails", "is slow"])
def test_so_it_is_for_every_fault_at_every_stage(kind: str) -> None:
    stages = [*STAGES, *([] if kind == "fails" else ["within", "halfway"])]  # an error within is its own rank's to name
    told = told_by("tests.overlap.ring_ranks", *(f"{kind}:{stage}" for stage in stages))
    for stage in stages:
        if kind == "is slow":
            assert [told[f"is slow:{stage}/{rank}"][0] for rank in range(4)] == ["4 steps"] * 4
        else:
            check_named(told, f"{kind}:{stage}")
        if kind == "stalls":  # it lives, and is told as well
            assert "rank 1" in told[f"stalls:{stage}/1"][0]


def test_alone_it_gives_back_what_it_gets_and_opens_nothing() -> None:
    transport = make_transport("host_ring")
    transport.open()
    sent = torch.arange(3)
    assert transport.all_to_all(sent, [3], [3]) is sent
    needs, _, found = transport.describe().partition("; found ")
    assert needs == "host_ring: needs torch.distributed's store, and TCP between neighbouring ranks"
    assert found.startswith("1 rank(s), ")


def test_settings_that_cannot_work_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="timeout_s=0 waits for nobody"):
        make_transport("host_ring", timeout_s=0)
    with pytest.raises(ConfigError, match="interface=warp0 is no network interface or address"):
        make_transport("host_ring", interface="warp0")


def test_a_copy_in_another_process_has_the_settings_and_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    there: HostRingTransport = pickle.loads(pickle.dumps(HostRingTransport(timeout_s=3.0, interface="lo")))
    assert (there._timeout_s, there._interface) == (3.0, "lo")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"host_ring is not open. Call open\(\) on every rank first"):
        there.all_to_all(torch.zeros(2), [1, 1], [1, 1])


class Stream:
    """Notes what is asked of it, in order."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def wait_stream(self, other: Stream) -> None:
        self.notes.append(f"{self.name} waits for {other.name}")


def test_copies_are_ordered_behind_the_tensor_and_before_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the device, which shows the order of the calls; the copies to a device never ran."""
    notes: list[str] = []

    class Event:
        def record(self, stream: Stream) -> None:
            notes.append(f"recorded on {stream.name}")

        def synchronize(self) -> None:
            notes.append("host waits")

    current = Stream("current", notes)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side", notes))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(staging, "_pinned", lambda num_bytes: torch.empty(num_bytes + 8, dtype=torch.uint8))
    stage = staging.Staging(torch.device("cpu"))

    def there_and_back(sent: Tensor) -> Tensor:
        fetched = stage.fetch(staging.packed(sent))
        room = stage.room(fetched.numel())
        room.copy_(fetched)
        return stage.put(room, sent.dtype)

    for sent in (torch.arange(6.0)[::2], torch.zeros(0), torch.arange(3, dtype=torch.int16)):
        got = there_and_back(sent)
        assert got.dtype == sent.dtype
        assert torch.equal(got, sent)
    out, back = ["side waits for current", "recorded on side"], ["side waits for current", "current waits for side"]
    assert notes == [*out, "host waits", *back] * 3
    assert stage._out.numel() == 12 + 8  # the later ones, which are smaller, used it again
