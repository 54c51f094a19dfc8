"""The cores that this process may use, and the memory of the machine."""

import os


def cores() -> int:
    """CPU cores: the least that affinity, the control group and Slurm leave."""
    from joblib import cpu_count  # noqa: TID251 (it reads no file here)

    slurm = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(cpu_count(), int(slurm) if slurm.isdecimal() else cpu_count()))


def memory() -> int:
    """Bytes, whatever a container leaves of them."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
