"""The floor of the benchmark: what a bag of words, without any pre-training, makes of a task."""

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from helpers.base import seeding
from helpers.data import glue, metrics

STRENGTHS = (0.3, 1.0, 3.0, 10.0)  # C of the logistic regression, 1 / alpha of the ridge
ASIDE = 0.1  # part of the train rows that chooses among them


def predict(
    name: str, train: pd.DataFrame, others: dict[str, pd.DataFrame], seed: int
) -> dict[str, np.ndarray]:
    """Predictions for other splits by a linear model of TF-IDF features fitted on `train`.

    Logistic regression, ridge regression for STS-B; int64 classes, or float64 on the scale 0 to 5.
    The strength of the regularisation is the one that scores best on a tenth of the train rows,
    which the seed draws; then the model is fitted again on all.
    """
    task = glue.get(name)
    vectors = TfidfVectorizer(
        ngram_range=(1, 1 if len(task.columns) > 1 else 2),
        min_df=2,
        sublinear_tf=True,
        dtype=np.float32,
    )
    vectors.fit(pd.concat([train[column] for column in task.columns]))
    features, labels = _features(vectors, task, train), train["label"].to_numpy()
    aside = seeding.numpy_generator("floor", seed).random(len(train)) < ASIDE
    fitted, scores = {}, {}
    for strength in STRENGTHS:
        fitted[strength] = _fit(task, features[~aside], labels[~aside], strength)
        found = _answer(task, fitted[strength], features[aside])
        scores[strength] = metrics.score(name, found, labels[aside])[0]
    best = _fit(task, features, labels, max(scores, key=scores.get))
    return {
        split: _answer(task, best, _features(vectors, task, table))
        for split, table in others.items()
    }


def _fit(
    task: glue.Task, features: sparse.csr_array, labels: np.ndarray, strength: float
) -> LogisticRegression | Ridge:
    if not task.labels:
        return Ridge(alpha=1 / strength, solver="lsqr").fit(features, labels)
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
