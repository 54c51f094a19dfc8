"""Data and encoders from the Hub: at one commit, whole, gone on with, and without a network."""

import io
import threading

import huggingface_hub
import pandas as pd
import pytest
from makers import make_folder, small_profile

from helpers.base import config
from helpers.base.errors import UserError
from helpers.data import corpus, glue
from helpers.train import foreign

FIRST, SECOND = "a" * 40, "b" * 40
TEXT, GLUE = f"datasets/{corpus.HUB_NAME}", f"datasets/{glue.HUB_NAME}"
SHARD = "plain_text/train-0000{}-of-00003.parquet"


def parquet(**columns):
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


def shards(documents=40, word="document"):
    """Three files of OpenWebText."""
    texts = [[f"{word} {n} of {shard}" for n in range(documents)] for shard in range(3)]
    return {SHARD.format(shard): parquet(text=text) for shard, text in enumerate(texts)}


def tasks(folder, names=("cola", "rte"), **changes):
    """GLUE's files as the Hub names them."""
    make_folder(folder, names, **changes)
    paths = folder.glob("glue/*/*.parquet")
    return {f"{p.parent.name}/{p.stem}-00000-of-00001.parquet": p.read_bytes() for p in paths}


def stage(tmp_path, **changes):
    changes = {"documents": 0, "train_rows": 0, "dev_rows": 0, "source": "hub"} | changes
    return config.Data(**small_profile(tmp_path / "runs").stage(config.Data, **changes))


def no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )


def test_a_corpus_of_the_hub_tells_what_was_read(hub, tmp_path):
    hub.add(TEXT, FIRST, shards() | {"README.md": b"x", "plain_text/test.parquet": b"x"})
    made = corpus.run(stage(tmp_path))
    assert made["documents"] + made["held_out"]["documents"] == 120
    assert made["specification"]["revision"] == FIRST
    assert made["shards"] == [SHARD.format(n) for n in range(3)]
    few = corpus.run(stage(tmp_path / "few", documents=50))
    assert few["shards"] == made["shards"][:2]


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ({"openwebtext.py": b"code"}, r"holds no train\*\.parquet \(.* may end after 5 GB\)"),
        ({SHARD.format(0): b"", SHARD.format(2): b""}, r"1 of 3 files are missing, .*00001-of-"),
    ],
)
def test_a_part_of_the_corpus_is_never_taken_for_it(hub, tmp_path, contents, says):
    hub.add(TEXT, FIRST, contents)
    hub.add(TEXT, "refs/convert/parquet", shards())
    hub.main[TEXT] = FIRST
    with pytest.raises(UserError, match=f"^source = 'hub': {corpus.HUB_NAME} at aaaaaaa: .*{says}"):
        corpus.run(stage(tmp_path))


def test_a_corpus_that_breaks_off_goes_on_from_the_last_whole_file(hub, tmp_path):
    contents = shards(2000)
    hub.add(TEXT, FIRST, contents)
    size = {name: len(content) for name, content in contents.items()}
    last = SHARD.format(2)
    hub.breaks[last] = size[last] // 2
    with pytest.raises(
        UserError, match=f"{last} cannot be fetched: the connection broke .*run it again to go on"
    ):
        corpus.run(stage(tmp_path))
    assert hub.downloads()[SHARD.format(0)] == size[SHARD.format(0)]
    assert not list((tmp_path / "runs").rglob("*.parquet"))
    hub.breaks.clear()
    hub.asked.clear()
    assert len(corpus.run(stage(tmp_path))["shards"]) == 3
    assert set(hub.downloads()) == {last}


def test_what_is_complete_needs_no_network_and_no_newer_commit(hub, tmp_path, monkeypatch, capsys):
    hub.add(TEXT, FIRST, shards())
    hub.add(GLUE, FIRST, tasks(tmp_path / "old"))
    parameters = stage(tmp_path)
    made = corpus.run(parameters), glue.run(parameters, "cola")
    hub.add(TEXT, SECOND, shards(word="newer"))
    hub.add(GLUE, SECOND, tasks(tmp_path / "new", rows=30))
    assert (corpus.run(parameters), glue.run(parameters, "cola")) == made
    assert glue.run(parameters, "rte")["specification"]["revision"] == FIRST  # one for all tasks
    no_network(monkeypatch)
    assert (corpus.run(parameters), glue.run(parameters, "cola")) == made
    again = stage(tmp_path / "another run")
    assert glue.run(again, "cola")["rows"] == made[1]["rows"]  # from the Hub's cache
    assert "no connection to the Hub" in capsys.readouterr().out
    with pytest.raises(UserError, match="mrpc/train"):
        glue.run(again, "mrpc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = stage(tmp_path / "a third")
    assert corpus.run(again)["content"] == made[0]["content"]
    assert "\nHF_HUB_OFFLINE is set; what the Hub's cache here has" in capsys.readouterr().out


def test_a_task_of_the_hub_is_whole(hub, tmp_path):
    contents = tasks(tmp_path / "real", ["mnli"])
    hub.add(GLUE, FIRST, contents)
    assert set(glue.run(stage(tmp_path), "mnli")["rows"]) == set(glue.get("mnli").splits)
    del contents["mnli/validation_mismatched-00000-of-00001.parquet"]
    with pytest.raises(UserError, match=r"holds no mnli/validation_mismatched\*"):
        glue.run(stage(tmp_path / "b"), "mnli")


CAUSES = {
    "no such": (lambda _: (404, {"X-Error-Code": "RepoNotFound"}), "is not on the Hub, or is priv"),
    "gated": (lambda _: (403, {"X-Error-Code": "GatedRepo"}), "is gated: accept its conditions"),
    "no login": (
        lambda _: (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        r"is refused to this login \(401\): log in with `hf auth login`",
    ),
    "no right": (lambda _: (403, {}), r"is refused to this login \(403\): ask its owner"),
    "too often": (lambda _: (429, {}), r"too many requests \(429\): wait some minutes"),
    "out of order": (lambda _: (503, {}), r"the Hub is out of order \(503\): try again later"),
    "no revision": (lambda _: (404, {"X-Error-Code": "RevisionNotFound"}), "has no such revision"),
}


@pytest.mark.parametrize("name", CAUSES)
@pytest.mark.parametrize("after", [0, 1])
def test_the_true_cause_is_told(hub, tmp_path, name, after):
    """Of the first request, and of the one for a file."""
    answer, says = CAUSES[name]
    hub.add(TEXT, FIRST, shards())
    hub.add(GLUE, FIRST, tasks(tmp_path / "real"))
    hub.add("some/encoder", FIRST, {"config.json": b"{}", "model.safetensors": b"x"})
    hub.answer = lambda path: None if after and path.startswith("/api/") else answer(path)
    for call, asked, line in (
        (
            corpus.run,
            stage(tmp_path),
            f"source = 'hub': {corpus.HUB_NAME}.*{says}.*; or give a folder",
        ),
        (
            glue.prepare,
            stage(tmp_path),
            f"source = 'hub': {glue.HUB_NAME}.*{says}.*; or give a folder",
        ),
        (foreign.resolve, "some/encoder", f"model = 'some/encoder': .*{says}.*; or give a folder"),
    ):
        with pytest.raises(UserError, match=line):
            call(asked)


def test_no_answer_and_no_route_are_told(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.data.hub.SECONDS", 0.1)
    hub.answer = lambda path: threading.Event().wait(0.5)
    with pytest.raises(UserError, match="the Hub does not answer in time"):
        corpus.run(stage(tmp_path))
    no_network(monkeypatch)
    for call in (lambda: corpus.run(stage(tmp_path)), lambda: foreign.resolve("some/encoder")):
        with pytest.raises(UserError, match=r"no connection to the Hub.* refused"):
            call()
