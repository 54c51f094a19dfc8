import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers import statistics


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


@pytest.mark.parametrize("size", [2, 3, 10])
def test_summary_agrees_with_numpy_and_scipy(size):
    values = np.random.default_rng(size).normal(70, 5, size)
    found = statistics.summary(values)
    assert found.n == size
    assert found.mean == pytest.approx(np.mean(values))
    assert found.median == pytest.approx(np.median(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.se == pytest.approx(stats.sem(values))


def test_summary_of_one_value_has_no_spread():
    found = statistics.summary([3.0])
    assert (found.n, found.mean, found.median) == (1, 3.0, 3.0)
    assert math.isnan(found.sd)
    assert math.isnan(found.se)


def test_summary_of_nothing_is_not_a_number():
    found = statistics.summary([])
    assert found.n == 0
    assert math.isnan(found.mean)


def test_summary_refuses_what_is_not_a_number():
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


def test_difference_adds_the_errors_in_square():
    first, second = statistics.summary([1.0, 2.0, 4.0]), statistics.summary([0.0, 1.0])
    gap, error = statistics.difference(first, second)
    assert gap == pytest.approx(np.mean([1, 2, 4]) - 0.5)
    assert error == pytest.approx(np.hypot(stats.sem([1, 2, 4]), stats.sem([0, 1])))


def test_difference_without_a_second_seed_has_no_error():
    gap, error = statistics.difference(statistics.summary([2.0]), statistics.summary([1.0, 3.0]))
    assert gap == 0.0
    assert math.isnan(error)
