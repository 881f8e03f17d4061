"""What deduplication brings: storage, preprocessing and training steps, its kernel, its errors, and the quality.

Times are CPU seconds of one thread, so that other work on the machine disturbs them least; rivals alternate within one
run. Every training ratio is against the cheaper of our own plain path and TorchRec's DLRM on the expanded batch;
`vs_vbe` is against TorchRec 1.8's own handling of `inverse_indices`, a weak rival on CPU;
an unsharded EmbeddingCollection ignores them, so for `sequence` that figure is the plain path's (`vbe_rival` says so).
The plan is chosen by `plan_for` from the data, as a user would: where sessions have one row it deduplicates nothing.
Preprocessing decodes and does to every feature what DLRM pipelines do (cut, hash, clamp, one derived feature for each
list); `preprocess_ratio_hash_only` hashes and does nothing else, where deduplication spares least.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.dedup_parts.data import BATCH_ROWS, write
from benchmarks.dedup_parts.kernel import kernel
from benchmarks.dedup_parts.preprocess import batches, cost_where_nothing_repeats, preprocess, storage
from benchmarks.dedup_parts.quality import quality
from benchmarks.dedup_parts.training import errors, train_ratios
from benchmarks.result import main, put

SESSION_MEANS = (1, 2, 6, 17)
OTTO = 17


def measure(quick: bool) -> dict[str, Any]:
    """All keys of `dedup`."""
    torch.set_num_threads(1)
    runs = 2 if quick else 7
    figures: dict[str, Any] = {"runs": runs, "by_session_mean": {}} | kernel(5 * runs)
    for mean in SESSION_MEANS:
        figures["by_session_mean"][str(mean)] = _at(mean, quick, runs, figures)
    figures["vbe_rival"] = {
        "dlrm": "TorchRec's DLRM over an EmbeddingBagCollection with inverse_indices",
        "sequence": "our plain path: an unsharded EmbeddingCollection ignores inverse_indices",
    }
    return figures | quality(8_000 if quick else 40_000, 2 if quick else 5)


def _at(mean: int, quick: bool, runs: int, figures: dict[str, Any]) -> dict[str, Any]:
    """The ratios at one mean session length; at OTTO's the headline figures too."""
    is_otto = mean == OTTO
    rows = (24_576 if is_otto else 8_192) if quick else (65_536 if is_otto else 16_384)
    keys = "preprocess_ratio", "preprocess_ratio_hash_only", "train_ratio", "train_ratio_vs_vbe"
    found: dict[str, Any] = {key: {} for key in keys}
    with tempfile.TemporaryDirectory() as folder:
        small, fast = write(Path(folder), rows, float(mean), small=is_otto)
        if is_otto:
            found["storage_ratio"] = storage(small)
        few = runs if mean in (1, OTTO) else max(1, runs // 2)
        for name, values in preprocess(fast, mean, few, hash_only=False).items():
            put(found["preprocess_ratio"], name, values)
        for name, values in preprocess(fast, mean, max(1, runs // 2), hash_only=True).items():
            put(found["preprocess_ratio_hash_only"], name, values)
        if mean == 1:
            found["preprocess_cost"] = {}
            for name, values in cost_where_nothing_repeats(fast, 2 * runs).items():
                put(found["preprocess_cost"], name, values)
        plain, dedup = batches(fast, 1 if quick else 2, BATCH_ROWS // (4 if quick else 2))
    ratios = train_ratios(plain, dedup, few)
    for name in ("dlrm", "sequence"):
        put(found["train_ratio"], name, ratios["train"][name])
        put(found["train_ratio_vs_vbe"], name, ratios["vbe"][name])
    if is_otto:
        figures |= found
        figures["max_forward_error"], figures["max_gradient_error"] = errors(plain[0], dedup[0])
    return found


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rates, bound = figures["kernel_rows_per_s"], figures["read_bound_rows_per_s"]
    lines = [
        f"kernel, M rows/s of a thread: clustered {rates['clustered'] / 1e6:.1f}, "
        f"shuffled {rates['shuffled'] / 1e6:.1f}; "
        f"reading alone {bound / 1e6:.1f}",
        "shuffled bytes over: clustered {clustered:.2f}, sessions {sessions:.2f}".format(**figures["storage_ratio"]),
        f"{'rows per session':>16}  {'clustered':>9}  {'ikjt':>5}  {'sessions':>8}  {'dlrm':>5}  {'sequence':>8}  "
        f"{'dlrm/VBE':>8}",
    ]
    for mean, at in figures["by_session_mean"].items():
        made, train = at["preprocess_ratio"], at["train_ratio"]
        lines.append(
            f"{mean:>16}  {made['clustered']:9.2f}  {made['ikjt']:5.2f}  {made['sessions']:8.2f}  "
            f"{train['dlrm']:5.2f}  {train['sequence']:8.2f}  {at['train_ratio_vs_vbe']['dlrm']:8.2f}"
        )
    cost = figures["by_session_mean"]["1"]["preprocess_cost"]
    for mean, at in figures["by_session_mean"].items():
        made = at["preprocess_ratio_hash_only"]
        lines.append(
            f"preprocessing that only hashes, {mean} rows per session: clustered {made['clustered']:.2f}, "
            f"ikjt {made['ikjt']:.2f}, sessions {made['sessions']:.2f}"
        )
    lines += [
        f"cost where nothing repeats (1: none): ikjt {cost['ikjt']:.3f}, sessions {cost['sessions']:.3f}",
    ]
    lines.append(f"errors: forward {figures['max_forward_error']:.1e}, gradient {figures['max_gradient_error']:.1e}")
    for way, values in figures["auc"].items():
        lines.append(f"AUC {way:>9}: " + ", ".join(f"{value:.4f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__ or "", measure, table)
