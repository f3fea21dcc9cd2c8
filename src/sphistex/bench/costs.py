"""What a method costs: wall time, and the most memory that was taken while it ran."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# Writing 5 there lets Linux forget the peak so far; where that cannot be, the peak is that of the whole process.
_FORGET_PEAK = Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Seconds, and the peak of the process's resident memory in GiB."""

    seconds: float = 0.0
    peak_gib: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure what is done inside; the figures are there afterwards.

    Examples
    --------
    >>> with measured() as cost:
    ...     _ = sum(range(1000))
    >>> cost.seconds < 1, cost.peak_gib > 0
    (True, True)
    """
    with suppress(OSError):
        _FORGET_PEAK.write_text("5")
    cost, started = Cost(), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost.peak_gib = peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, kilobytes elsewhere
