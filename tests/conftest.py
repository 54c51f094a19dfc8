"""A small run of the study, made once per session and shared by the tests that only read it."""

import os
import re
import shutil

import pytest
import yaml

os.environ["HF_HUB_OFFLINE"] = "1"
import huggingface_hub.constants
import kills
from makers import FIGURES, LONGER, ROOT, Hub, make_inputs, run_grid, small_profile, write_study

from helpers.base import config, machine
from helpers.train import finetune, pretrain

# `make test` hands its own variables on; a make that a test starts is to have its defaults.
OPTIONS = re.search("^OPTIONS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
for name in [*OPTIONS[1].split(), "MAKEFLAGS", "MAKELEVEL"]:
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def published():
    """Others' figures."""
    return FIGURES


def pytest_xdist_auto_num_workers():
    return machine.cores()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Under `pytest -n`: a file's tests stay in one process, with them all that need the grid.

    Files with slow tests come first, so that no process waits long for another at the end.
    """
    groups = {}
    for item in items:
        needs = set(item.fixturenames)
        name = "whole" if "whole_study" in needs else item.path.stem
        name = "grid" if {"grid", "book"} & needs else name
        item.add_marker(pytest.mark.xdist_group(name))
        groups.setdefault(name, []).append(item)
    ordered = sorted(
        groups.values(), key=lambda g: -sum("slow" in i.keywords or "long" in i.keywords for i in g)
    )
    items[:] = [item for group in ordered for item in group]


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub, played by a server here, and an empty cache; its client does not wait."""
    played, constants = Hub(), huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "ENDPOINT", played.address)
    address = f"{played.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr("time.sleep", lambda _: None)
    yield played
    played.server.shutdown()
    played.server.server_close()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Data, both tokenizers, every model pre-trained, two of them fine-tuned on three tasks."""
    os.chdir(ROOT)
    profile = small_profile(tmp_path_factory.mktemp("runs"))
    make_inputs(profile)
    for model in profile.models:
        pretrain.run(config.Pretrain(**profile.stage(config.Pretrain, model=model)))
    for model in ("roberta", "scratch"):
        finetune.run(
            config.Finetune(
                **profile.stage(
                    config.Finetune, model=model, tasks=["cola", "stsb", "mnli"], seeds=[0]
                )
            )
        )
    return profile


@pytest.fixture
def own_run(small_run, tmp_path):
    """A run of its own over the small run's data and packed corpus, without models."""
    profile = small_profile(tmp_path)
    profile.folder.mkdir()
    for name in ("data", "tokenizer"):
        (profile.folder / name).symlink_to(small_run.folder / name)
    return profile


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    """A small study in a folder of its own: two models, two tasks, then the book.

    Its file of parameters, its parameters, and how its first run ended.
    """
    folder = tmp_path_factory.mktemp("grid")
    path = write_study(folder, "grid")
    # A profile of other workflows on the machine is not read.
    environment = os.environ | {"SNAKEMAKE_PROFILE": str(folder / "not-there")}
    return path, yaml.safe_load(path.read_text()), run_grid(path, env=environment)


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory):
    """A study long enough to be disturbed in each stage: what an undisturbed run of it comes to."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_grid(write_study(folder, **LONGER))
    assert done.returncode == 0, done.stderr[-3000:]
    return kills.outcome(folder / "study")


@pytest.fixture(scope="session")
def book(grid, tmp_path_factory):
    """The pages of the grid's book, in a folder that no other test changes."""
    path, _, done = grid
    assert done.returncode == 0, done.stderr[-3000:]
    html = path.parent / "grid" / "book" / "html"
    return shutil.copytree(html, tmp_path_factory.mktemp("book") / "html")
