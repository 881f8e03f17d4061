"""Two gloo ranks that read one session layout: `python -m tests.lightning.session_ranks RANK STORE FOLDER`.

Each prints how many batches it had, and the labels of the rows that count.
"""

from __future__ import annotations

import json
import sys

import torch.distributed as dist

from lightning_intune.pipeline import Pipeline, Place
from tests.lightning.test_session_layout import SCHEMA


def main() -> None:
    rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    pipeline = Pipeline(schema=SCHEMA, batch_size=64, seed=2)
    with pipeline.loader(folder, Place(rank=rank, world_size=2, is_train=True)) as loader:
        batches = list(loader)
    counted = [batch for batch in batches if batch.weights is None or bool((batch.weights > 0).all())]
    labels = [label for batch in counted for label in batch.labels[:, 0].tolist()]
    sys.stdout.write(json.dumps({"num_batches": len(batches), "labels": labels}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
