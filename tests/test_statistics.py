import itertools
import math

import numpy as np
import pandas as pd
import pytest
from makers import command, paired_bootstrap
from scipy import stats
from sklearn.metrics import accuracy_score, matthews_corrcoef

from helpers.score import statistics


def frame(rows):
    return pd.DataFrame(rows, columns=["model", "task", "seed", "score"])


RECORDS = frame(
    [
        ("bert", "cola", 0, 10.0),
        ("bert", "cola", 1, 14.0),
        ("bert", "cola", 2, 30.0),
        ("bert", "rte", 0, 50.0),
        ("bert", "rte", 1, 52.0),
        ("scratch", "cola", 0, 5.0),
        ("scratch", "rte", 0, 49.0),
    ]
)


def test_a_summary_of_few_values_says_what_they_allow():
    values = np.random.default_rng(3).normal(70, 5, 10)
    found = statistics.summary(values)
    assert found.se == pytest.approx(stats.sem(values))
    found = statistics.summary([3.0])
    assert (found.n, found.mean, found.median, found.best) == (1, 3.0, 3.0, 3.0)
    assert np.isnan([found.sd, found.se, found.low, found.high]).all()
    found = statistics.summary([])
    assert found.n == 0
    assert math.isnan(found.mean)
    with pytest.raises(ValueError, match="finite"):
        statistics.summary([1.0, math.nan])


def test_cell_is_the_median_over_seeds():
    assert statistics.cell(RECORDS, "bert", "cola").median == 14.0
    assert statistics.cell(RECORDS, "bert", "sst2").n == 0


def test_mean_of_tasks_is_taken_by_seed_and_leaves_out_seeds_without_every_task():
    means = statistics.seed_means(RECORDS, "bert", ["cola", "rte"])
    assert means.to_dict() == {0: 30.0, 1: 33.0}
    found = statistics.mean_of_tasks(RECORDS, "bert", ["cola", "rte"])
    assert (found.n, found.mean) == (2, 31.5)
    assert found.se == pytest.approx(stats.sem([30.0, 33.0]))


def test_mean_of_a_task_nobody_has_is_empty():
    assert statistics.mean_of_tasks(RECORDS, "bert", ["cola", "sst2"]).n == 0
    assert statistics.mean_of_tasks(RECORDS, "bert", []).n == 0


def test_best_and_interval_of_the_median():
    values = [70.0, 72.5, 71.0, 69.0, 75.5]
    found = statistics.summary(values)
    assert found.best == 75.5
    # By hand: all 5 ** 5 resamples; the percentile interval lies between two of their medians.
    medians = sorted(np.median(sample) for sample in itertools.product(values, repeat=5))
    low, high = (medians[round(q * (len(medians) - 1))] for q in (0.025, 0.975))
    assert (found.low, found.high) == (low, high)


def test_expected_best_is_unbiased():
    # Of two standard normal values the larger is 1 / sqrt(pi) on average.
    draws = np.random.default_rng(0).normal(size=(20_000, 4))
    found = [statistics.expected_best(row, 2) for row in draws]
    assert np.mean(found) == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)
    with pytest.raises(ValueError, match="n = 5: must be between 1 and the number of runs, 4"):
        statistics.expected_best(draws[0], 5)


def made(task, examples, share, seeds, rng):
    """Labels, and predictions that are right in a share of the examples."""
    if task == "stsb":
        truth = rng.uniform(0, 5, examples)
        return truth, np.stack([truth + rng.normal(0, 3 - 2 * share, examples) for _ in seeds])
    truth = rng.integers(0, 2, examples)
    flips = np.stack([rng.random(examples) > share for _ in seeds])
    return truth, np.where(flips, 1 - truth, truth)


def test_weighted_scores_agree_with_scikit_learn_and_scipy():
    rng = np.random.default_rng(0)
    for task in ("cola", "sst2", "stsb"):
        truth, runs = made(task, 200, 0.8, range(3), rng)
        counts = statistics._example_counts(200, 4, rng)
        assert (counts.sum(1) == 200).all()
        found = statistics._weighted_scores(task, runs, truth, counts)
        for row, n in zip(found, counts.astype(int), strict=True):
            for value, run in zip(row, runs, strict=True):
                one, two = np.repeat(run, n), np.repeat(truth, n)
                wanted = {
                    "cola": matthews_corrcoef,
                    "sst2": accuracy_score,
                    "stsb": lambda a, b: stats.spearmanr(a, b).statistic,
                }[task](two, one)
                assert value == pytest.approx(100 * wanted)
    assert (
        statistics._weighted_scores("cola", np.ones((1, 9), int), np.ones(9), np.ones((1, 9))) == 0
    )


def test_a_comparison_finds_the_error_of_a_difference_of_accuracies():
    rng = np.random.default_rng(3)
    truth, good = made("sst2", 800, 0.9, [0], rng)
    _, other = made("sst2", 800, 0.85, [0], rng)
    other = np.where(other == 1, truth, 1 - truth)[:1]
    found = paired_bootstrap({"sst2": good}, {"sst2": other}, {"sst2": truth}, 4000)
    paired = 100 * ((good[0] == truth).astype(float) - (other[0] == truth))
    assert found.difference == pytest.approx(paired.mean())
    error = paired.std() / math.sqrt(800)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    again = paired_bootstrap({"sst2": good}, {"sst2": other}, {"sst2": truth}, 4000)
    assert found == again


def test_comparisons_of_equal_models_are_seldom_resolved():
    rng = np.random.default_rng(5)
    resolved = 0
    for _ in range(60):
        labels, models = {}, {"a": {}, "b": {}}
        for task in ("cola", "sst2"):
            labels[task], runs = made(task, 150, 0.75, range(6), rng)
            models["a"][task], models["b"][task] = runs[:3], runs[3:]
        resolved += statistics.compare(models, labels, 200)["a", "b"].resolved
    assert resolved <= 12  # 5 % of 60 is 3; three seeds make the interval a little narrow


def test_examples_and_tasks_must_be_the_same():
    truth = np.zeros(5, int)
    with pytest.raises(ValueError, match="second, sst2: 4 predictions, 5 labels"):
        paired_bootstrap({"sst2": np.zeros((2, 5))}, {"sst2": np.zeros((2, 4))}, {"sst2": truth})
    with pytest.raises(ValueError, match="first: tasks"):
        paired_bootstrap({"cola": truth}, {"sst2": truth}, {"sst2": truth})


def test_reading_scores_loads_no_torch():
    modules = "helpers.score.statistics, helpers.score.predictions, helpers.leaderboard.check"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert command("-c", code).stdout == "set()\n"
