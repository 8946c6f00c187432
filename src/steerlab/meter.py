"""What a run takes: wall seconds and peak resident memory, measured for every fit, generation and evaluation."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_before = 0.0  # the highest peak before the system's mark was last set back


def peak_mib() -> float:
    """The process's peak resident memory so far, in MiB."""
    return max(_before, _mark())


def _mark() -> float:
    try:  # what `getrusage` tells begins with the peak of the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    except (OSError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _set_back() -> float | None:
    """What is resident now, in MiB, with the system's mark set back to it; None where the system has no way to (not Linux)."""
    global _before
    highest = _mark()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier would hide what is taken now
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    _before = max(_before, highest)
    return _mark()


class Meter:
    """Measures its `with` block. `apart`: also its processor time, and the memory that it added at its peak.

    Of two that measure apart one within the other, the outer doesn't see what went before the inner.
    """

    def __init__(self, *, apart: bool = False) -> None:
        self._apart, self._resident = apart, None

    def __enter__(self) -> Self:
        self._resident: float | None = _set_back() if self._apart else None
        self._start, self._cpu = time.perf_counter(), time.process_time()
        self.seconds = self.cpu_seconds = 0.0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu

    def figures(self) -> dict[str, float]:
        """Seconds so far (or in all) and the process's peak memory, for reports."""
        seconds = self.seconds or time.perf_counter() - self._start
        told = {"seconds": round(seconds, 3), "peak_mib": round(peak_mib(), 1)}
        if self._apart:
            told["cpu_seconds"] = round(self.cpu_seconds or time.process_time() - self._cpu, 3)
        if self._resident is not None:
            told["added_mib"] = round(_mark() - self._resident, 1)
        return told

    def told(self) -> str:
        """The same in words."""
        took = self.figures()
        return f"{took['seconds']:.1f} s, peak memory {took['peak_mib']:.0f} MiB"
