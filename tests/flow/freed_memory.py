"""Makes and frees large arrays in a stage. Run as a program."""

from __future__ import annotations

import json
import resource
import sys

import numpy as np

from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource

MIB = 1 << 20


def work(number: int) -> int:
    """48 arrays of 1 MiB, as a batch's columns: 12,288 pages that are touched."""
    arrays = [np.full(MIB // 8, number) for _ in range(48)]
    return int(arrays[-1][-1])


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    """Page faults per item, behind the first ten."""
    with ElasticLoader(ElasticMapper(IterableSource(range(40)), work, 1)) as loader:
        items = iter(loader)
        for _ in range(10):
            next(items)
        before = faults()
        assert [*items][-1] == 39
        pages = (faults() - before) / 30
    sys.stdout.write(json.dumps({"pages": pages}) + "\n")


if __name__ == "__main__":
    main()
