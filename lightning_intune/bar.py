"""What a progress bar shows of the tuned loaders, beside what it shows itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from lightning_intune.control import Decision


@final
class BarPart:
    """Samples/s, data wait and widths in a progress bar of Lightning's, until `remove`.

    `last` gives the latest turn of each loader by name, and is asked whenever the bar is drawn.
    """

    def __init__(self, bar: Any, last: Callable[[], Mapping[str, Decision]]) -> None:
        self._bar, self._last, self._shown = bar, last, bar.get_metrics
        bar.get_metrics = self._metrics  # the bar's own hook for that

    def remove(self) -> None:
        """The bar is as it was."""
        self._bar.__dict__.pop("get_metrics", None)

    def _metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        return {**self._shown(trainer, pl_module), **self._own()}

    def _own(self) -> dict[str, str]:
        values: dict[str, str] = {}
        for name, decision in self._last().items():
            head = f"{name} " if name else ""
            values[f"{head}samples/s"] = f"{decision.samples_per_s:,.0f}"
            values[f"{head}data wait"] = f"{decision.wait_share:.0%}"
            values[f"{head}widths"] = "/".join(map(str, decision.asked.values()))
        return values
