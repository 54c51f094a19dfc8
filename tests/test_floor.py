"""The floor: what words alone give, as records and rows like any other's."""

import re

import numpy as np
import pandas as pd
import pytest
from makers import small_profile
from sklearn.dummy import DummyClassifier, DummyRegressor

from helpers.base import config
from helpers.data import glue
from helpers.pages import tables, verify, view
from helpers.train import floor, records

TASKS = ["cola", "stsb", "rte"]


def sentences(rng, count):
    words = np.array([f"{a}{b}" for a in "bdfgklmnp" for b in ("ab", "ek", "il", "op", "un")])
    return [" ".join(rng.choice(words, 12)) for _ in range(count)]


def table(name, count, seed):
    """Rows whose label words alone decide: a word, or how many words two texts share."""
    rng = np.random.default_rng(seed)
    task, texts = glue.get(name), sentences(rng, count)
    if len(task.columns) == 1:
        label = [int("bab" in text) for text in texts]
        return pd.DataFrame({"sentence": texts, "label": label, "idx": range(count)})
    shared = rng.integers(0, 13, count)
    others = [
        " ".join(one.split()[:n] + two.split()[n:])
        for one, two, n in zip(texts, sentences(rng, count), shared, strict=True)
    ]
    label = (shared > 6).astype(int) if task.labels else shared / 12 * 5
    first, second = task.columns
    return pd.DataFrame({first: texts, second: others, "label": label, "idx": range(count)})


@pytest.mark.parametrize("name", TASKS)
def test_words_that_decide_are_found_and_the_answers_are_not_read(name):
    train, dev = table(name, 1500, 0), table(name, 400, 1)
    found = floor.predict(name, train, {"dev": dev})["dev"]
    blind = dev.assign(label=dev["label"].sample(frac=1, random_state=0).to_numpy())
    assert np.array_equal(found, floor.predict(name, train, {"dev": blind})["dev"])
    if glue.get(name).labels:
        assert (found == dev["label"]).mean() > 0.9
    else:
        assert np.corrcoef(found, dev["label"])[0, 1] > 0.9
        assert found.min() >= 0
        assert found.max() <= 5


@pytest.mark.parametrize("name", TASKS)
def test_the_most_frequent_answer_is_scikit_learns(name):
    train, dev = table(name, 101, 0), table(name, 50, 1)
    found = floor.majority(name, train, {"dev": dev})["dev"]
    make = DummyClassifier(strategy="most_frequent") if glue.get(name).labels else DummyRegressor()
    assert found == pytest.approx(make.fit(train[["idx"]], train["label"]).predict(dev[["idx"]]))


def test_the_floor_is_a_row_of_the_tables_and_marks_what_is_not_above(
    small_run, tmp_path, monkeypatch
):
    profile = small_profile(tmp_path, models=["roberta", "scratch"], tasks=["cola", "stsb", "mnli"])
    for place in ("data", "models", "tokenizer"):
        profile.folder.mkdir(exist_ok=True)
        (profile.folder / place).symlink_to(small_run.folder / place)
    for model in profile.models:
        (profile.folder / "records").mkdir(exist_ok=True)
        (profile.folder / "records" / model).symlink_to(small_run.folder / "records" / model)
    parameters = config.Data(**profile.stage(config.Data))
    assert not floor.finished(parameters)
    made = floor.run(parameters)
    assert floor.finished(parameters)
    path = records.folder(profile.folder, "bag-of-words", "mnli") / "seed-0.json"
    before = path.stat().st_mtime_ns
    assert floor.run(parameters) == made
    assert path.stat().st_mtime_ns == before
    assert "mismatched_accuracy" in records.read(path)["metrics"]

    shown = view.open_run(profile.folder, profile.models, profile.tasks)
    assert list(shown.records["model"].unique()) == ["roberta", "scratch"]
    found = tables.grid(shown)
    assert list(found.columns)[-2:] == ["bag-of-words", "majority"]
    summary = tables.summary(shown)
    scores = {(one["model"], one["task"]): one["score"] for one in made}
    for model in ("roberta", "scratch"):
        for task in profile.tasks:
            (own,) = shown.of(model, task)["score"]
            marked = shown.is_below_floor(model, [task])
            assert marked == (own <= scores["bag-of-words", task])
    assert ("▾" in summary) == bool(re.search("not above the bag of words", summary))
    tables.write(shown, profile.folder / "tables")
    view.save_facts(shown)
    assert verify.verify(profile.folder).wrong == []


def test_texts_that_share_no_word_get_the_majority_answer():
    train = pd.DataFrame({"sentence": [f"w{n}" for n in range(300)], "label": [0, 1, 1] * 100})
    assert set(floor.predict("cola", train, {"dev": train})["dev"]) == {1}
