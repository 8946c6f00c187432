"""What a run takes: wall seconds and peak resident memory, measured for every fit, generation and evaluation."""

from __future__ import annotations

import resource
import sys
import time
from types import TracebackType
from typing import Self


def peak_mib() -> float:
    """The process's peak resident memory so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Meter:
    """Measures its `with` block."""

    def __enter__(self) -> Self:
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
        return {"seconds": round(seconds, 3), "peak_mib": round(peak_mib(), 1)}

    def told(self) -> str:
        """The same in words."""
        took = self.figures()
        return f"{took['seconds']:.1f} s, peak memory {took['peak_mib']:.0f} MiB"
