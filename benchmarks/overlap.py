"""How much of the embedding exchange training waits for: TorchRec's own synchronous pipeline beside ours.

Three ways train the same model on the same batches from the same weights, with row-wise Adagrad on the rows, SGD on the
dense part, whose gradients no way averages over the ranks. `sync` is TorchRec's sharded collection (row-wise) under its
`TrainPipelineSparseDist`; `waiting` our pipeline with `overlap=False`; `ours` our pipeline. The losses of all steps are
compared: bit for bit between our two, to 1e-5 with TorchRec's (`max_loss_difference`).

The link is SHAPED: gloo over one machine's loopback is slowed down to `link`, by sleeping, which takes no CPU. Ours
sends one message at a time, and each takes the delay and the bytes that a rank sends, or gets, on top of what loopback
takes for it. TorchRec's (reduce-scatters, all-gathers, all-to-alls) are shaped in `torch.distributed`: they end no
earlier than that behind the last rank's coming, as if alone on the link, so that what TorchRec overlaps stays
overlapped.

Waited is, of `sync`, what the trainer thread spends in the waits for rows (or pooled bags), forward, and their
gradients, backward; not its waits for ids, which TorchRec hides as well (`ids_ms_sync` says how long they were). Of
`waiting` and `ours`, all that the trainer thread waits in the forward pass for its rows to be complete, for which
reason soever: ids, gradients and rows, their reading and updating by the exchange thread. Of it, late is the time until
the last rank's trainer had sent its part (TorchRec), or handed its gradients over (ours): computes differ where ranks
share cores, and no schedule of messages can send what is not computed. Exposed is the rest, by ours with all that the
exchange threads wait for each other. The ranks' times are by one clock. TorchRec's trainer reads, pools and updates
rows itself, and others wait for that as for its compute: it is in `step_ms_sync` only. `ratio_waited` compares with
late ranks, `ratio_exposed` without.

No id stands twice in a rank's batch: TorchRec's deduplication of ids has no CPU kernel, and ours should gain nothing by
that. `exposed_share`, `ratio_exposed` and `predicted_vs_measured` are of `sequence-10`: an `EmbeddingCollection` with
24 ids a sample, of which 10 % collide. `cases` has the others: more and less collisions, a link twice as fast, one-hot
features and bags of 24 ids (pooled: TorchRec sends a bag's sum where ours sends its rows), `uncovered` with too little
compute to hide behind, and `unshaped`: no shaped link, so nothing to hide, with the same compute, and `unshaped_bare`
with hardly any. `is_covered` says whether `compute_ms` is longer than `link_ms`, what the link needs for all that does
not collide. Compute is a perceptron on the CPUs, which exchange and other ranks compete for; beside a GPU they would
not. Ranks share the cores where there are fewer of them.

The trace is of 2 ranks. `predicted` beyond 4 ranks is a model's word, for the workload named there, and was measured
nowhere. `--quick` takes fewer steps, repeats and cases, and draws nothing into `benchmarks/results`.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.overlap_parts.contestants import WAYS
from benchmarks.overlap_parts.measured import HEADLINE, UNSHAPED_BARE, measured
from benchmarks.overlap_parts.planning import planning
from benchmarks.overlap_parts.plot import draw, save_trace
from benchmarks.overlap_parts.trace import traced
from benchmarks.overlap_parts.workload import CASES, DEPTH, LINK
from benchmarks.result import main
from lightning_intune.overlap import Link
from lightning_intune.overlap.schedule import Workload, predict

RANKS = (2, 4)
PREDICTED = (2, 4, 16, 64, 256, 1024)
QUICK = [HEADLINE, UNSHAPED_BARE]
ROOT = Path(__file__).resolve().parents[1]
RESULTS, QUICK_RESULTS = ROOT / "benchmarks" / "results", ROOT / "runs"
IN_DOCS = ROOT / "docs" / "images" / "overlap_trace.png"
WORKLOAD = Workload(
    compute_s=0.05, compute_sigma=0.02, num_rows=50_000, row_bytes=512, collision_share=0.1, owner_skew=1.2
)
CLUSTER = Link(delay_s=2e-5, bytes_per_s=5e9)


def measure(quick: bool) -> dict[str, Any]:
    """All keys of `overlap`."""
    steps, repeats = (3, 1) if quick else (10, 5)
    figures: dict[str, Any] = {"runs": repeats, "link": f"SHAPED: {LINK}", "depth": DEPTH} | planning(
        9 if quick else 99
    )
    figures["measured"] = {
        str(ranks): measured(ranks, steps, repeats, QUICK if quick else list(CASES)) for ranks in RANKS
    }
    rows = {ranks: found["cases"][HEADLINE] for ranks, found in figures["measured"].items()}
    figures["exposed_share"] = {
        ranks: {way: row[f"exposed_share_{way}"] for way in WAYS} for ranks, row in rows.items()
    }
    for key in ("ratio_exposed", "ratio_exposed_to_waiting", "ratio_waited"):
        figures[key] = {ranks: row[key] for ranks, row in rows.items()}
        figures[f"{key}_spread"] = {ranks: row[f"{key}_spread"] for ranks, row in rows.items()}
    figures["predicted_vs_measured"] = {ranks: row["predicted"] for ranks, row in rows.items()}
    figures["predicted"] = {"workload": asdict(WORKLOAD), "link": asdict(CLUSTER)} | {
        str(ranks): {
            way: predict(WORKLOAD, CLUSTER, ranks, overlap=way == "ours").exposed_share for way in ("sync", "ours")
        }
        for ranks in PREDICTED
    }
    return figures | _traced(QUICK_RESULTS, 3) if quick else figures | _traced(RESULTS, 8)


def _traced(folder: Path, num_steps: int) -> dict[str, str]:
    """Where picture and trace are, or why not; a full run's picture is the documentation's too."""
    found = traced(num_steps)
    trace, picture = folder / "traces" / "overlap.json", folder / "overlap_trace.png"
    told = draw(found, picture, f"Case {HEADLINE}, {_link()}")
    if folder == RESULTS and picture.is_file():
        shutil.copyfile(picture, IN_DOCS)
    return {"trace": _inside(save_trace(found, trace)), "plot": _inside(told)}


def _link() -> str:
    return f"link SHAPED to {1e3 * LINK.delay_s:g} ms delay and {LINK.bytes_per_s / 1e6:g} MB/s"


def _inside(told: str) -> str:
    """Paths without the machine's."""
    return told.replace(f"{ROOT}/", "")


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"link {figures['link']}; planning {figures['plan_ms']:.2f} ms for {figures['plan_ids']} ids"]
    lines.append(f"{'':>24} {'exposed + waiting for a late rank, of a step; ms':^56}   ours over TorchRec's")
    lines.append(
        f"{'ranks':>5} {'case':>18} {'TorchRec':>18} {'overlap=False':>18} {'ours':>18}   exposed (with late), step"
    )
    for ranks, found in figures["measured"].items():
        for name, row in found["cases"].items():
            waits = [
                f"{row[f'exposed_ms_{way}']:.1f}+{row[f'late_ms_{way}']:.1f} of {row[f'step_ms_{way}']:.0f}"
                for way in WAYS
            ]
            told = "" if "link_ms" not in row else f"; compute {row['compute_ms']:.0f}, link {row['link_ms']:.0f} ms"
            lines.append(
                f"{ranks:>5} {name:>18} {waits[0]:>18} {waits[1]:>18} {waits[2]:>18}   "
                f"{row['ratio_exposed']:.2f} ({row['ratio_waited']:.2f}), {row['step_ratio']:.2f}{told}"
            )
        shares = ", ".join(f"{way} {share:.2f}" for way, share in figures["predicted_vs_measured"][ranks].items())
        lines.append(f"{ranks:>5} ranks on {found['cores']} cores; {HEADLINE}: predicted over measured {shares}")
    for ranks in PREDICTED:
        row = figures["predicted"][str(ranks)]
        lines.append(f"modelled, {ranks:>4} ranks: exposed {row['sync']:.1%} -> {row['ours']:.1%}")
    lines.append(f"trace: {figures['trace']}; plot: {figures['plot']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__ or "", measure, table)
