"""How much of the embedding exchange training waits for, with it behind the compute and without.

The link is SHAPED: gloo over one machine's loopback is slowed down to `link`, by sleeping, which takes no CPU. `sync`
is the same pipeline with `overlap=False`: ids go ahead, as in TorchRec's TrainPipelineSparseDist, and all rows and
gradients are waited for. It is not TorchRec's own code, which sends pooled bags, not rows. `exposed_share` and
`ratio_exposed` are those of 10 % collisions; `measured` has the others. Compute is a perceptron on the CPU, which the
exchange competes with: beside a GPU it would not. `slower_unshaped` is without a shaped link and with little compute.
Ranks share the cores where there are fewer of them. `predicted` beyond 4 ranks is a model's word, for the workload
named there, and was measured nowhere. `--quick` takes fewer steps and pairs.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.overlap_parts.measured import HEADLINE, measured
from benchmarks.overlap_parts.planning import planning
from benchmarks.overlap_parts.rank import LINK
from benchmarks.result import main
from lightning_intune.overlap import Link
from lightning_intune.overlap.schedule import Workload, predict

RANKS = (2, 4)
WORKLOAD = Workload(
    compute_s=0.05, compute_sigma=0.02, num_rows=50_000, row_bytes=512, collision_share=0.1, owner_skew=1.2
)
CLUSTER = Link(delay_s=2e-5, bytes_per_s=5e9)


def measure(quick: bool) -> dict[str, Any]:
    """All keys of `overlap`."""
    steps, repeats = (6, 1) if quick else (40, 5)
    figures: dict[str, Any] = {"runs": repeats, "link": f"SHAPED: {LINK}"} | planning(9 if quick else 99)
    figures["measured"] = {str(ranks): measured(ranks, steps, repeats) for ranks in RANKS}
    rows = {ranks: found["by_collisions"][HEADLINE] for ranks, found in figures["measured"].items()}
    figures["exposed_share"] = {
        ranks: {way: row[f"exposed_share_{way}"] for way in ("sync", "ours")} for ranks, row in rows.items()
    }
    figures["ratio_exposed"] = {ranks: row["ratio_exposed"] for ranks, row in rows.items()}
    figures["predicted_vs_measured"] = {ranks: row["predicted"] for ranks, row in rows.items()}
    figures["predicted"] = {"workload": asdict(WORKLOAD), "link": asdict(CLUSTER)} | {
        str(ranks): {
            way: predict(WORKLOAD, CLUSTER, ranks, overlap=way == "ours").exposed_share for way in ("sync", "ours")
        }
        for ranks in (2, 4, 16, 64, 256, 1024)
    }
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"link {figures['link']}; planning {figures['plan_ms']:.2f} ms for {figures['plan_ids']} ids"]
    for ranks, found in figures["measured"].items():
        for share, row in found["by_collisions"].items():
            line = (
                f"{ranks} ranks on {found['cores']} cores, {share:>3} % collide: waits {row['exposed_ms_sync']:.1f} -> "
                f"{row['exposed_ms_ours']:.1f} ms of {row['step_ms_sync']:.1f} -> {row['step_ms_ours']:.1f} ms "
                f"(ratio {row['ratio_exposed']:.2f}); predicted/measured {row['predicted']['sync']:.2f}, "
                f"{row['predicted']['ours']:.2f}"
            )
            lines.append(line)
        lines.append(f"{ranks} ranks, link not shaped: a step takes {found['slower_unshaped']:.3f} of sync's time")
    for ranks in (2, 4, 16, 64, 256, 1024):
        row = figures["predicted"][str(ranks)]
        lines.append(f"modelled, {ranks:>4} ranks: exposed {row['sync']:.1%} -> {row['ours']:.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__ or "", measure, table)
