"""From files back to figures: whatever was changed afterwards is named."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from makers import make_run

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import glue, metrics
from helpers.pages import comparisons, tables, view
from helpers.pages import verify as verifier
from helpers.score import predictions
from helpers.train import records

MODELS, TASKS = ["bert", "scratch"], ["cola", "stsb", "mnli"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run whose records tell what its predictions give, with its tables."""
    run = tmp_path_factory.mktemp("whole") / "run"
    make_run(run / "records", models=MODELS, tasks=TASKS)
    make_run(run / "records", models=["bag-of-words"], tasks=TASKS, seeds=[0])
    for path in sorted((run / "records").glob("*/*/seed-*.json")):
        record = json.loads(path.read_text())
        task, predicted = record["task"], pd.read_parquet(path.with_suffix(".parquet"))
        splits = glue.TASKS[task].splits[1:]
        told = {s: found["prediction"].to_numpy() for s, found in predicted.groupby("split")}
        labels = {s: glue.load(run, task, s)["label"].to_numpy() for s in splits}
        record |= metrics.score_splits(task, {s: told[s] for s in splits}, labels)
        record |= {"rows": {"train": 8, **dict.fromkeys(splits, 20)}}
        data = run / "data" / "glue" / task
        names = [f"{split}.parquet" for split in splits]
        record["hashes"]["data"] = {name: files.sha256(data / name) for name in names}
        files.write_json(path, record)
    for cell in (run / "records").glob("*/*"):
        files.write_manifest(cell, {"spec": ""}, [path.name for path in cell.glob("seed-*")])
    shown = view.open_run(run, MODELS, TASKS)
    tables.write(shown, run / "tables")
    view.save_facts(shown)
    return run


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def verify(run):
    return verifier.verify(run).wrong


def test_a_whole_run_holds(run):
    found = verifier.verify(run)
    assert (found.wrong, found.records, found.recomputed, found.comparisons) == ([], 15, 15, True)
    assert not found.skipped


def test_checkpoints_are_compared_with_each_other_and_the_floor_and_without_each_task(run):
    shown = view.open_run(run, MODELS, TASKS)
    found = comparisons.compared(shown)
    assert found.models == [*MODELS, "bag-of-words"]
    every = pd.concat([shown.records, shown.floors])
    means = every.groupby(["model", "task"])["score"].mean().unstack()
    assert list(found.without) == TASKS
    for left_out, pairs in {"": found.pairs, **found.without}.items():
        assert len(pairs) == 3
        rest = means[[task for task in TASKS if task != left_out]].mean(axis=1)
        for (one, two), pair in pairs.items():
            assert pair.difference == pytest.approx(rest[one] - rest[two])
            assert pair.low < pair.difference < pair.high


def reseal(run, cell):
    folder = run / "records" / cell
    files.write_manifest(folder, {"spec": ""}, [path.name for path in folder.glob("seed-*")])


def edit(path, **changes):
    files.write_json(path, json.loads(path.read_text()) | changes)


def test_a_record_edited_by_hand_is_named(run):
    edit(run / "records" / "bert" / "cola" / "seed-0.json", score=99.0)
    (line,) = verify(run)
    assert "seed-0.json: missing or changed" in line
    reseal(run, "bert/cola")  # whoever also forges the manifest
    (line,) = verify(run)
    assert "score = 99.0: the predictions give" in line


def test_predictions_changed_with_their_hash_do_not_give_the_score(run):
    path = run / "records" / "bert" / "mnli" / "seed-1.parquet"
    table = pd.read_parquet(path)
    table["prediction"] = 1
    table.to_parquet(path, index=False)
    edit(path.with_suffix(".json"), predictions=files.sha256(path))
    reseal(run, "bert/mnli")
    lines = verify(run)
    assert any("score = " in line for line in lines)
    assert all("bert/mnli/seed-1" in line for line in lines)


def test_a_changed_cell_of_a_table_is_named(run):
    path = run / "tables" / "table1.csv"
    row = next(line for line in path.read_text().splitlines() if line.startswith("BERT,STS-B"))
    path.write_text(path.read_text().replace(row, f"{row}9"))
    (line,) = verify(run)
    assert "table1.csv: line 3 has 'BERT,STS-B,2," in line
    path.unlink()
    assert verify(run) == [f"{path}: missing"]


def test_data_that_were_not_scored_are_named(run):
    path = run / "data" / "glue" / "cola" / "validation.parquet"
    table = pd.read_parquet(path)
    table["label"] = 1 - table["label"]
    table.to_parquet(path)
    lines = verify(run)
    assert any("hashes.data" in line for line in lines)


def test_a_record_of_an_old_schema_and_one_in_the_wrong_place(run):
    path = run / "records" / "bert" / "cola" / "seed-0.json"
    edit(path, schema=1)
    reseal(run, "bert/cola")
    (line,) = verify(run)
    assert "schema" in line
    shutil.copy(run / "records" / "scratch" / "cola" / "seed-0.json", path)
    reseal(run, "bert/cola")
    assert any("is the record of scratch" in line for line in verify(run))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop(columns="idx"), "columns = 'split, prediction'"),
        (lambda t: t.assign(prediction=t["prediction"] + 7), "prediction = 7|prediction = 8"),
        (lambda t: t.iloc[:-1], "19 predictions for 20 examples"),
    ],
)
def test_wrong_predictions_are_one_line(run, tmp_path, change, says):
    source = run / "records" / "bert" / "cola" / "seed-0.parquet"
    path = tmp_path / "seed-0.parquet"
    change(pd.read_parquet(source)).to_parquet(path, index=False)
    labels = {"validation": glue.load(run, "cola", "validation")}
    with pytest.raises(UserError, match=says):
        predictions.recompute(path, "cola", labels)
    path.write_bytes(source.read_bytes()[:100])
    with pytest.raises(UserError, match="not readable as Parquet"):
        predictions.recompute(path, "cola", labels)


def test_stacks_are_in_the_order_of_seeds_and_examples(run):
    labels = {"cola": glue.load(run, "cola", "validation")}
    found, truth = predictions.stacked(run, view.load_records(run / "records"), labels)
    assert set(found) == {*MODELS, "bag-of-words"}
    assert found["bert"]["cola"].shape == (2, 20)
    record = records.read(run / "records" / "bert" / "cola" / "seed-1.json")
    assert 100 * metrics.matthews_corrcoef(truth["cola"], found["bert"]["cola"][1]) == (
        pytest.approx(record["score"])
    )
    assert np.array_equal(truth["cola"], glue.load(run, "cola", "validation")["label"])
