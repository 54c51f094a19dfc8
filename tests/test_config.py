"""Parameters: profiles, notebooks and command lines; every mistake is one clear line."""

import re

import nbformat
import pytest
import yaml
from makers import ROOT

from helpers.base import config
from helpers.base.errors import UserError

PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def test_the_paper_profile_states_the_released_recipe():
    paper = config.load_profile("paper")
    assert paper.pretrain_steps == 1_000_000
    assert paper.pretrain_batch_size == 128
    assert (paper.pretrain_learning_rate, paper.pretrain_warmup) == (5e-4, 0.01)
    assert (paper.wordpiece_vocabulary, paper.bpe_vocabulary) == (30_522, 50_265)


def written(name):
    return yaml.safe_load((ROOT / "profiles" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", PROFILES)
def test_tiny_says_everything_and_another_profile_what_differs(name):
    tiny, values = written("tiny"), written(name)
    assert set(tiny) == set(config.Profile.model_fields) - {"model", "tokenizer_kind"}
    base = config.load_profile(values.pop("base", "tiny")).model_dump()
    if name != "tiny":
        assert not [key for key, value in values.items() if base[key] == value]
    loaded = config.load_profile(name).model_dump()
    assert loaded["profile"] == name
    assert {key: loaded[key] for key in tiny} == {key: base[key] for key in tiny} | values


def test_a_profile_of_ones_own_says_what_differs_and_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("profile: mine\nclip: 2.0\n")
    mine = config.load_profile(str(path), seeds="5")
    assert (mine.profile, mine.clip, mine.seeds) == ("mine", 2.0, [5])
    assert mine.pretrain_steps == written("tiny")["pretrain_steps"]
    path.write_text("profile: mine\nbase: mini\nclip: 2.0\n")
    places = config.layers(str(path), seeds="5", steps=None)
    order = ["tiny.yaml", "cpu.yaml", "mini.yaml", "mine.yaml", "the command line"]
    assert list(places) == order
    assert places["the command line"] == {"seeds": "5"}
    assert config.load_profile(str(path)).finetune_epochs == written("mini")["finetune_epochs"]
    own = tmp_path / "mini.yaml"  # of the same name as its base
    own.write_text("profile: own\nbase: mini\nclip: 3.0\n")
    assert config.load_profile(str(own)).clip == 3.0
    for text, line in [
        (f"profile: mine\nbase: {path}\n", r"mine\.yaml': goes round in a circle"),
        ("profile: mine\nbase: min\n", r"base = 'min': no file min\.yaml; did you mean mini"),
        ("clip: 2.0\n", "profile is missing"),
        ("profile: mine\nclipp: 2.0\n", r"mine\.yaml: clipp is not .*: did you mean clip"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=line):
            config.load_profile(str(path))


@pytest.mark.parametrize("stage", config.NOTEBOOKS)
def test_a_notebook_declares_its_stage_and_the_tiny_profile_or_its_defaults(stage):
    notebook = nbformat.read(ROOT / "notebooks" / f"{stage}.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    declared: dict = {}
    exec(cell.source, declared)
    cls = config.NOTEBOOKS[stage]
    names = set(declared) - {"__builtins__", "__annotations__"}
    assert names == set(cls.model_fields)
    wanted = config.Audit() if cls is config.Audit else config.load_profile("tiny")
    for name in names - {"model", "tokenizer_kind"}:
        assert declared[name] == getattr(wanted, name), name
    for line in cell.source.replace("# fmt: off\n", "").splitlines()[1:]:
        assert re.fullmatch(r"\w+: (str|int|float|bool|list) = .+  # .+", line), line
    config.read(cls, config.load_profile("tiny").model_dump() | declared)


def tiny(**changes):
    return config.load_profile("tiny").stage(config.Pretrain) | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pretrain_step": 3}, "pretrain_step = 3: no stage has.*did you mean pretrain_steps"),
        ({"pretrain_learning_rate": "1e-4"}, "'1e-4'.*write 1.0e-4"),
        ({"pretrain_learning_rate": float("nan")}, "pretrain_learning_rate = nan"),
        ({"rtd_learning_rate": 1.0}, "rtd_learning_rate = 1.0: input should be less than 1"),
        ({"pretrain_batch_size": -1}, "pretrain_batch_size = -1.*greater than or equal to 1"),
        ({"pretrain_steps": True}, "pretrain_steps = True"),
        ({"precision": "fp16"}, "precision = 'fp16'.*'float16'"),
        ({"profile": "../up"}, "profile = '../up'"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(changes, says):
    with pytest.raises(UserError, match=says):
        config.read(config.Pretrain, tiny(**changes))


def test_parameters_are_read_again_beside_names_of_later_cells():
    values = tiny()
    config.read(config.Pretrain, values)
    again = config.read(config.Pretrain, values | {"text": "of a later cell", "pretrain_steps": 7})
    assert again.pretrain_steps == 7


def test_a_missing_parameter_is_named():
    values = tiny()
    del values["clip"]
    with pytest.raises(UserError, match="clip is missing"):
        config.read(config.Pretrain, values)


def test_lists_from_a_command_line():
    profile = config.load_profile("tiny", models="bert, electra", seeds="0 3", tasks="rte")
    assert profile.models == ["bert", "electra"]
    assert profile.seeds == [0, 3]
    assert config.load_profile("tiny", models="bert 2024", tasks="7").models == ["bert", "2024"]
    with pytest.raises(UserError, match=r"tiny\.yaml and the command line: pretrain_steps = 0"):
        config.load_profile("tiny", pretrain_steps=0)
    assert profile.tasks == ["rte"]
    with pytest.raises(UserError, match="each may stand there once"):
        config.load_profile("tiny", seeds="1 1")


def test_data_makes_the_source_a_folder():
    profile = config.load_profile("tiny", data="somewhere")
    assert (profile.source, profile.data) == ("folder", "somewhere")
    with pytest.raises(UserError, match="source folder needs"):
        config.validate(config.Data, profile.stage(config.Data, data=""), "parameter")


def test_data_is_sought_where_the_caller_stands(tmp_path, monkeypatch):
    assert config.load_profile("mini", data="book").data == "book"  # in the checkout
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config.load_profile("mini", data="book").data == str(tmp_path / "book")
