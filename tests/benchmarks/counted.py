"""Six batches of a peer in a process of its own: their digests, and how often each was read."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.peers_parts.engines import PEERS
from benchmarks.peers_parts.work import Work, digest, make_work


def main() -> None:
    """Print the JSON object that the test wants."""
    job = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    work = make_work("local", Path(job["folder"]))
    counts: Counter[int] = Counter()

    def read(index: Any) -> Any:
        counts[int(index)] += 1
        return work.read(index)

    counted = Work(name=work.name, read=read, transform=work.transform)  # type: ignore[arg-type]
    engine = next(engine for engine in PEERS if engine.name == job["engine"])
    with engine.open(counted, job["setting"]) as batches:
        digests = [digest(batch) for batch in islice(batches, 6)]
        reads = [counts[index] for index in range(6)]
    sys.stdout.write(json.dumps({"digests": digests, "reads": reads}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
