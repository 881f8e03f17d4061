"""A training loop to be killed: `python -m tests.faults.trainer FOLDER NUM_ITEMS`, resumed by being run again.

After every few items it saves what was trained and the loader's state, in one file, put in place at once. So what the
file holds at the end is what a model would have seen.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource, Shuffle


def work(n: int) -> int:
    time.sleep(0.0005)
    return n


def main(folder: Path, num_items: int) -> None:
    saved = folder / "saved.json"
    checkpoint = json.loads(saved.read_text()) if saved.exists() else {"trained": [], "state": None}
    trained: list[int] = checkpoint["trained"]
    node = ElasticMapper(IterableSource(range(num_items)), work, 2, method="process", max_workers=3)
    node = ElasticPrefetcher(ElasticMapper(Shuffle(node, 64, seed=3), work, 2), 4)
    with ElasticLoader(node, restart_on_stop_iteration=False) as loader:
        if checkpoint["state"] is not None:
            loader.load_state_dict(checkpoint["state"])
        (folder / "started").write_text(str(os.getpid()))
        for step, n in enumerate(loader):
            trained.append(n)
            if step % 5 == 0:
                save(saved, trained, loader)
        save(saved, trained, loader)
    (folder / "done").touch()


def save(saved: Path, trained: list[int], loader: ElasticLoader[int]) -> None:
    fresh = saved.with_suffix(".tmp")
    fresh.write_text(json.dumps({"trained": trained, "state": loader.state_dict()}))
    os.replace(fresh, saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
