"""Where a number came from: code, versions, hardware."""

import json
import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch


def hardware(threads: int) -> dict[str, str | int | bool]:
    """The device of this process, and whether as many threads on it give the same bytes again."""
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
    """The git commit this process runs from, and whether the tree is clean; else both None and why.

    A copy that pip installed from git has the commit in its metadata (PEP 610).
    """
    root = Path(__file__).resolve().parents[2]
    try:
        if not (root / ".git").exists():
            return {"commit": _installed_commit(root), "clean": True}
        commit, status = (
            _git(root, *words) for words in (("rev-parse", "--verify", "HEAD"), ("status", "-s"))
        )
    except LookupError as error:
        return {"commit": None, "clean": None, "why": error.args[0]}
    return {"commit": commit, "clean": status == ""}


def _installed_commit(root: Path) -> str:
    try:
        package = distribution("small-bench-nlp")
    except PackageNotFoundError:
        raise LookupError("not from a git checkout") from None
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    if Path(package.locate_file("")).resolve() != root or not commit:
        raise LookupError("not from a git checkout")
    return commit


def _git(root: Path, *words: str) -> str:
    # A checkout of another user, as in a container, is trusted: its code runs here already. What a
    # hook of git tells its commands is of another repository.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    call = ["git", "-c", "safe.directory=*", "-C", str(root), *words]
    try:
        done = subprocess.run(call, capture_output=True, text=True, env=own)
    except OSError:
        raise LookupError("git cannot be run") from None
    if done.returncode:
        raise LookupError(" ".join(done.stderr.split())[:200])
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries the numbers depend on."""
    names = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
