"""The budget, read from trees written by the tests."""

import pytest

from lightning_intune.control.budget import Budget
from lightning_intune.control.process_tree import ProcessTree
from lightning_intune.errors import ConfigError

GIB = 1 << 30


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def proc(root, *, allowed="0-7", membership="0::/job\n", total_kb=64 * 1024 * 1024):
    write(
        root,
        {
            "self/status": f"Name:\tpython\nCpus_allowed_list:\t{allowed}\n",
            "self/cgroup": membership,
            "meminfo": f"MemTotal: {total_kb} kB\nMemFree: 5 kB\n",
            "stat": "cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 50 999 9 0 0 50 0 0\ncpu1 300 0 0 1 0 0 0 0 0 0\nintr 5\n",
        },
    )
    return root


def budget(tmp_path, **kwargs):
    return Budget(
        proc_root=tmp_path / "proc",
        cgroup_root=tmp_path / "cgroup",
        shm_path=tmp_path,
        **kwargs,
    )


def test_affinity_bounds_the_cpus(tmp_path):
    proc(tmp_path / "proc", allowed="0-3,6")
    assert budget(tmp_path).read().cpus == 5.0


def test_a_version_2_quota_bounds_the_cpus_from_any_ancestor(tmp_path):
    proc(tmp_path / "proc", membership="0::/pod/job\n")
    write(
        tmp_path / "cgroup",
        {
            "cgroup.controllers": "cpu memory\n",
            "pod/cpu.max": "250000 100000\n",
            "pod/job/cpu.max": "max 100000\n",
            "pod/memory.max": str(4 * GIB),
            "pod/job/memory.max": "max\n",
            "pod/job/cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 1500000\n",
        },
    )
    reading = budget(tmp_path).read()
    assert reading.cpus == 2.5
    assert reading.memory_limit_bytes == int(0.8 * 4 * GIB)
    assert (reading.num_throttled, reading.throttled_s) == (3, 1.5)


def test_a_version_1_quota_and_limit_are_read(tmp_path):
    proc(tmp_path / "proc", membership="4:memory:/job\n2:cpuset:/\n1:cpu,cpuacct:/job\n0::/\n")
    write(
        tmp_path / "cgroup",
        {
            "cpu/job/cpu.cfs_quota_us": "150000\n",
            "cpu/job/cpu.cfs_period_us": "100000\n",
            "cpu/job/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 2000000000\n",
            "memory/job/memory.limit_in_bytes": str(2 * GIB),
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cpuset/cpuset.effective_cpus": "0-5\n",
        },
    )
    reading = budget(tmp_path).read()
    assert reading.cpus == 1.5
    assert reading.memory_limit_bytes == int(0.8 * 2 * GIB)
    assert (reading.num_throttled, reading.throttled_s) == (2, 2.0)


def test_a_cpuset_smaller_than_the_affinity_counts(tmp_path):
    proc(tmp_path / "proc", membership="2:cpuset:/job\n")
    write(tmp_path / "cgroup", {"cpuset/job/cpuset.cpus": "2-3\n"})
    assert budget(tmp_path).read().cpus == 2.0


def test_a_quota_of_minus_one_is_no_quota(tmp_path):
    proc(tmp_path / "proc", membership="1:cpu:/\n")
    write(tmp_path / "cgroup", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"})
    assert budget(tmp_path).read().cpus == 8.0


def test_changes_are_seen_by_the_next_reading(tmp_path):
    proc(tmp_path / "proc")
    write(tmp_path / "cgroup", {"cgroup.controllers": "", "job/cpu.max": "400000 100000\n"})
    ours = budget(tmp_path)
    assert ours.read().cpus == 4.0
    write(tmp_path / "cgroup", {"job/cpu.max": "100000 100000\n"})
    assert ours.read().cpus == 1.0


def test_a_memory_limit_that_changes_is_seen_within_four_readings(tmp_path):
    proc(tmp_path / "proc")
    write(tmp_path / "cgroup", {"cgroup.controllers": "", "job/memory.max": str(4 * GIB)})
    ours = budget(tmp_path)
    assert ours.read().memory_limit_bytes == int(0.8 * 4 * GIB)
    write(tmp_path / "cgroup", {"job/memory.max": str(GIB)})
    assert [ours.read().memory_limit_bytes for _ in range(4)][-1] == int(0.8 * GIB)


def test_nothing_to_read_is_no_limit(tmp_path):
    proc(tmp_path / "proc")
    reading = budget(tmp_path).read()
    assert reading.cpus == 8.0
    assert reading.memory_limit_bytes == int(0.8 * 64 * GIB)


def test_the_ranks_of_one_host_share_its_budget(tmp_path):
    proc(tmp_path / "proc")
    reading = budget(tmp_path, ranks_on_host=4).read()
    assert reading.cpus == 2.0
    assert reading.memory_limit_bytes == int(0.8 * 64 * GIB) // 4


def test_busy_time_is_that_of_the_allowed_cpus(tmp_path):
    proc(tmp_path / "proc", allowed="0")
    # user 100 + system 50 + steal 50 ticks of cpu0, at 100 ticks a second
    assert budget(tmp_path).read().host_busy_s == 2.0


def test_the_process_tree_counts_private_memory_of_all_and_shared_memory_once(tmp_path):
    status = "RssAnon:\t{} kB\nRssFile:\t77 kB\nRssShmem:\t{} kB\n"
    write(
        tmp_path,
        {
            "7/task/7/children": "8 9 ",
            "7/task/70/children": "",
            "7/status": status.format(100, 64),
            "8/task/8/children": "10",
            "8/status": status.format(30, 64),
            "9/task/9/children": "",
            "9/status": status.format(5, 32),
            "10/task/10/children": "",
            "10/status": status.format(1, 0),
        },
    )
    assert ProcessTree(tmp_path, pid=7).memory_bytes() == (100 + 30 + 5 + 1 + 64) * 1024


def test_a_child_that_ends_while_it_is_read_counts_nothing(tmp_path):
    write(tmp_path, {"7/task/7/children": "8", "7/status": "RssAnon:\t10 kB\n"})
    assert ProcessTree(tmp_path, pid=7).memory_bytes() == 10 * 1024


@pytest.mark.parametrize(
    "kwargs", [{"cpus": 0.0}, {"memory_share": 0.0}, {"memory_limit_bytes": 0}, {"ranks_on_host": 0}]
)
def test_a_budget_of_nothing_is_refused(kwargs):
    with pytest.raises(ConfigError, match="Give"):
        Budget(**kwargs)


def test_the_real_machine_has_some_of_everything():
    reading = Budget().read()
    assert reading.cpus > 0
    assert 0 < reading.memory_bytes < reading.memory_limit_bytes
