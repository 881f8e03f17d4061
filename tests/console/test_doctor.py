"""`lightning-intune doctor`: what it sees, that it tries lanes for real, and what it says to change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lightning_intune import console, doctor
from lightning_intune.control.budget import Budget
from lightning_intune.control.cgroup import Cgroup


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def by_name(found: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in found}


def test_the_command_prints_one_json_object_and_ends_well_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = console.main(["doctor", "--json", str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert status == int(not report["is_well"])
    assert found["thread lane"]["found"].startswith("works")
    assert found["process lane"]["found"].startswith("works")
    assert f"{len(os.sched_getaffinity(0))} by affinity" in found["CPUs"]["found"]
    assert "torch " in found["packages"]["found"]
    assert f"disk of '{tmp_path}'" in found


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "lanes", lambda **_: [])
    console.main(["doctor"])
    out = capsys.readouterr().out
    assert "what to change" in out
    assert "/dev/shm" in out


def test_quiet_shows_what_is_to_be_changed_and_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    well, odd = doctor.Finding(what="colour", found="blue"), doctor.Finding(what="disk", found="none", verdict="bad")
    for name in ("machine", "versions", "limits"):
        monkeypatch.setattr(doctor, name, lambda: [well])
    monkeypatch.setattr(doctor, "lanes", lambda **_: [well])
    assert console.main(["doctor", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(doctor, "lanes", lambda **_: [well, odd])
    assert console.main(["doctor", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "disk" in out
    assert "colour" not in out


def test_a_path_that_is_not_there_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["doctor", "/no/such/place"]) == 2
    assert "there is no file or folder '/no/such/place'" in capsys.readouterr().err


def test_quota_throttling_and_a_memory_limit_are_seen_and_advised_on(tmp_path: Path) -> None:
    proc = tree(
        tmp_path / "proc",
        {"self/cgroup": "0::/job\n", "self/status": "Cpus_allowed_list:\t0-7\n", "meminfo": "MemTotal: 67108864 kB\n"},
    )
    root = tree(
        tmp_path / "cgroup",
        {
            "cgroup.controllers": "cpu memory",
            "job/cpu.max": "150000 100000",
            "job/memory.max": str(4 * 2**30),
            "job/cpu.stat": "nr_throttled 900\nthrottled_usec 90000000\n",
        },
    )
    shm = tmp_path / "nowhere"
    reading = Budget(proc_root=proc, cgroup_root=root, shm_path=shm, memory_share=1.0).read()
    found = by_name(doctor.machine(reading, Cgroup(proc / "self" / "cgroup", root)))
    assert found["CPUs"].found.startswith("1.5 usable")
    assert "8 by affinity, quota 1.5" in found["CPUs"].found
    assert found["CPU throttling"].verdict == "note"
    assert found["memory"].found.startswith("4.0 GiB by control group")
    assert found["/dev/shm"].verdict == "note"


def fails(_: int) -> int:
    raise RuntimeError("no luck here")


@pytest.mark.parametrize("method", ["thread", "process"])
def test_a_lane_that_does_not_work_is_bad_with_its_reason_and_a_cure(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = doctor.try_lane(method, fails)
    assert finding.verdict == "bad"
    assert "no luck here" in finding.found
    assert finding.advice or method == "thread"
    wrong = doctor.try_lane("thread", lambda n: n)
    assert "it gave [5] instead of [120]" in wrong.found
    monkeypatch.setattr(doctor, "lanes", lambda **_: [finding])
    assert console.main(["doctor", "--json"]) == 1


def test_the_filesystem_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        f"2 1 0:5 / {data} rw shared:3 - nfs4 server:/x rw\n"
        f"3 1 0:6 / {data}-other rw - tmpfs none rw\n"
    )
    assert doctor._filesystem_of(data / "x", mounts) == "nfs4"
    assert doctor._filesystem_of(Path("/etc"), mounts) == "ext4"
    assert doctor._filesystem_of(data, tmp_path / "none") == "unknown kind"


def test_data_behind_a_network_is_told_to_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nfs(*_: Any) -> str:
        return "nfs4"

    monkeypatch.setattr(doctor, "_filesystem_of", nfs)
    assert "retry(3)" in doctor.disk(tmp_path).advice
