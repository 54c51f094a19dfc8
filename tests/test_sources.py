"""Three sources of data, one interface; every defect is named by file, row and value."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from makers import ROOT, data_stage, make_folder, small_profile

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import corpus, glue
from helpers.score import costs


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "real")


def test_two_processes_that_need_the_same_tasks_make_them_once(tmp_path, folder):
    values = data_stage(tmp_path, folder).model_dump_json()
    program = "import sys; from helpers.base import config; from helpers.data import glue; "
    program += "glue.prepare(config.Data.model_validate_json(sys.argv[1]))"
    line = [sys.executable, "-c", program, values]
    both = [subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    assert [one.wait() or one.stderr.read() for one in both] == [b"", b""]


def test_a_folder_gives_its_rows_and_documents(tmp_path, folder):
    parameters = data_stage(tmp_path, folder)
    made = glue.prepare(parameters)
    assert list(made) == ["cola", "stsb", "rte"]  # GLUE's order; the other five are missing
    assert made["cola"]["rows"] == {"train": 20, "validation": 20}
    assert made["cola"]["reduced"] == ["train", "validation"]
    assert not made["cola"]["complete"]
    written = glue.load(parameters.folder, "cola", "train")
    source = pd.read_parquet(folder / "glue" / "cola" / "train.parquet")
    assert written["sentence"].tolist() == source["sentence"].tolist()
    assert written["label"].tolist() == source["label"].tolist()

    manifest = corpus.run(parameters)
    assert manifest["documents"] + manifest["held_out"]["documents"] == 30
    assert manifest["skipped"] == 2
    texts = pd.read_parquet(folder / "corpus" / "a.parquet")["text"].tolist()[:30]
    held_out = set(corpus.read(parameters.folder / "data" / "corpus" / "held_out"))
    seen = list(corpus.read(parameters.folder / "data" / "corpus"))
    assert seen == [text for text in texts if text not in held_out]


def test_work_is_counted_from_the_folders_own_rows(tmp_path, folder):
    changes = {"source": "folder", "data": str(folder), "train_rows": 0, "seeds": [0]}
    changes |= {"finetune_epochs": 1, "finetune_batch_size": 4}
    profile = small_profile(tmp_path, **changes)
    assert costs.finetuning(profile, "bert", "cola").steps == 5
    piece = folder / "glue" / "cola" / "train.parquet"
    pd.read_parquet(piece).to_parquet(folder / "glue" / "cola" / "train-2.parquet")
    piece = piece.rename(piece.with_name("train-1.parquet"))
    assert costs.finetuning(profile, "bert", "cola").steps == 10
    assert glue.train_rows("hub", "", "cola") == 8551
    assert glue.train_rows("folder", str(folder), "sst2") == 67349  # the folder lacks it
    piece.write_bytes(b"PAR1, and no more")
    assert glue.train_rows("folder", str(folder), "cola") == 8551


def test_complete_means_glues_own_row_counts(tmp_path):
    folder = make_folder(tmp_path / "real", ["rte"])
    for split, rows in glue.get("rte").official_rows.items():
        table = {c: [f"{split} {i}" for i in range(rows)] for c in glue.get("rte").columns}
        table |= {"label": np.arange(rows) % 2, "idx": np.arange(rows)}
        pd.DataFrame(table).to_parquet(folder / "glue" / "rte" / f"{split}.parquet")
    assert glue.prepare(data_stage(tmp_path, folder))["rte"]["complete"]
    capped = glue.prepare(data_stage(tmp_path, folder, train_rows=100))["rte"]
    assert capped["reduced"] == ["train"]
    assert not capped["complete"]


def test_caps_draw_rows_by_seed_and_keep_their_order(tmp_path, folder):
    first = data_stage(tmp_path, folder, train_rows=7)
    glue.run(first, "cola")
    idx = glue.load(first.folder, "cola", "train")["idx"].tolist()
    assert len(idx) == 7
    assert idx == sorted(idx)
    glue.run(data_stage(tmp_path, folder, train_rows=7, world_seed=1), "cola")
    assert glue.load(first.folder, "cola", "train")["idx"].tolist() != idx


def test_prepared_data_is_not_made_again(tmp_path, folder):
    parameters = data_stage(tmp_path, folder)
    for prepare in (corpus.run, lambda p: glue.run(p, "rte")):
        prepare(parameters)
        manifests = sorted(parameters.folder.rglob("manifest.json"))
        before = [path.stat().st_mtime_ns for path in manifests]
        prepare(parameters)
        assert [path.stat().st_mtime_ns for path in manifests] == before


def test_what_is_missing_from_a_folder(tmp_path, folder):
    assert glue.available("folder", str(folder), ["rte", "qqp", "cola"]) == ["rte", "cola"]
    with pytest.raises(
        UserError, match=r"no task of qqp can .* left out: .*train\.parquet: no such"
    ):
        glue.available("folder", str(folder), ["qqp"])
    with pytest.raises(UserError, match="did you mean cola"):
        glue.available("folder", str(folder), ["colla"])
    with pytest.raises(UserError, match="no such folder"):
        corpus.run(data_stage(tmp_path, tmp_path / "nowhere"))


ABOUT = {
    "name": "prose & verse",
    "composition": "letters  of\n forty years\n",
    "licence": "unknown",
    "warnings": ["`Half` in *verse*."],
    "tasks": {"cola": "A tenth of GLUE's train rows."},
}


def test_a_folder_says_what_it_is_and_saying_it_makes_nothing_again(tmp_path, folder):
    parameters = data_stage(tmp_path, folder)
    plain = corpus.run(parameters)
    assert (plain["name"], plain["description"]) == ("folder real/corpus", {})
    written = parameters.folder / "data" / "corpus" / "part-00000.parquet"
    before = written.stat().st_mtime_ns
    (folder / "source.yaml").write_text(yaml.safe_dump(ABOUT))
    told = corpus.run(parameters)
    assert told["name"] == "prose & verse"
    assert told["description"] == ABOUT | {"composition": "letters of forty years"}
    assert told == corpus.run(parameters) == corpus.finished(parameters)
    changed = {"name", "description"}
    assert {key for key in plain if plain[key] != told[key]} == changed
    assert written.stat().st_mtime_ns == before
    (folder / "source.yaml").unlink()
    assert corpus.run(parameters) == plain


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"license": "mine"}, r"license is not a parameter: did you mean .*licence"),
        ({"licence": 4}, r"licence = 4: .*string"),
        ({"name": "x" * 61}, r"name = .*at most 60"),
        ({"name": "<b>x</b>"}, r"name = '<b>x</b>': must be plain text"),
        ({"warnings": "one"}, r"warnings = 'one': .*list"),
        ({"composition": "x " * 600}, r"composition = .*at most 1000"),
        ({"tasks": {"colla": "x"}}, r"tasks.colla: no such folder of glue/; .*cola"),
        ({"tasks": {"cola": ""}}, r"tasks.cola = ''.*at least 1"),
    ],
)
def test_a_broken_description_of_a_folder_is_one_clear_line(tmp_path, folder, change, told):
    (folder / "source.yaml").write_text(yaml.safe_dump(ABOUT | change))
    with pytest.raises(UserError, match=rf"^\S*source.yaml: {told}") as error:
        corpus.run(data_stage(tmp_path, folder))
    assert "\n" not in str(error.value)


# --- what people's folders really hold


def moved(*names):
    """A change of a folder of one file, ``a.parquet``, that leaves it under these names."""

    def change(folder):
        whole = (folder / "a.parquet").read_bytes()
        (folder / "a.parquet").unlink()
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(whole)

    return change


PARTS = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"
TWICE = {
    "a file and its shards": (("train.parquet", *PARTS), "leave one set|leave the one"),
    "shards of two sizes": (("train-00000-of-00001.parquet", *PARTS), "leave one set"),
    "a shard that is missing": (PARTS[1:], "1 of 2 files are missing, the first train-00000-of-"),
}


@pytest.mark.parametrize("name", TWICE)
@pytest.mark.parametrize("place", ["corpus/a.parquet", "glue/cola/train.parquet"])
def test_rows_are_never_read_twice_nor_in_part(tmp_path, folder, place, name):
    names, says = TWICE[name]
    source, parameters = folder / place, data_stage(tmp_path, folder)
    source = source.rename(source.with_name("a.parquet"))
    moved(*names)(source.parent)
    with pytest.raises(UserError, match=says):
        corpus.run(parameters) if place.startswith("corpus") else glue.run(parameters, "cola")


def make_task(folder, **changes):
    """A task of one's own in the columns of CoLA, with its dev rows."""
    place = folder / "tasks" / "three"
    place.mkdir(parents=True)
    about = {"title": "Three", "columns": ["sentence"], "labels": ["no", "yes"]}
    about |= {"metric": "accuracy", "train": "dev.parquet", "validation": "dev.parquet"}
    (place / "task.yaml").write_text(yaml.safe_dump(about | changes))
    rows = pd.read_parquet(folder / "glue" / "cola" / "validation.parquet")
    rows.to_parquet(place / "dev.parquet")
    return place


READ = {
    "a set of shards": moved(*PARTS),
    "the Hub's folder": moved(*(f"plain_text/{name}" for name in PARTS)),
}


@pytest.mark.parametrize("name", READ)
def test_a_corpus_as_the_hub_lays_it_out(tmp_path, folder, name):
    (folder / "corpus" / "._a.parquet").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (folder / "corpus" / ".cache").mkdir()
    (folder / "corpus" / ".cache" / "b.parquet").write_bytes(b"")
    READ[name](folder / "corpus")
    made = corpus.run(data_stage(tmp_path, folder))
    assert made["documents"] + made["held_out"]["documents"] == 60


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.parquet", "b/a.parquet"], r"Parquet files in \./ and b/"),
        (["b/a.parquet", "c/a.parquet"], "Parquet files in b/ and c/"),
        (["partial-train/0000.parquet"], "the Hub converted a part of the data set"),
    ],
)
def test_a_corpus_in_several_folders_or_in_part(tmp_path, folder, names, says):
    moved(*names)(folder / "corpus")
    with pytest.raises(UserError, match=says):
        corpus.run(data_stage(tmp_path, folder))


KINDS = {
    "large": lambda texts: texts.cast(pa.large_string()),
    "views, as polars writes": lambda texts: texts.cast(pa.string_view()),
    "a pandas category": lambda texts: texts.dictionary_encode(),
    "one category": lambda texts: pa.array(["the same"] * len(texts)).dictionary_encode(),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_text_is_read_by_one_rule(tmp_path, folder, monkeypatch, name):
    texts = pa.array([f"document {n} of the corpus" for n in range(20)])
    column, labels = KINDS[name](texts), pa.array([0, 1] * 10)
    pq.write_table(pa.table({"text": column}), folder / "corpus" / "a.parquet")
    place = folder / "glue" / "cola" / "train.parquet"
    table = {"sentence": column, "label": labels.dictionary_encode()}
    pq.write_table(pa.table(table), place)
    (place.parent / "._train-2.parquet").write_bytes(b"Mac OS X")
    parameters = data_stage(tmp_path, folder)
    made = corpus.run(parameters)
    assert made["documents"] + made["held_out"]["documents"] == 20
    glue.run(parameters, "cola")
    read = glue.load(parameters.folder, "cola", "train")
    assert read["sentence"].tolist() == column.to_pylist()
    monkeypatch.setattr(files, "root", lambda: folder)
    named = pa.array(["no", "yes"] * 10).dictionary_encode()
    make_task(folder, train="train.parquet")
    pq.write_table(
        pa.table({"sentence": column, "label": named}), folder / "tasks/three/train.parquet"
    )
    glue.run(parameters, "three")
    assert glue.load(parameters.folder, "three", "train")["label"].tolist() == [0, 1] * 10


def test_a_table_of_text_says_its_row(tmp_path, folder, monkeypatch):
    """A CSV file: digits are text where text is due, and a label that is none is named."""
    parameters = data_stage(tmp_path, folder)
    monkeypatch.setattr(files, "root", lambda: folder)
    place = make_task(folder, train="train.csv") / "train.csv"
    place.write_text("sentence,label\n1984,yes\n2001,no\n")
    glue.run(parameters, "three")
    assert glue.load(parameters.folder, "three", "train")["sentence"].tolist() == ["1984", "2001"]
    place.write_text("sentence,label\n1984,yes\n,no\n2001,no\n")
    assert glue.run(parameters, "three")["rows"]["train"] == 3
    place.write_text("sentence,label\n1984,yes\n2001,nay\n")
    with pytest.raises(UserError, match="row 1: label = 'nay'; it must be one of no, yes"):
        glue.run(parameters, "three")
