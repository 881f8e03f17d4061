"""Run as a process: clusters what it is told, and says each step, so that a test can kill it at one."""

from __future__ import annotations

import json
import sys

from lightning_intune.dedup.etl.cluster import ClusterJob, cluster


def say(what: str, done: int, total: int) -> None:
    sys.stdout.write(f"{what} {done} {total}\n")
    sys.stdout.flush()
    sys.stdin.readline()  # not a step further than the test lets it


if __name__ == "__main__":
    cluster(ClusterJob(**json.loads(sys.argv[1])), say)
