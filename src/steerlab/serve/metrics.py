"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from threading import Lock

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STRENGTHS = (-4.0, -2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)

Labels = tuple[str, ...]


class Counter:
    """A number for each set of labels, which only grows."""

    kind = "counter"

    def __init__(self, name: str, about: str, labels: Sequence[str] = ()) -> None:
        self.name, self.about, self.labels = name, about, tuple(labels)
        self._values: dict[Labels, float] = {}
        self._lock = Lock()

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Count."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + by

    def lines(self) -> list[str]:
        """Its samples."""
        with self._lock:
            return [f"{self.name}{_told(self.labels, at)} {_number(v)}" for at, v in sorted(self._values.items())]


class Gauge:
    """A number that is looked up when somebody asks."""

    kind = "gauge"

    def __init__(self, name: str, about: str, read: Callable[[], float]) -> None:
        self.name, self.about, self._read = name, about, read

    def lines(self) -> list[str]:
        """Its sample."""
        return [f"{self.name} {_number(self._read())}"]


class Histogram:
    """How often values fell at or below each bound, for each set of labels."""

    kind = "histogram"

    def __init__(self, name: str, about: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.about, self.labels, self.bounds = name, about, tuple(labels), tuple(bounds)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = Lock()

    def note(self, value: float, *labels: str) -> None:
        """Count a value."""
        at = next((n for n, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        with self._lock:
            self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))[at] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def forget(self, *labels: str) -> None:
        """Drop a set of labels."""
        with self._lock:
            self._counts.pop(labels, None)
            self._sums.pop(labels, None)

    def lines(self) -> list[str]:
        """Its samples, cumulated."""
        made: list[str] = []
        names = (*self.labels, "le")
        with self._lock:
            for at, counts in sorted(self._counts.items()):
                total = 0
                for bound, count in zip((*self.bounds, math.inf), counts, strict=True):
                    total += count
                    made.append(f"{self.name}_bucket{_told(names, (*at, _number(bound)))} {total}")
                made.append(f"{self.name}_sum{_told(self.labels, at)} {_number(self._sums[at])}")
                made.append(f"{self.name}_count{_told(self.labels, at)} {total}")
        return made


class Metrics:
    """Everything that a server counts."""

    def __init__(self) -> None:
        self.requests = Counter("steerlab_requests_total", "Requests answered.", ("route", "status"))
        self.tokens = Counter("steerlab_tokens_total", "Tokens read (prompt) and made (generated).", ("kind",))
        self.steered = Counter("steerlab_steered_replies_total", "Replies under each steering.", ("steering",))
        self.gates = Counter("steerlab_gate_tokens_total", "Tokens that gates acted at, or not.", ("steering", "acted"))
        self.refused = Counter("steerlab_connections_refused_total", "Connections beyond a limit.", ("limit",))
        self.closed = Counter("steerlab_connections_closed_total", "Connections that the server gave up.", ("why",))
        self.failures = Counter(
            "steerlab_failures_total", "Times that the model failed, and its replies were given up."
        )
        self.seconds = Histogram("steerlab_request_seconds", "Whole requests.", ("route",))
        self.queued = Histogram("steerlab_queue_seconds", "Replies, from being asked for to being admitted.")
        self.first = Histogram("steerlab_first_token_seconds", "Replies, from being asked for to the first token.")
        self.step = Histogram("steerlab_step_seconds", "One decoding step of all running replies.")
        self.readout = Histogram(
            "steerlab_readout", "A steering's own axis at generated tokens (clamp: -1 and +1 are its poles).",
            ("steering", "site"), STRENGTHS,
        )  # fmt: skip
        self._gauges: list[Gauge] = []

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Add a number that is looked up."""
        self._gauges.append(Gauge(name, about, read))

    def text(self) -> str:
        """All of it."""
        lines: list[str] = []
        for metric in (
            self.requests, self.refused, self.closed, self.failures, self.tokens, self.steered, self.gates, self.seconds,
            self.queued, self.first, self.step, self.readout, *self._gauges,
        ):  # fmt: skip
            lines += [f"# HELP {metric.name} {metric.about}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


def _told(names: Sequence[str], values: Sequence[str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{n}="{escaped(v)}"' for n, v in zip(names, values, strict=True)) + "}" if names else ""


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else f"{value:.12g}"
