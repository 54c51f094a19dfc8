"""Entries of the leaderboard: what holds, what is refused, and with which line."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from bs4 import BeautifulSoup
from makers import (
    FIGURES,
    ROOT,
    SEEDS,
    SIZE,
    TASKS,
    TOKENS,
    claimed,
    command,
    make_record,
    paired_bootstrap,
    run_page,
    statement,
)
from safetensors.numpy import save_file
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, matthews_corrcoef

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.leaderboard import check, ranking, submit
from helpers.score import predictions
from helpers.score.predictions import Labels
from helpers.train import records


def reference(task, predicted, labels):
    """The headline score x 100 by scikit-learn and SciPy alone."""
    if task == "stsb":
        return 100 * spearmanr(predicted, labels).statistic
    if task == "cola":
        return 100 * matthews_corrcoef(labels, predicted)
    return 100 * accuracy_score(labels, predicted)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dev sets of GLUE's row counts, with labels of this test's own; MRPC has its own numbers."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, task in glue.TASKS.items():
        rows = task.official_rows[task.validation]
        values = {column: ["text"] * rows for column in task.columns}
        values["label"] = (
            rng.integers(0, len(task.labels), rows)
            if task.labels
            else rng.uniform(0, 5, rows).astype("float32")
        )
        values["idx"] = np.arange(rows) * (10 if name == "mrpc" else 1)
        path = folder / "glue" / name / f"{task.validation}.parquet"
        path.parent.mkdir(parents=True)
        pd.DataFrame(values).to_parquet(path)
    return folder


@pytest.fixture(scope="module")
def labels(data):
    return predictions.read_labels(data)


def predict(task, dev, seed, quality=0.8):
    rng = np.random.default_rng([seed, TASKS.index(task), int(100 * quality)])
    if not glue.TASKS[task].labels:
        return np.clip(dev.label + rng.normal(0, 1.5 - quality, len(dev.label)), 0, 5)
    wrong = rng.random(len(dev.label)) > quality
    return np.where(wrong, (dev.label + 1) % len(glue.TASKS[task].labels), dev.label)


def write_statement(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
    (folder / "submission.yaml").write_text(text, encoding="utf-8")


def write_runs(folder, labels, model="electra", with_records=True, quality=0.8, **changes):
    """Predictions and records of each task and seed; scores of the seeds by the reference."""
    scores = {}
    for name, task in glue.TASKS.items():
        dev, scores[name] = labels.dev[name], []
        (folder / name).mkdir(parents=True)
        for seed in SEEDS:
            path = folder / name / f"seed-{seed}.parquet"
            values = predict(name, dev, seed, quality)
            columns = {"split": task.validation, "idx": dev["idx"], "prediction": values}
            pd.DataFrame(columns).to_parquet(path, index=False)
            scores[name].append(reference(name, values, dev["label"]))
            facts = {"complete": True, "reduced": [], "rows": task.official_rows}
            facts |= {"predictions": files.sha256(path), "score": scores[name][-1]}
            record = make_record(model, name, seed, "hub", **facts) | changes
            if with_records:
                path.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
    return scores


def make_entry(folder, labels, with_records=True, selection="mean", quality=0.8):
    """An entry as other code would write it, its scores by the reference."""
    runs = write_runs(folder, labels, with_records=with_records, quality=quality)
    choose = {"mean": np.mean, "best": np.max}[selection]
    scores = {task: round(float(choose(values)), 2) for task, values in runs.items()}
    write_statement(folder, statement(folder.name, scores, selection))


@pytest.fixture(scope="module")
def made(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("leaderboard") / "mine"
    make_entry(folder, labels)
    return folder


@pytest.fixture
def entry(tmp_path, made):
    return shutil.copytree(made, tmp_path / "leaderboard" / "mine")


def stated(folder):
    return yaml.safe_load((folder / "submission.yaml").read_text(encoding="utf-8"))


def one_error(folder, labels=None):
    found = check.check_entry(folder, FIGURES, labels or Labels())
    assert "\n" not in found.error
    return found.error


# --- the published rows


def test_the_published_rows_are_entries_with_every_figure_as_published():
    rows = FIGURES["table1"]["models"]
    checked = check.check(ROOT / "leaderboard", FIGURES, Labels())
    found = {e.stated.published.row: e for e in checked}
    assert set(found) == set(rows)
    for key, row in rows.items():
        file = stated(ROOT / "leaderboard" / found[key].name)
        assert file["title"] == row["name"]
        assert file["scores"] == {t: figure["value"] for t, figure in row["scores"].items()}
        assert file["average"] == row["average"]["value"]
        total, millions = file["parameters"]["total"], row["parameters_millions"]["value"]
        assert (total and total / 1e6) == millions
        assert row["statistic"]["value"].startswith(file["protocol"]["selection"])
        assert file["published"]["source"] == row["average"]["source"]
        assert file["link"] in {source["url"] for source in FIGURES["sources"].values()}
        assert found[key].level == "claimed"
    tokens = {k: e.stated.tokens for k, e in found.items() if e.stated.tokens}
    owt = next(p for p in FIGURES["quality_per_compute"] if p["method"] == "ELECTRA-Small-OWT")
    assert tokens == {"electra": round(owt["tokens_billions"] * 1e9)}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"average": 78.375}, r"average = 78.375: must have at most 2 decimals"),
        (
            {"protocol": {"selection": "median", "seeds": None, "n": None, "rule": 1}},
            r"protocol\.selection = 'median': results/published\.json has 'best'",
        ),
        ({"title": "Better"}, r"title = 'Better': results/published.json has 'BERT'"),
        ({"published": {"source": "leaderboard", "row": "bart"}}, r"row = 'bart': did you mean"),
    ],
)
def test_a_published_row_is_what_was_published(tmp_path, change, line):
    folder = tmp_path / "paper-bert"
    write_statement(folder, stated(ROOT / "leaderboard" / "paper-bert") | change)
    assert re.search(line, one_error(folder))


# --- what is stated


def nested(field, **changes):
    return lambda values: values | {field: {**values[field], **changes}}


def text(old, new):
    return lambda values: yaml.safe_dump(values, sort_keys=False).replace(old, new, 1)


def mean_with(values, **scores):
    return round(float(np.mean(list((values["scores"] | scores).values()))), 2)


BAD_STATEMENTS = {
    "decimals": (nested("scores", cola=45.123), r"scores\.cola = 45\.123: must have at most 2"),
    "average": (
        lambda v: v | {"average": 99.0},
        r"average = 99\.0: the plain mean .* is \d\d\.\d\d",
    ),
    "seed twice": (
        nested("protocol", seeds=[0, 1, 1]),
        r"protocol\.seeds = \[0, 1, 1\]: each seed may stand there once",
    ),
    "number of seeds": (nested("protocol", n=4), r"protocol\.n = 4: 3 seeds are listed"),
    "too large": (
        nested("parameters", encoder=24_990_000),
        r"parameters = 25002345: the class has at most 25000000",
    ),
    "total": (nested("parameters", total=5), r"parameters\.total = 5: encoder and embeddings make"),
    "fact left open": (lambda v: v | {"licence": None}, r"licence = null: only a published row"),
    "HTML": (lambda v: v | {"authors": ["<b>x</b>"]}, r"authors\.0 = '<b>x</b>': must be plain"),
    "line break": (lambda v: v | {"corpus": "a\nb"}, r"corpus = 'a\\nb': must be plain text"),
    "script": (lambda v: v | {"link": "javascript:alert(1)"}, r"link = 'javascript.* https://"),
    "link's end": (lambda v: v | {"link": "https://a.org/) <i>"}, r"link = .* without spaces"),
    "path traversal": (lambda v: v | {"name": "../mine"}, r"name = '\.\./mine': string should"),
    "another folder": (lambda v: v | {"name": "other"}, r"name = 'other': must be .*'mine'"),
    "impossible": (
        lambda v: v | {"scores": {**v["scores"], "rte": 70.0}, "average": mean_with(v, rte=70.0)},
        r"scores\.rte = 70\.0: no count of right answers out of 3 x 277 gives it",
    ),
    "aliases": (text("decimals: 2", "decimals: &a 2\nx: *a"), r"line \d+: aliases are not read"),
    "tag": (text("decimals: 2", "decimals: !!python/object:os.x 2"), r"not YAML as read here"),
    "huge": (lambda v: "# " + "x" * 70_000, r"size = 70002 bytes: at most 65536 are read"),
}


@pytest.mark.parametrize("case", BAD_STATEMENTS)
def test_a_bad_statement_is_one_line(tmp_path, made, case):
    change, line = BAD_STATEMENTS[case]
    folder = tmp_path / "mine"
    write_statement(folder, change(stated(made)))
    error = one_error(folder)
    assert error.startswith(f"{folder}/submission.yaml: ")
    assert re.search(line, error), error


def test_an_entry_is_a_folder_with_plain_files_and_a_plain_name(tmp_path, made):
    for name in ("a\nb", "{x}", "a b"):
        folder = tmp_path / name
        write_statement(folder, stated(made))
        assert one_error(folder).startswith(f"{tmp_path}: {name!r}: an entry is a folder, no link")
    (tmp_path / "linked").symlink_to(made)
    assert "'linked': an entry is a folder, no link" in one_error(tmp_path / "linked")
    (tmp_path / "mine").mkdir()
    missing = f"{tmp_path}/mine/submission.yaml: no such file or directory"
    assert one_error(tmp_path / "mine") == missing
    os.mkfifo(tmp_path / "mine" / "submission.yaml")
    assert one_error(tmp_path / "mine").endswith("submission.yaml: is no plain file")


def test_parts_of_counts_are_possible_for_means_and_for_the_median_of_an_even_number(
    tmp_path, made
):
    values, half, third = stated(made), 200.5, 200 + 1 / 3
    for selection, seeds, count, fine in (
        ("median", [0, 1, 2], half, False),
        ("median", [0, 1], half, True),
        ("mean", [0, 1, 2], third, True),
        ("mean", [0, 1], third, False),
        ("best", [0, 1, 2], third, False),
    ):
        values["scores"]["rte"] = round(100 * count / 277, 2)
        values["average"] = mean_with(values)
        values["protocol"] |= {"selection": selection, "seeds": seeds, "n": len(seeds)}
        write_statement(tmp_path / "mine", values)
        assert ("scores.rte" not in one_error(tmp_path / "mine")) is fine


def test_a_name_or_title_belongs_to_one_entry(entry):
    other = shutil.copytree(entry, entry.with_name("other"))
    write_statement(other, stated(entry) | {"name": "other"})
    big = shutil.copytree(entry, entry.with_name("MINE"))
    write_statement(big, stated(entry) | {"name": "MINE", "title": "Third"})
    (entry.parent / ".DS_Store").write_bytes(b"macOS")
    found = {e.name: e.error for e in check.check(entry.parent, FIGURES, Labels())}
    assert set(found) == {"MINE", "mine", "other"}
    assert found["MINE"] == ""
    assert found["mine"].endswith("name = 'mine': is MINE's; each entry has its own")
    assert "title = 'Model mine': is mine's" in found["other"]


# --- predictions and records


def edit(change, task="rte", seed=0):
    """Changes one file of predictions; the record beside it goes, for its hash is another's."""

    def apply(folder):
        path = folder / task / f"seed-{seed}.parquet"
        change(pd.read_parquet(path)).to_parquet(path, index=False)
        path.with_suffix(".json").unlink()

    return apply


def assign(row, column, value):
    def change(table):
        table.loc[row, column] = value
        return table

    return change


def record(task="rte", seed=0, /, **changes):
    def apply(folder):
        path = folder / task / f"seed-{seed}.json"
        values = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps(values), encoding="utf-8")

    return apply


def not_a_number(folder):
    """A NaN that is one: pandas would write a null."""
    path = folder / "stsb" / "seed-0.parquet"
    table = pq.read_table(path)
    values = table["prediction"].to_numpy().copy()
    values[3] = np.nan
    pq.write_table(table.set_column(2, "prediction", pa.array(values, from_pandas=False)), path)
    path.with_suffix(".json").unlink()


def put(name, content=b""):
    def apply(folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    return apply


def link(name, target):
    def apply(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return apply


TRIAL = {"rate": 1e-4, "epochs": 3, "train_rows": 9, "held_out_rows": 9, "score": 5.0, "note": ""}

BAD_FILES = {
    "row missing": (edit(lambda t: t[:-1]), r"rte/seed-0\.parquet: validation has 276 rows: .*277"),
    "row added": (
        edit(lambda t: t.iloc[[0, *range(277)]]),
        r"seed-0\.parquet: 278 rows: GLUE's dev",
    ),
    "id twice": (edit(assign(5, "idx", 4)), r"validation, row 5: idx = 4: row numbers are GLUE's"),
    "id unknown": (edit(assign(276, "idx", 999)), r"validation, row 276: idx = 999: row numbers"),
    "own numbers shuffled": (
        edit(assign(7, "idx", 0), "mrpc"),
        r"mrpc/seed-0\.parquet: validation, row 7: idx = 0: .* each once, in ascending order",
    ),
    "unknown class": (edit(assign(3, "prediction", 2)), r"row 3: prediction = 2: must be 0 to 1"),
    "NaN": (edit(assign(3, "prediction", np.nan), "stsb"), r"prediction = null: every row needs"),
    "not a number": (not_a_number, r"stsb/seed-0\.parquet: row 3: prediction = nan: must be -5"),
    "off the scale": (
        edit(assign(3, "prediction", 11.0), "stsb"),
        r"prediction = 11\.0: must be -5",
    ),
    "classes as numbers": (
        edit(lambda t: t.astype({"prediction": "float64"})),
        r"seed-0\.parquet: prediction is double: must be int64",
    ),
    "labels among them": (
        edit(lambda t: t.assign(label=1)),
        r"columns = 'split, idx, prediction, label': must be split, idx, prediction",
    ),
    "another split": (edit(assign(0, "split", "test")), r"split = 'test': must be validation"),
    "not Parquet": (put("rte/seed-0.parquet", b"PAR1 no"), r"rte/seed-0\.json: predictions = "),
    "huge file": (put("rte/seed-0.parquet", bytes(5_000_000)), r"size = 5000000 bytes: at most 41"),
    "seed not stated": (put("rte/seed-9.parquet"), r"rte/seed-9\.parquet: seed 9 is not in"),
    "seed missing": (
        lambda folder: [path.unlink() for path in (folder / "rte").glob("seed-1.*")],
        r"rte/seed-1\.parquet: missing, of protocol\.seeds",
    ),
    "unknown task": (put("wnli/seed-0.parquet"), r"'wnli': not part of an entry: .*did you mean"),
    "another file": (put("rte/model.bin"), r"rte: 'model\.bin': not part of an entry"),
    "hidden file": (put(".gitmodules"), r"'\.gitmodules': not part of an entry"),
    "link": (link("rte/seed-0.parquet", "/etc/passwd"), r"'seed-0\.parquet': .* no links"),
    "linked folder": (
        lambda f: (f / "rte").symlink_to((f / "rte").rename(f.with_name("elsewhere"))),
        r"mine: 'rte': not part of an entry: .* folders without links",
    ),
    "record alone": (put("rte/seed-9.json", b"{}"), r"rte/seed-9\.json: has no predictions"),
    "hash": (record(predictions="0" * 64), r"predictions = '0{64}': its place and predictions say"),
    "another's place": (record("sst2", task="rte"), r"sst2/seed-0\.json: task = 'rte': its place"),
    "record's field": (record(profile=3), r"rte/seed-0\.json: profile = 3: input should be"),
    "embedded": (record(source="embedded"), r"source = 'embedded': the embedded world is not GLUE"),
    "reduced": (
        record(complete=False, reduced=["train"]),
        r"complete = false: train reduced; the leaderboard takes scores on GLUE's own",
    ),
    "reduced rows": (
        record(rows={"train": 2490, "validation": 100}),
        r"rte/seed-0\.json: rows\.validation = 100: GLUE's has 277",
    ),
    "two models": (
        record("rte", 1, model="bert"),
        r"rte/seed-1\.json: model = 'bert': other records have 'electra'",
    ),
    "two pre-trainings": (
        record(hashes={"data": {}, "encoder": {"model.safetensors": "1" * 64}, "corpus": "0" * 64}),
        r"rte/seed-0\.json: hashes\.encoder = .*: other records have .*; an entry is one pre-tr",
    ),
    "tuned in part": (
        record(protocol="tuned", trials=[TRIAL]),
        r"rte/seed-0\.json: trials > 0 = True: other records have False",
    ),
    "tuned by hand": (
        record("rte", parameters={"seeds": [5]}),
        r"rte/seed-0\.json: parameters\.seeds = \[5\]: other records have \[0, 1\]",
    ),
    "deep record": (put("rte/seed-0.json", b"[" * 100_000), r"rte/seed-0\.json: "),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line(entry, case):
    change, line = BAD_FILES[case]
    change(entry)
    error = one_error(entry)
    assert error.startswith(str(entry))
    assert re.search(line, error), error


def test_a_file_that_unpacks_to_much_is_not_read(entry):
    path = entry / "rte" / "seed-0.parquet"
    table = pd.read_parquet(path)
    table["split"] = [f"{i:09d}" * 20_000 for i in range(len(table))]
    table.to_parquet(path, index=False, compression="zstd")
    path.with_suffix(".json").unlink()
    assert path.stat().st_size < check.FILE_LIMIT
    assert "unpacked size = " in one_error(entry)


def test_a_long_text_repeated_in_every_row_takes_its_memory_once(entry):
    path = entry / "qqp" / "seed-0.parquet"
    table = pq.read_table(path)
    long = pa.DictionaryArray.from_arrays(np.zeros(len(table), "int32"), ["x" * 1_000_000])
    pq.write_table(table.set_column(0, "split", long), path, compression="zstd")
    path.with_suffix(".json").unlink()
    assert path.stat().st_size < check.FILE_LIMIT
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        assert f"split = '{'x' * 40}': must be validation" in one_error(entry)
    finally:
        pa.set_memory_pool(usual)
    assert 2**20 < pool.max_memory() < 2**28
    pq.write_table(table, path, use_dictionary=False, column_encoding={"split": "DELTA_BYTE_ARRAY"})
    assert "encoding = DELTA_BYTE_ARRAY: is not read" in one_error(entry)


def test_size_and_tokens_are_those_of_the_records(entry):
    write_statement(entry, stated(entry) | {"tokens": 1})
    assert f"tokens = 1: the records say {TOKENS}" in one_error(entry)


# --- levels


def test_levels_are_granted_by_what_was_verified(entry, labels):
    found = check.check_entry(entry, FIGURES, labels)
    assert (found.error, found.level, found.undone) == ("", "recorded", ())
    assert found.average == pytest.approx(stated(entry)["average"], abs=0.01)
    for task in TASKS:
        dev = labels.dev[task]
        runs = [reference(task, predict(task, dev, seed), dev.label) for seed in SEEDS]
        assert found.means[task] == pytest.approx(np.mean(runs), abs=1e-9)
        assert found.predictions[task].shape == (len(SEEDS), len(dev.idx))

    record("rte", 2, code={"commit": None, "clean": None})(entry)
    found = check.check_entry(entry, FIGURES, labels)
    assert found.level == "recomputed"
    assert found.undone == ("not recorded: 1 of 24 records missing or without a commit",)

    found = check.check_entry(entry, FIGURES, Labels())
    assert (found.error, found.level) == ("", "claimed")
    assert found.undone == ("scores not recomputed: no dev labels at hand (--data folder)",)

    for path in entry.glob("*/*"):
        path.unlink()
    found = check.check_entry(entry, FIGURES, labels)
    assert (found.error, found.level) == ("", "claimed")
    assert found.undone == ("scores not recomputed: no predictions",)


def test_a_level_needs_the_labels_of_all_eight(entry, labels):
    some = {task: dev for task, dev in labels.dev.items() if task != "qqp"}
    short = Labels(some, {"qqp": "5,000 rows, GLUE's dev set has 40,430"})
    found = check.check_entry(entry, FIGURES, short)
    assert (found.error, found.level) == ("", "claimed")
    assert found.undone == ("scores not recomputed on qqp: 5,000 rows, GLUE's dev set has 40,430",)
    assert found.average == stated(entry)["average"]


def test_a_score_that_does_not_follow_is_refused(entry, labels):
    values = stated(entry)
    task, dev = "cola", labels.dev["cola"]
    runs = [reference(task, predict(task, dev, seed), dev.label) for seed in SEEDS]
    values["scores"]["cola"] = round(values["scores"]["cola"] + 0.02, 2)
    values["average"] = mean_with(values)
    write_statement(entry, values)
    line = f"scores.cola = {values['scores']['cola']}: its fine-tunings give {np.mean(runs):.4f}"
    assert f"{line}, mean of 3" in one_error(entry)
    (entry / "cola" / "seed-0.json").unlink()
    assert one_error(entry) == ""
    assert f"{line}, mean of 3" in one_error(entry, labels)
    record("cola", 1, score=12.5)(entry)
    assert "cola/seed-1.json: score = 12.5: the predictions give" in one_error(entry, labels)


def test_rows_of_another_dev_set_are_refused(entry, labels):
    dev = labels.dev["mrpc"]
    shifted = Labels(labels.dev | {"mrpc": dev.assign(idx=dev["idx"] + 1)})
    line = "mrpc/seed-0.parquet, validation: row 0 is example 0, it must be 1"
    assert line in one_error(entry, shifted)


def test_the_best_of_several_is_ranked_by_its_mean(tmp_path, labels, made):
    folder = tmp_path / "best"
    make_entry(folder, labels, with_records=False, selection="best")
    found = check.check_entry(folder, FIGURES, labels)
    assert (found.error, found.level) == ("", "recomputed")
    assert found.stated.average > found.average
    assert found.average == check.check_entry(made, FIGURES, labels).average
    shown = ranking.table([found], FIGURES, labels)
    assert list(shown["statistic"]) == ["mean of 3 (best claimed)"]


def test_labels_that_are_not_glues_are_not_used(tmp_path, data):
    folder = shutil.copytree(data, tmp_path / "data")
    path = folder / "glue" / "rte" / "validation.parquet"
    pd.read_parquet(path)[:100].to_parquet(path)
    shutil.rmtree(folder / "glue" / "cola")
    files.write_json(folder / "glue" / "sst2" / "manifest.json", {"source": "embedded"})
    found = predictions.read_labels(folder)
    assert found.absent == {
        "cola": "no labels",
        "sst2": "embedded world",
        "rte": "100 rows, GLUE's dev set has 277",
    }
    assert set(found.dev) == set(TASKS) - set(found.absent)
    with pytest.raises(UserError, match="has no folder glue/"):
        predictions.read_labels(tmp_path / "none")


def test_mnli_may_hold_its_mismatched_rows(entry, labels):
    def longer(table):
        rows = glue.TASKS["mnli"].official_rows["validation_mismatched"]
        more = {"split": "validation_mismatched", "idx": np.arange(rows), "prediction": 0}
        return pd.concat([table, pd.DataFrame(more)])

    edit(longer, "mnli")(entry)
    found = check.check_entry(entry, FIGURES, labels)
    assert (found.error, found.level) == ("", "recomputed")
    path = entry / "mnli" / "seed-0.parquet"
    pd.read_parquet(path)[:-1].to_parquet(path, index=False)
    assert "validation_mismatched has 9831 rows: GLUE's has 9832" in one_error(entry)


# --- an entry from a run


def make_run(folder, labels, model="electra", **changes):
    cuda = {"device": "cuda", "name": "NVIDIA V100", "threads": 1, "repeatable": False}
    here = folder / "records" / model
    write_runs(here, labels, model, pretrain_hardware=cuda, **changes)
    for cell in here.iterdir():
        files.write_manifest(cell, {"spec": ""}, sorted(path.name for path in cell.glob("seed-*")))
    encoder = folder / "models" / model / "encoder"
    encoder.mkdir(parents=True)
    tensors = {
        "electra.embeddings.word_embeddings.weight": np.zeros((100, 8), "float32"),
        "electra.embeddings.LayerNorm.bias": np.zeros(8, "float32"),
        "electra.embeddings_project.weight": np.zeros((8, 8), "float32"),
    }
    save_file(tensors, encoder / "model.safetensors")
    return folder


ABOUT = {"link": "https://example.org/m", "authors": ["A. Author"], "licence": "MIT"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, labels):
    return make_run(tmp_path_factory.mktemp("runs") / "paper", labels)


def test_an_entry_made_from_a_run_passes_as_it_is(tmp_path, finished, labels):
    out = tmp_path / "leaderboard" / "mine"
    submit.submit(finished, "electra", out, ABOUT, FIGURES)
    (found,) = check.check(out.parent, FIGURES, labels)
    assert (found.error, found.level) == ("", "recorded")
    assert found.stated.parameters.embeddings == 808
    assert found.stated.parameters.both == SIZE
    hardware = {"device": "NVIDIA V100", "gpus": 1, "hours": 0.017}
    assert found.stated.hardware.model_dump() == hardware
    assert found.stated.protocol.seeds == SEEDS
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="is there already"):
        submit.submit(finished, "electra", out, ABOUT, FIGURES)


@pytest.mark.parametrize(
    ("model", "about", "line"),
    [
        (
            "electra",
            {},
            r"about .*: link is missing \(.*\); authors is missing; licence is",
        ),
        ("electra", ABOUT | {"average": 99.0}, r"about: average is not one of its fields"),
        ("electra", ABOUT | {"hardware": {"gpus": 8}}, r"hardware\.gpus = 8: input should be 1"),
        ("electra", ABOUT | {"title": "<i>"}, r"title = '<i>': must be plain text"),
        ("bert", ABOUT, r"records/bert: no finished records"),
    ],
)
def test_what_is_missing_for_an_entry_is_one_line(tmp_path, finished, model, about, line):
    out = tmp_path / "leaderboard" / "mine"
    with pytest.raises(UserError, match=line):
        submit.submit(finished, model, out, about, FIGURES)
    assert list(tmp_path.rglob("*")) in ([], [out.parent])


def test_an_entry_of_weights_from_elsewhere_says_what_is_known(tmp_path, labels):
    given = {"source": "some/encoder", "commit": "c" * 40, "weights": "d" * 64}
    about = {"model_type": "electra", "positions": 512, "shared_layers": False}
    changes = {
        "checkpoint": given | about,
        "pretrain": dict.fromkeys(records.Pretraining.model_fields) | {"parameters": SIZE},
        "pretrain_code": {"commit": None, "clean": None},
        "protocol": "tuned",
        "trials": [TRIAL] * 8,
    }
    run = make_run(tmp_path / "run", labels, "some--encoder@cccccccc", **changes)
    out, name = tmp_path / "leaderboard" / "theirs", "some--encoder@cccccccc"
    with pytest.raises(UserError, match=r"corpus is missing .*; hardware is missing"):
        submit.submit(run, name, out, ABOUT, FIGURES)
    theirs = {"corpus": "not known", "hardware": {"device": "V100", "gpus": 1, "hours": None}}
    submit.submit(run, name, out, ABOUT | theirs, FIGURES)
    make_entry(out.parent / "mine", labels, quality=0.9)
    found = {entry.name: entry for entry in check.check(out.parent, FIGURES, labels)}
    entry = found["theirs"]
    assert (entry.error, entry.level) == ("", "recorded")
    assert entry.stated.checkpoint.model_dump() == given
    assert (entry.stated.tokens, entry.stated.protocol.trials) == (None, 8)
    # Tuned and not tuned have a rank each, and no difference between them is given.
    frame = ranking.table(found.values(), FIGURES, labels)
    assert frame["rank"].tolist() == ["1", "1"]
    assert frame["difference"].isna().all()
    assert frame["statistic"].tolist() == ["mean of 3", "mean of 3, tuned by 8 trials"]
    # What is stated must be what the records say.
    values = stated(out)
    for checkpoint, line in ((given | {"weights": "e" * 64}, "the records say"), (None, "null")):
        write_statement(out, values | {"checkpoint": checkpoint})
        assert line in one_error(out)
    write_statement(out, values | {"protocol": values["protocol"] | {"trials": 0}})
    assert "protocol.trials = 0: the records say 8" in one_error(out)


def test_an_entry_has_the_same_seeds_for_all_tasks(tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    here = run / "records" / "electra" / "rte"
    files.write_manifest(here, {"spec": ""}, ["seed-0.json", "seed-0.parquet"])
    with pytest.raises(UserError, match=r"seeds of rte: \[0\], of cola: \[0, 1, 2\]"):
        submit.submit(run, "electra", tmp_path / "mine", ABOUT, FIGURES)
    # Nor of other scores than GLUE's.
    path = here / "seed-0.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"hub"', '"embedded"'), "utf-8")
    files.write_manifest(here, {"spec": ""}, ["seed-0.json", "seed-0.parquet"])
    with pytest.raises(UserError, match="the embedded world is not GLUE"):
        submit.submit(run, "electra", tmp_path / "mine", ABOUT, FIGURES)


# --- the ranking and its page


def test_ranks_are_within_a_level_and_ties_are_shown(labels):
    recomputed = check.Entry(
        "r", "", claimed("r", 60.0).stated, "recomputed", means=dict.fromkeys(TASKS, 60.0)
    )
    entries = [claimed("a", 80.0), claimed("b", 85.0), claimed("c", 80.0), recomputed]
    order = ranking.ranked(entries)
    assert [entry.name for entry in order] == ["r", "b", "a", "c"]
    assert ranking.ranks(order) == ["1", "1", "=2", "=2"]


NOISE = 1.96 * np.sqrt(2) * 0.3174
BEST = 1.02  # of each task's best of ten, in points of the average


@pytest.mark.parametrize(
    ("ahead", "upper_is", "lower_is", "ground"),
    [
        (NOISE + 0.01, "median", "median", ""),
        (NOISE - 0.01, "best", "best", ranking.NOISE),
        (NOISE + 0.01, "best", "best", ""),
        (NOISE - 0.01, "best", "median", ranking.NOISE),
        (NOISE + BEST - 0.05, "best", "median", ranking.KIND),
        (NOISE + BEST + 0.05, "best", "median", ""),
        (NOISE - BEST + 0.05, "median", "best", ""),
    ],
)
def test_neighbours_without_predictions_are_told_apart_by_simulated_noise(
    ahead, upper_is, lower_is, ground
):
    pair = [
        claimed("a", round(70 + ahead, 2), upper_is, seeds=list(range(10))),
        claimed("b", 70.0, lower_is, seeds=list(range(10))),
    ]
    found = ranking.gap(*pair, FIGURES, Labels())
    assert found.difference == pytest.approx(ahead, abs=0.006)
    assert found.ground == ground
    if ground:
        worth = BEST * (upper_is == "best" and lower_is == "median")
        assert found.low == pytest.approx(NOISE + worth, abs=0.03)


def test_neighbours_with_predictions_are_compared_over_rows_and_seeds(
    tmp_path, labels, monkeypatch
):
    monkeypatch.setattr(ranking, "RESAMPLES", 100)
    for name, quality in (("a", 0.8), ("b", 0.79), ("c", 0.5)):
        make_entry(tmp_path / name, labels, with_records=False, quality=quality)
    first, second, last = ranking.ranked(check.check(tmp_path, FIGURES, labels))
    truth = {task: dev["label"].to_numpy() for task, dev in labels.dev.items()}
    near, far = (ranking.gap(*pair, FIGURES, labels) for pair in ((first, second), (second, last)))
    wanted = paired_bootstrap(first.predictions, second.predictions, truth, resamples=100, seed=0)
    assert (near.low, near.high) == (wanted.low, wanted.high)
    assert (near.ground == "") == wanted.resolved
    assert far.ground == ""
    assert near.difference == pytest.approx(first.average - second.average)
    single = {task: runs[:1] for task, runs in last.predictions.items()}
    assert ranking.gap(second, replace(last, predictions=single), FIGURES, labels).ground == (
        ranking.ONE_SEED
    )


def test_the_page_of_the_repository_shows_every_row_and_dash():
    page = run_page("leaderboard")
    shown = BeautifulSoup(page.shown[1].to_html(), "html.parser")
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in shown.select("tbody tr")]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    names = ["ELECTRA-DeBERTa", "ELECTRA", "DeBERTa", "BERT", "RoBERTa"]
    assert [row[1] for row in rows] == names
    assert {row[2] for row in rows} == {"claimed"}
    close = "{}, not told apart".format
    assert [row[5] for row in rows] == [close(1.17), "1.33", close(0.66), close(0.04), "–"]
    assert rows[1][4] == "median"
    facts = {row["Model"]: row for row in page.names["about"]}
    assert facts["DeBERTa"]["Parameters, M"] is None
    assert facts["RoBERTa"]["Parameters, M"] == "22.38"
    assert facts["ELECTRA"]["Tokens, G"] == "16.4"
    assert facts["BERT"]["Hours"] is facts["BERT"]["Seeds"] is None


# --- command line


def test_the_command_line_checks_and_names_what_is_wrong(entry):
    bad = shutil.copytree(entry, entry.with_name("worse"))
    (bad / "notes.txt").write_text("x", encoding="utf-8")
    done = command("-m", "helpers.study.cli", "check", "--folder", entry.parent)
    assert (done.returncode, done.stderr) == (1, "")
    first, second, last = done.stdout.splitlines()
    assert first == ("mine: claimed; scores not recomputed: no dev labels at hand (--data folder)")
    assert second.startswith(f"error: {bad}/submission.yaml: name = 'mine'")
    assert last == "2 entries, 1 refused"
