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
    assert (found.n, found.mean, found.low, found.high) == (1, 3.0, 3.0, 3.0)
    assert np.isnan([found.sd, found.se]).all()
    found = statistics.summary([])
    assert found.n == 0
    assert math.isnan(found.mean)
    with pytest.raises(ValueError, match="finite"):
        statistics.summary([1.0, math.nan])


def test_mean_of_tasks_is_taken_by_seed_and_leaves_out_seeds_without_every_task():
    means = statistics.seed_means(RECORDS, "bert", ["cola", "rte"])
    assert means.to_dict() == {0: 30.0, 1: 33.0}
    found = statistics.mean_of_tasks(RECORDS, "bert", ["cola", "rte"])
    assert (found.n, found.mean) == (2, 31.5)
    assert found.se == pytest.approx(stats.sem([30.0, 33.0]))


def test_mean_of_a_task_nobody_has_is_empty():
    assert statistics.mean_of_tasks(RECORDS, "bert", ["cola", "sst2"]).n == 0
    assert statistics.mean_of_tasks(RECORDS, "bert", []).n == 0


def rejected_by_holm(p_values, level):
    """Holm's procedure as it is told: from the smallest, until one does not pass."""
    left, rejected = sorted(p_values), []
    while left and left[0] <= level / len(left):
        rejected.append(left.pop(0))
    return rejected


def test_holms_correction_rejects_as_the_stepwise_procedure():
    rng = np.random.default_rng(2)
    assert statistics.holm([]) == []
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    for _ in range(200):
        p_values = (rng.random(15) ** 3).tolist()
        found = statistics.holm(p_values)
        passed = [p for p, corrected in zip(p_values, found, strict=True) if corrected <= 0.05]
        assert sorted(passed) == rejected_by_holm(p_values, 0.05)
        assert max(found) <= 1


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
    paired = 100 * ((good[0] == truth).astype(float) - (other[0] == truth))
    # Seeds that agree leave the examples alone.
    good, other = ({"sst2": np.repeat(runs, 2, axis=0)} for runs in (good, other))
    found = paired_bootstrap(good, other, {"sst2": truth}, 4000)
    assert found.difference == pytest.approx(paired.mean())
    error = paired.std() / math.sqrt(800)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(paired.mean()) / error), rel=0.3)
    assert found == paired_bootstrap(good, other, {"sst2": truth}, 4000)


def test_a_comparison_counts_seeds_as_students_test_does():
    # All examples are alike, so a score is all or nothing and only seeds differ.
    truth = np.ones(50, int)
    runs = {"one": np.ones((3, 50), int), "two": np.stack([truth, truth * 0, truth])}
    found = paired_bootstrap({"sst2": runs["one"]}, {"sst2": runs["two"]}, {"sst2": truth}, 100)
    scores = [100.0, 0.0, 100.0]
    error = np.std(scores, ddof=1) / math.sqrt(3)
    assert found.difference == pytest.approx(100 - np.mean(scores))
    assert found.high - found.difference == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert found.p == pytest.approx(2 * stats.t.sf(found.difference / error, 2))


def equal_checkpoints(models, seeds, examples, rng):
    """Labels and predictions of checkpoints that are equally good on six tasks.

    An example is right where its ease, what the checkpoint makes of it, the seed's shift and the
    seed's noise add up to more than zero.
    """
    labels, found = {}, {str(model): {} for model in range(models)}
    for task in ("sst2", "mrpc", "qqp", "mnli", "qnli", "rte"):
        truth, ease = rng.integers(0, 2, examples), rng.normal(0.8, 1, examples)
        labels[task] = truth
        for tasks in found.values():
            own = ease + rng.normal(0, 0.6, examples)
            shift = rng.normal(0, 0.2, (seeds, 1)) + rng.normal(0, 0.3, (seeds, examples))
            tasks[task] = np.where(own + shift > 0, truth, 1 - truth)
    return found, labels


@pytest.mark.slow
def test_equal_checkpoints_are_resolved_in_one_table_of_twenty_at_most():
    rng = np.random.default_rng(5)
    tables = outside = 0
    for _ in range(200):
        models, labels = equal_checkpoints(4, 2, 150, rng)
        found = statistics.compare(statistics.resample(models, labels, 100), labels)
        found = statistics.corrected(found)
        tables += any(pair.resolved for pair in found.values())
        outside += not found["0", "1"].low <= 0 <= found["0", "1"].high
    # 5 % of 200, and two standard errors of such a count.
    assert tables <= 10 + 6
    assert outside <= 10 + 6


def test_examples_and_tasks_must_be_the_same_and_seeds_two_at_least():
    truth, runs = {"sst2": np.zeros(5, int)}, {"sst2": np.zeros((2, 5))}
    for shape in ((2, 4), (1, 5), (5,)):
        with pytest.raises(ValueError, match=r"second, sst2: .* two seeds or more, each of 5 ex"):
            paired_bootstrap(runs, {"sst2": np.zeros(shape)}, truth)
    with pytest.raises(ValueError, match="first: tasks"):
        paired_bootstrap({"cola": truth}, runs, truth)


def test_reading_scores_and_the_jobs_of_a_study_loads_no_torch():
    names = "score.audit score.statistics score.predictions leaderboard.check study.grid study.jobs"
    modules = ", ".join(f"helpers.{name}" for name in names.split())
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert command("-c", code).stdout == "set()\n"
