"""GLUE's metrics as ``evaluate.Metric`` subclasses that need no network.

Sources of the choice: the columns of the paper's Table 1 are those of ELECTRA's repository: CoLA
Matthews correlation, STS-B Spearman correlation, accuracy elsewhere.
"""

from functools import partial
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from helpers.data import glue

CONSTANT = "constant prediction"

METRICS = {  # by what the file of a task of your own calls them
    "accuracy": accuracy_score,
    "f1": partial(f1_score, zero_division=0),
    "macro_f1": partial(f1_score, average="macro", zero_division=0),
    "matthews_correlation": matthews_corrcoef,
    "spearman": lambda truth, found: stats.spearmanr(found, truth).statistic,
    "pearson": lambda truth, found: stats.pearsonr(truth, found).statistic,
}


class GlueMetric(evaluate.Metric):
    """Metrics of the task ``config_name``: floats between -1 and 1 by metric name."""

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("int64" if glue.get(self.config_name).labels else "float64")
        features = datasets.Features({"predictions": kind, "references": kind})
        about = f"Metrics of GLUE's {self.config_name}."
        return evaluate.MetricInfo(description=about, citation="", features=features)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        names = names_of(self.config_name)
        return {name: float(METRICS[name](references, predictions)) for name in names}


def names_of(task: str) -> list[str]:
    """The metrics of a task, the headline's first."""
    beside = {"stsb": ["pearson"], "mrpc": ["f1"], "qqp": ["f1"]}
    return [glue.get(task).metric, *beside.get(task, [])]


def score(
    task: str, predictions: np.ndarray, references: np.ndarray
) -> tuple[float, dict[str, float], str]:
    """The headline score x 100, metrics by name, and a note: empty, or ``CONSTANT``.

    Predictions and references are int64 [n] classes, or float [n] for STS-B. A correlation of a
    constant has no value and is scored 0; an accuracy stays what it is, the share of that class,
    so that it compares with other people's. A prediction that is not finite is a ValueError.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if not np.isfinite(predictions).all():
        raise ValueError(f"{task}: a prediction is not finite")
    constant, alike = (len(np.unique(values)) == 1 for values in (predictions, references))
    if (constant or alike) and not glue.get(task).labels:
        return 0.0, dict.fromkeys(names_of(task), 0.0), CONSTANT * constant
    metric = GlueMetric(config_name=task, keep_in_memory=True)
    values = metric.compute(predictions=predictions, references=references)
    return 100 * values[glue.get(task).metric], values, CONSTANT if constant else ""


def score_splits(
    task: str, predictions: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Score, metrics and note of a record, of the first split by name.

    MNLI's mismatched half stands among the metrics.
    """
    headline, *others = predictions
    value, values, note = score(task, predictions[headline], labels[headline])
    for split in others:
        beside = score(task, predictions[split], labels[split])[1]
        values |= {f"mismatched_{key}": number for key, number in beside.items()}
    return {"score": value, "metrics": values, "note": note}
