"""The page on extending, run as it stands: one entry, and the model is in every table."""

import re

import pytest
from makers import ROOT, shown, small_profile

from helpers.base import config
from helpers.model import registry
from helpers.pages import tables, view
from helpers.train import finetune, objectives, pretrain


def entries():
    page = (ROOT / "book" / "extend.md").read_text(encoding="utf-8")
    return re.findall(r"^REGISTRY\[.*$", page, flags=re.M)


def test_the_entries_of_the_page_are_models(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    assert len(entries()) == 3
    for line in entries():
        exec(line, dict(vars(registry)))
    for name in ("electra-half", "roformer"):
        task = objectives.build(registry.get(name), registry.get_size("tiny"), 100, 32)
        assert registry.count(registry.encoder(task.model)) > 10_000
    assert registry.control("roformer") == "scratch-roformer"


@pytest.mark.slow
def test_the_worked_example_reaches_every_table(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    for line in entries():
        exec(line, dict(vars(registry)))
    profile = small_profile(tmp_path)
    profile.folder.mkdir()
    for name in ("data", "tokenizer"):
        (profile.folder / name).symlink_to(small_run.folder / name)
    wanted = ["roformer", "scratch-roformer"]
    for name in wanted:
        pretrain.run(config.Pretrain(**profile.stage(config.Pretrain, model=name)))
        finetune.run(config.Finetune(**profile.stage(config.Finetune, model=name, tasks=["cola"])))
    run = view.open_run(profile.folder, wanted, ["cola"])
    for frame in (tables.grid(run), tables.run(run), tables.records(run)):
        assert "roformer" in tables.show(frame).to_html()
    assert list(shown(tables.grid(run))[0])[1:] == wanted
