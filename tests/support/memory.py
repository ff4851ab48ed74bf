"""The largest memory a process ever had, for programs that tests start."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_bytes() -> int:
    """Of this process alone: `ru_maxrss` starts at what the process that started this one used."""
    status = Path("/proc/self/status")
    if not status.exists():  # macOS counts bytes and inherits nothing
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
