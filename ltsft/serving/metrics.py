"""What a server tells Prometheus. Labels are bounded: languages and target tasks that are released, known routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ltsft.release import Slot

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Histogram(
            "ltsft_request_seconds", "Time to answer", ("route", "status"), buckets=_SECONDS, registry=own
        )
        slot = ("target_task", "language")
        self._texts = Counter("ltsft_texts", "Texts answered", slot, registry=own)
        self._batch_size = Histogram("ltsft_batch_pieces", "Pieces of text in a batch", buckets=_SIZES, registry=own)
        self._batch_seconds = Histogram(
            "ltsft_batch_seconds", "Time of a batch, its switch included", buckets=_SECONDS, registry=own
        )
        self._switches = Histogram(
            "ltsft_switch_seconds", "Time to put another composition in place", buckets=_SECONDS, registry=own
        )
        self._released = Gauge("ltsft_release_version", "Version that answers", slot, registry=own)
        self._refused = Gauge("ltsft_releases_refused", "Released versions that could not be loaded", registry=own)
        self._failed = Counter("ltsft_refresh_failures", "Looks at the registry that failed", registry=own)
        memory = Gauge("ltsft_resident_memory_bytes", "Resident memory of the process", registry=own)
        memory.set_function(resident_bytes)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Show how many pieces of text wait."""
        gauge = Gauge("ltsft_waiting_pieces", "Pieces of text in the queue", registry=self._registry)
        gauge.set_function(waiting)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).observe(seconds)

    def answered(self, slot: Slot) -> None:
        """Count a text."""
        self._texts.labels(slot.target_task, slot.language).inc()

    def batch(self, pieces: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_size.observe(pieces)
        self._batch_seconds.observe(seconds)

    def switch(self, seconds: float) -> None:
        """Count a switch."""
        self._switches.observe(seconds)

    def refresh_failed(self) -> None:
        """Count a look at the registry that failed."""
        self._failed.inc()

    def releases(self, versions: Mapping[Slot, int], *, refused: int) -> None:
        """Show which version of what answers."""
        self._released.clear()
        for slot, version in versions.items():
            self._released.labels(slot.target_task, slot.language).set(version)
        self._refused.set(refused)

    def page(self) -> bytes:
        """Give what Prometheus reads."""
        return generate_latest(self._registry)


def resident_bytes() -> float:
    """Give the resident memory of this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return 1024.0 * float(found[0]) if found else 0.0
