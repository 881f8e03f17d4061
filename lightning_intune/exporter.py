"""The stages' meters for Prometheus, and so for OpenTelemetry's collector, which asks the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, final

from lightning_intune.errors import ConfigError
from lightning_intune.meters import FlowStats, StageStats


class Metered(Protocol):
    """Whatever shows meters: an `ElasticLoader`."""

    def stats(self) -> FlowStats:
        """The meters now; called from the exporter's thread."""
        ...


_FLOW_COUNTERS: dict[str, tuple[str, Callable[[FlowStats], float]]] = {
    "intune_batches": ("Batches delivered to the trainer.", lambda flow: flow.num_batches),
    "intune_samples": ("Samples in them.", lambda flow: flow.num_samples),
    "intune_trainer_wait_seconds": ("Seconds the trainer waited for a batch.", lambda flow: flow.wait_s),
}
_STAGE_COUNTERS: dict[str, tuple[str, Callable[[StageStats], float]]] = {
    "intune_stage_items": ("Items the stage's function has finished.", lambda stage: stage.num_items),
    "intune_stage_busy_seconds": ("Worker seconds in the function.", lambda stage: stage.busy_s),
    "intune_stage_starved_seconds": ("Worker seconds waiting for upstream.", lambda stage: stage.starved_s),
    "intune_stage_blocked_seconds": ("Worker seconds waiting for room.", lambda stage: stage.blocked_s),
    "intune_stage_cpu_seconds": ("CPU seconds of the workers.", lambda stage: stage.cpu_s),
    "intune_stage_run_delay_seconds": ("Seconds runnable without a core.", lambda stage: stage.run_delay_s),
}
_STAGE_GAUGES: dict[str, tuple[str, Callable[[StageStats], float]]] = {
    "intune_stage_workers": ("The width that is true now.", lambda stage: stage.live_workers),
    "intune_stage_target_workers": ("The width asked for.", lambda stage: stage.target_workers),
    "intune_stage_items_in_flight": ("Items claimed and not delivered.", lambda stage: stage.num_in_flight),
    "intune_stage_ready_bytes": ("Measured bytes that wait for the consumer.", lambda stage: stage.bytes_ready),
}


@final
class Exporter:
    """Serves the meters over HTTP at `address` between `start` and `stop`; nothing is read until somebody asks.

    `address` is ``host:port``: ``127.0.0.1:9400`` for this machine alone, ``0.0.0.0:9400`` for others too. ConfigError
    for another text, without prometheus_client, or, in `start`, where the port is taken. Names end as Prometheus asks:
    ``_seconds_total``, ``_bytes``. Labels: `loader`, `rank`, and of stages `stage` and `lane`.
    """

    def __init__(self, address: str) -> None:
        try:
            import prometheus_client  # noqa: F401  # pyright: ignore[reportUnusedImport] - asked for now, used later
        except ImportError as error:
            raise ConfigError(
                "metrics_address: prometheus_client is not installed. Run pip install 'lightning-intune[metrics]', or "
                "leave metrics_address out."
            ) from error
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 <= int(port) < 2**16:
            raise ConfigError(f"metrics_address={address!r} is no host:port. Give one, as in '127.0.0.1:9400'.")
        self._host, self._port = host.strip("[]"), int(port)
        self._server: Any = None

    @property
    def port(self) -> int:
        """Where it listens; that asked for, before `start`."""
        return self._port if self._server is None else self._server[0].server_port

    def start(self, loaders: Callable[[], Mapping[str, Metered]], *, rank: int = 0, local_rank: int = 0) -> None:
        """Listen; `loaders` is asked at every request. Ranks of one machine listen at one port after the other."""
        from prometheus_client import CollectorRegistry, start_http_server

        self.stop()
        registry = CollectorRegistry()
        registry.register(_Collector(loaders, str(rank)))
        port = self._port + local_rank if self._port else 0
        try:
            self._server = start_http_server(port, self._host, registry)
        except OSError as error:
            raise ConfigError(
                f"metrics_address: {self._host}:{port} cannot be listened at ({error.strerror}). Give another port."
            ) from error

    def stop(self) -> None:
        """Listen no more, and wait until that is so."""
        if self._server is not None:
            (server, thread), self._server = self._server, None
            server.shutdown()
            server.server_close()
            thread.join()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_server": None}  # a socket is its process's own


@final
class _Collector:
    """What prometheus_client asks at every request."""

    def __init__(self, loaders: Callable[[], Mapping[str, Metered]], rank: str) -> None:
        self._loaders, self._rank = loaders, rank

    def describe(self) -> list[Any]:
        """Nothing beforehand: no meter is read when this is registered."""
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        read = {name: loader.stats() for name, loader in self._loaders().items()}
        for name, (text, value) in _FLOW_COUNTERS.items():
            family = CounterMetricFamily(name, text, labels=["loader", "rank"])
            for loader, flow in read.items():
                family.add_metric([loader, self._rank], value(flow))
            yield family
        kinds = ((CounterMetricFamily, _STAGE_COUNTERS), (GaugeMetricFamily, _STAGE_GAUGES))
        for kind, meters in kinds:
            for name, (text, of_stage) in meters.items():
                family = kind(name, text, labels=["loader", "rank", "stage", "lane"])
                for loader, flow in read.items():
                    for stage in flow.stages:
                        family.add_metric([loader, self._rank, stage.name, stage.lane], of_stage(stage))
                yield family
