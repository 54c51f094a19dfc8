"""The floor of the benchmark: what a bag of words, and the most frequent class, make of a task."""

import time
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from helpers.base import config, files, progress, seeding
from helpers.data import glue, metrics
from helpers.train import provenance, records

STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # C of the logistic regression, 1 / alpha of the ridge
ASIDE = 0.1  # part of the train rows that chooses among them
FEW = 200  # train rows below which nothing is chosen, and a word may stand there once


def run(parameters: config.Stage, tasks: Iterable[str] = glue.TASKS) -> list[dict[str, Any]]:
    """Fits the floor of those tasks that the run holds; what is there is not done again.

    Writes ``records/bag-of-words/<task>/`` and ``records/majority/<task>/`` in the run's folder:
    record and predictions as fine-tuning writes them, of one seed. Gives the records.
    """
    folder = parameters.folder / "data" / "glue"
    names = [name for name in tasks if files.find_manifest(folder / name)]
    bar = progress.bar(len(names) * len(records.FLOORS), "floor", "fits")
    found = []
    with files.lock(parameters.folder / "records", ".floors.lock", wait=True):
        for name in names:
            data = files.require_intact(folder / name, "01_data")
            for model in records.FLOORS:
                bar.set_postfix_str(name, refresh=False)
                found.append(_cell(parameters, model, name, data))
                bar.update()
    bar.close()
    return found


def finished(parameters: config.Stage) -> bool:
    """Whether :func:`run` has nothing to do."""
    for name in glue.TASKS:
        data = files.find_manifest(parameters.folder / "data" / "glue" / name)
        for model in records.FLOORS if data else ():
            spec = files.digest(_specification(model, name, data))
            if not files.find_manifest(records.folder(parameters.folder, model, name), spec):
                return False
    return True


def _specification(model: str, name: str, data: dict[str, Any]) -> dict[str, Any]:
    """All that a cell follows from."""
    settings = {"strengths": list(STRENGTHS), "aside": ASIDE} if model == "bag-of-words" else {}
    wanted = {"stage": "floor", "schema": records.SCHEMA, "parameters": settings, "model": model}
    return wanted | {"task": name, **glue.own_rules(name), "seed": 0, "data": data["files"]}


def _cell(parameters: config.Stage, model: str, name: str, data: dict[str, Any]) -> dict[str, Any]:
    """The record of one cell, which is there or is made."""
    folder = records.folder(parameters.folder, model, name)
    wanted = _specification(model, name, data)
    path, spec = folder / "seed-0.json", files.digest(wanted)
    if files.intact_manifest(folder, spec):
        return records.read(path)
    files.remove_manifest(folder)
    tables = {split: glue.load(parameters.folder, name, split) for split in data["rows"]}
    train, began = tables.pop("train"), time.perf_counter()
    make = predict if model == "bag-of-words" else majority
    predictions = make(name, train, tables)
    seconds = round(time.perf_counter() - began, 2)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_predictions(path, predictions, {s: t["idx"] for s, t in tables.items()})
    hardware, code = provenance.hardware(1), provenance.code()
    nothing = dict.fromkeys(records.required(records.Pretraining), 0)
    record = {
        **{key: wanted[key] for key in ("schema", "task", "seed", "parameters", "model")},
        **{key: data[key] for key in ("source", "rows", "reduced", "complete")},
        **metrics.score_splits(name, predictions, {s: t["label"] for s, t in tables.items()}),
        "profile": parameters.profile,
        "corpus": "none",
        "size": "none",
        "pretrain": nothing,
        "finetune": dict.fromkeys(records.required(records.Finetuning), 0) | {"seconds": seconds},
        "pretrain_hardware": hardware,
        "hardware": hardware,
        "precision": "float32: scikit-learn on a CPU",
        "code": code,
        "pretrain_code": code,
        "hashes": {"data": data["files"], "encoder": {}, "corpus": ""},
        "versions": provenance.versions(),
        "predictions": files.sha256(path.with_suffix(".parquet")),
        "spec": spec,
    }
    records.write(path, record)
    files.write_manifest(folder, {"spec": spec}, ["seed-0.json", "seed-0.parquet"])
    return record


def majority(
    name: str, train: pd.DataFrame, others: dict[str, pd.DataFrame]
) -> dict[str, np.ndarray]:
    """The most frequent class of the train rows for every row, or their mean; as `predict`."""
    labels = train["label"]
    value = labels.mode()[0] if glue.get(name).labels else labels.mean()
    return {split: np.full(len(table), value) for split, table in others.items()}


def predict(
    name: str, train: pd.DataFrame, others: dict[str, pd.DataFrame]
) -> dict[str, np.ndarray]:
    """Predictions for other splits by a linear model of TF-IDF features fitted on `train`.

    Logistic regression, ridge regression for STS-B; int64 classes, or float64 on the scale 0 to 5.
    The strength of the regularisation is the one that scores best on a tenth of the train rows,
    drawn at random; then the model is fitted again on all. Of few rows it is 1.
    """
    task, labels = glue.get(name), train["label"].to_numpy()
    vectors = TfidfVectorizer(
        token_pattern=r"\w+",
        ngram_range=(1, 1 if len(task.columns) > 1 else 2),
        min_df=2 if len(train) >= FEW else 1,
        sublinear_tf=True,
        dtype=np.float32,
    )
    texts = pd.concat([train[column] for column in task.columns])
    try:
        vectors.fit(texts)
    except ValueError:  # no words, or none that stands in two rows
        return majority(name, train, others)
    if len(np.unique(labels)) < 2:
        return majority(name, train, others)
    features = _features(vectors, task, train)
    aside = seeding.numpy_generator("floor", 0).random(len(train)) < ASIDE
    scores, enough = {}, len(train) >= FEW and len(np.unique(labels[~aside])) > 1
    for strength in STRENGTHS if enough else ():
        model = _fit(task, features[~aside], labels[~aside], strength)
        answers = _answer(task, model, features[aside])
        scores[strength] = metrics.score(name, answers, labels[aside])[0]
    best = _fit(task, features, labels, max(scores, key=scores.get, default=1.0))
    return {
        split: _answer(task, best, _features(vectors, task, table))
        for split, table in others.items()
    }


def _fit(
    task: glue.Task, features: sparse.csr_array, labels: np.ndarray, strength: float
) -> LogisticRegression | Ridge:
    if not task.labels:
        return Ridge(alpha=1 / strength, solver="lsqr").fit(features, labels)
    with warnings.catch_warnings():  # a hundred steps are as near as a floor need be
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=100).fit(features, labels)


def _answer(
    task: glue.Task, model: LogisticRegression | Ridge, features: sparse.csr_array
) -> np.ndarray:
    found = model.predict(features)
    return found if task.labels else found.astype(np.float64).clip(0, 5)


def _features(vectors: TfidfVectorizer, task: glue.Task, table: pd.DataFrame) -> sparse.csr_array:
    """Rows of a table as features: one text's vector, or what two have in common and apart."""
    first, *second = (sparse.csr_array(vectors.transform(table[name])) for name in task.columns)
    if not second:
        return first
    (second,) = second
    common, apart = first.minimum(second), abs(first - second)
    cosine = first.multiply(second).sum(1)
    words = [np.maximum((side > 0).sum(1), 1) for side in (first, second)]
    shared = (common > 0).sum(1)
    numbers = np.stack([cosine, shared / words[0], shared / words[1]], 1)
    return sparse.csr_array(sparse.hstack([common, apart, second, sparse.csr_array(numbers)]))
