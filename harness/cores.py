"""What a process may use of its machine's cores, and the limits of a container."""

import os
from collections.abc import Mapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable() -> int:
    """Returns the cores that this process may run on, those of a container's quota at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = limit("cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def limit(name: str) -> str:
    """Returns a limit of the container; empty where there is none to read."""
    try:
        return (CGROUP / name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def threads(cores: int, processes: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment that gives each of some processes its share of cores; what the user has set stays.

    Without it torch takes all cores in each of them.
    """
    return {} if "OMP_NUM_THREADS" in environ else {"OMP_NUM_THREADS": str(max(1, cores // processes))}
