"""What this process may use of the machine: not what the machine has."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # all groups; this process's
CORES = "SMALL_BENCH_CORES"  # environment variable with a study's own limit


def cores() -> int:
    """CPU cores: the least that affinity, the control groups, Slurm and a study leave."""
    pinned = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    found = [len(pinned) or os.cpu_count() or 1]
    quotas = _limits("cpu", ["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
    found += [math.ceil(quota / period) for quota, period in quotas]
    given = (os.environ.get(name, "") for name in ("SLURM_CPUS_ON_NODE", CORES))
    return max(1, min([*found, *(int(count) for count in given if count.isdecimal())]))


def memory() -> int:
    """Bytes of memory: what the control groups leave of the machine's."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits = _limits("memory", ["memory.max"], ["memory.limit_in_bytes"])
    return min([*found, *(limit for (limit,) in limits)])


def _limits(kind: str, *sets: list[str]) -> Iterator[list[int]]:
    """The numbers in a set of files of each control group, version 2 or 1, that sets a limit."""
    roots = (CGROUPS, CGROUPS / kind)
    places = {*roots}
    with suppress(OSError):  # not Linux
        for line in OWN.read_text(encoding="utf-8").splitlines():
            path = line.split(":", 2)[2].strip("/")
            places |= {one for root in roots for one in (root / path, *(root / path).parents)}
    for place in places:
        for names in sets:
            with suppress(OSError):
                text = " ".join((place / name).read_text(encoding="utf-8") for name in names)
                if not text.startswith(("max", "-1")):
                    yield [int(word) for word in text.split()]
