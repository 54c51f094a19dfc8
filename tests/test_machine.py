"""What of a machine this process may use, and what is told where the machine does not answer."""

import os
import shutil
import subprocess

import pytest
from makers import ROOT, command

from helpers.base.errors import UserError
from helpers.pages import build
from helpers.train import foreign

CORES = "from helpers.base import machine; print(machine.cores())"
CODE = "from helpers.train import provenance; print(provenance.code())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no process")
def test_cores_are_those_given_and_not_the_machines():
    first = {min(os.sched_getaffinity(0))}
    done = command("-c", CORES, preexec_fn=lambda: os.sched_setaffinity(0, first))
    assert done.stdout.strip() == "1", done.stderr
    slurm = os.environ | {"SLURM_CPUS_ON_NODE": "1"}
    assert command("-c", CORES, env=slurm).stdout.strip() == "1"


def git(*words):
    return subprocess.run(["git", *map(str, words)], check=True, capture_output=True, text=True)


def test_a_checkout_of_another_user_has_its_commit_and_one_without_says_why(tmp_path):
    """As a folder mounted into a container; what a hook tells git is of another repository."""
    code = tmp_path / "code"
    shutil.copytree(ROOT / "helpers", code / "helpers")
    env = {"cwd": code, "env": os.environ | {"GIT_DIR": str(tmp_path / ".git")}}
    assert "'why': 'not from a git checkout'" in command("-c", CODE, **env).stdout
    for folder in (code, tmp_path):
        git("init", "-q", folder)
    assert "'why': 'fatal: " in command("-c", CODE, **env).stdout  # there is none yet
    git("-C", code, "add", "helpers")
    who = ("-c", "user.name=test", "-c", "user.email=test")
    git("-C", code, *who, "commit", "-qm", "copy")
    commit = git("-C", code, "rev-parse", "HEAD").stdout.strip()
    if os.geteuid() == 0:
        for place in (code, *code.rglob("*")):
            os.chown(place, 65534, 65534)
    done = command("-B", "-c", CODE, **env)
    assert done.stdout.strip() == str({"commit": commit, "clean": True}), done.stderr


def test_a_table_is_printed_where_the_locale_lacks_a_sign():
    code = "from helpers.base import errors; errors.run_main(lambda: print('QQP \u2020'))"
    done = command("-c", code, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "QQP \\u2020\n")


def test_a_user_without_a_home_sees_the_book(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(build.Path, "home", nobody)
    assert build.clean(ROOT / "notebooks" / "06_audit.ipynb")


def test_the_home_of_nobody_is_one_line():
    with pytest.raises(UserError, match="path '~nobody-here/encoder': cannot be used"):
        foreign.resolve("~nobody-here/encoder")
