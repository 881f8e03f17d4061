"""One step in each way, as a picture; and all traced steps in the format of `chrome://tracing` and Perfetto."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from benchmarks.overlap_parts.spans import LINK, TRAINER, WORKER
from benchmarks.overlap_parts.trace import typical_step, waited_s

TITLES = {
    "sync": "TorchRec TrainPipelineSparseDist",
    "waiting": "ours, overlap=False",
    "ours": "ours",
}
_COLOURS = {
    "forward": "#74c476",
    "backward": "#238b45",
    "optimizer": "#c7e9c0",
    "waiting": "#de2d26",
    "waiting for ids": "#bcbddc",
    "ids": "#969696",
    "marks": "#525252",
    "rows": "#3182bd",
    "gradients": "#e6850d",
    "early rows": "#9ecae1",
    "late rows": "#08519c",
    "urgent gradients": "#a63603",
    "other gradients": "#fdbe85",
    "reads and updates": "#e8e8e8",
}
_LABELS = {
    "waiting": "waiting for rows or gradients (exposed)",
    "waiting for ids": "waiting for ids (not counted)",
    "rows": "all rows",
    "gradients": "all gradients",
    "early rows": "next batch's rows that do not collide",
    "late rows": "next batch's rows that collide",
    "urgent gradients": "gradients of rows that collide",
    "other gradients": "other gradients (of the step before)",
    "reads and updates": "exchange thread reads and updates rows",
    "marks": "marks: which rows collide",
    "optimizer": "dense optimizer",
}


def save_trace(found: dict[str, Any], path: Path) -> str:
    """Write the Chrome trace, and say where. A process per way, a thread per row of the picture; microseconds."""
    events: list[dict[str, Any]] = []
    for process, (way, traced) in enumerate(found.items()):
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": TITLES[way]}})
        rows = [TRAINER, LINK if way == "sync" else WORKER]
        for thread, row in enumerate(rows):
            events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": row}})
        for span in traced["spans"]:
            event = {
                "ph": "X",
                "name": span["name"],
                "pid": process,
                "tid": rows.index(span["row"]),
                "ts": round(1e6 * span["begun_s"], 1),
                "dur": round(1e6 * (span["ended_s"] - span["begun_s"]), 1),
            }
            events.append(event | ({"args": {"bytes": span["num_bytes"]}} if span["num_bytes"] else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")
    return str(path)


def draw(found: dict[str, Any], path: Path, told: str) -> str:
    """Write the picture of each way's typical step, and say where; or say what is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return "not drawn: install `lightning-intune[plots]` (matplotlib)"
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    steps = {way: typical_step(traced) for way, traced in found.items()}
    figure, all_axes = plt.subplots(len(found), 1, figsize=(12, 6.2), sharex=True, layout="constrained")
    for axes, (way, traced) in zip(all_axes, found.items(), strict=True):
        _draw_step(axes, way, traced["spans"], *steps[way])
    seen = {span["name"] for traced in found.values() for span in traced["spans"]}
    longest_ms = 1e3 * max(ended_s - begun_s for begun_s, ended_s in steps.values())
    all_axes[-1].set_xlim(0, 1.06 * longest_ms)
    all_axes[-1].set_xlabel("ms from the beginning of the forward pass")
    figure.suptitle(f"One training step of rank 0 of 2. {told}", fontsize=11)
    handles = [Patch(color=colour, label=_LABELS.get(name, name)) for name, colour in _COLOURS.items() if name in seen]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return str(path)


def _in_order(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What lies on top comes last: messages on the thread's work, waits on the passes."""
    return sorted(spans, key=lambda span: span["name"].startswith("waiting") - (span["name"] == "reads and updates"))


def _draw_step(axes: Any, way: str, spans: list[dict[str, Any]], begun_s: float, ended_s: float) -> None:
    rows = [LINK if way == "sync" else WORKER, TRAINER]
    for span in _in_order(spans):
        begin_ms = 1e3 * (max(span["begun_s"], begun_s) - begun_s)
        width_ms = 1e3 * (min(span["ended_s"], ended_s) - begun_s) - begin_ms
        if width_ms > 0:
            axes.barh(rows.index(span["row"]), width_ms, 0.72, begin_ms, color=_COLOURS[span["name"]])
    axes.set_yticks(range(2), rows)
    axes.set_ylim(-0.5, 1.5)
    step_ms, waited_ms = 1e3 * (ended_s - begun_s), 1e3 * waited_s(spans, begun_s, ended_s)
    axes.set_title(f"{TITLES[way]}: {step_ms:.0f} ms a step, of them {waited_ms:.1f} ms waiting", loc="left")
    axes.axvline(step_ms, color="black", linewidth=1.5)
    axes.text(step_ms, 0.5, " next step", va="center", fontsize=8)
