"""Where a number came from: code, versions, hardware, energy."""

import json
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pynvml
import torch


def hardware(threads: int) -> dict[str, str | int | bool]:
    """The device of this process, and whether runs on it give the same bytes each time."""
    cuda = torch.cuda.is_available()
    return {
        "device": "cuda" if cuda else "cpu",
        "name": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "threads": threads,
        "repeatable": not cuda,  # its atomic additions have no fixed order (PyTorch's notes)
    }


def _cpu_name() -> str:
    with suppress(OSError):  # not Linux; the last line has a name everywhere
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def code() -> dict[str, str | bool | None]:
    """The git commit this process runs from, and whether the tree is clean; else both None.

    A copy that pip installed from git has the commit in its metadata (PEP 610).
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        commit = _installed_commit(root)
        return {"commit": commit, "clean": None if commit is None else True}
    commit, status = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "-s")))
    return {"commit": commit or None, "clean": None if commit is None else status == ""}


def _installed_commit(root: Path) -> str | None:
    try:
        package = distribution("small-bench-nlp")
    except PackageNotFoundError:
        return None
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    here = Path(package.locate_file("")).resolve() == root
    return origin.get("vcs_info", {}).get("commit_id") if here else None


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except FileNotFoundError:
        return None  # no git on this machine
    return done.stdout.strip() if done.returncode == 0 else None


def joules(device: torch.device) -> float | None:
    """Energy a GPU has used since its driver was loaded, whoever used it (NVML), else None."""
    if device.type != "cuda":
        return None  # CPUs report theirs to root only
    try:
        pynvml.nvmlInit()
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except pynvml.NVMLError:
        return None  # older than Volta, or no NVML on this system: the record says null


def spent(before: float | None, after: float | None, earlier: float | None = 0.0) -> float | None:
    """Joules between two readings of :func:`joules`, and what the run used before; else None."""
    if before is None or after is None or earlier is None:
        return None
    return round(earlier + after - before, 1)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries the numbers depend on."""
    names = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
