"""The cores that this process may use, and the memory of the machine."""

import os


def cores() -> int:
    """CPU cores: the least that affinity, the control group and Slurm leave."""
    from joblib import cpu_count  # noqa: TID251 (it reads no file here)

    slurm, found = os.environ.get("SLURM_CPUS_ON_NODE", ""), cpu_count()
    return max(1, min(found, int(slurm))) if slurm.isdecimal() else found


def memory() -> int:
    """Bytes, whatever a container leaves of them."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
