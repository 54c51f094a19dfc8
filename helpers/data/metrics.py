"""GLUE's metrics as ``evaluate.Metric`` subclasses that need no network.

Sources of the choice: the columns of the paper's Table 1 are those of ELECTRA's repository: CoLA
Matthews correlation, STS-B Spearman correlation, accuracy elsewhere.
"""

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from helpers.data import glue

CONSTANT = "constant prediction"


class GlueMetric(evaluate.Metric):
    """Metrics of one task; ``config_name`` is the task.

    ``compute(predictions=..., references=...)`` returns floats between -1 and 1 by metric name.
    """

    def _info(self) -> evaluate.MetricInfo:
        kind = "int64" if glue.get(self.config_name).labels else "float64"
        return evaluate.MetricInfo(
            description=f"Metrics of GLUE's {self.config_name}.",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value(kind), "references": datasets.Value(kind)}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        name = self.config_name
        if name == "stsb":
            return {
                "spearman": float(stats.spearmanr(predictions, references).statistic),
                "pearson": float(stats.pearsonr(predictions, references).statistic),
            }
        if name == "cola":
            return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
        out = {"accuracy": float(accuracy_score(references, predictions))}
        if name in ("mrpc", "qqp"):
            out["f1"] = float(f1_score(references, predictions, zero_division=0))
        return out


def score(
    task: str, predictions: np.ndarray, references: np.ndarray
) -> tuple[float, dict[str, float], str]:
    """The headline score of a task and what stands beside it.

    Predictions and references are int64 [n] classes, or float [n] for STS-B.

    Returns:
        score x 100, metrics by name, and a note: empty, or that the prediction is constant. A
        correlation with a constant has no value and is scored 0; an accuracy stays what it is,
        the share of that class, so that it compares with other people's.

    Raises:
        ValueError: When a prediction is not finite.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if not np.isfinite(predictions).all():
        raise ValueError(f"{task}: a prediction is not finite")
    constant = len(np.unique(predictions)) == 1
    if constant and task == "stsb":
        return 0.0, {"spearman": 0.0, "pearson": 0.0}, CONSTANT
    metric = GlueMetric(config_name=task, keep_in_memory=True)
    values = metric.compute(predictions=predictions, references=references)
    return 100 * values[glue.get(task).metric], values, CONSTANT if constant else ""
