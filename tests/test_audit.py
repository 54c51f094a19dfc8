import math
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import nbformat
import numpy as np
import pytest
from makers import ROOT, run_page
from matplotlib.figure import Figure
from scipy import integrate, stats

from helpers.score import audit, statistics

RESAMPLES = 20_000


@pytest.fixture(scope="module")
def gains(published):
    return audit.best_of(audit.deviations(published))


@pytest.fixture(scope="module")
def notebook():
    return run_page("notebooks/06_audit")


@pytest.fixture(scope="module")
def names(notebook):
    """What the cells of the audit leave behind."""
    return notebook.names


# --- averages, ranks, gaps


def test_averages_ranks_and_the_announced_range(published, names):
    found = names["averages"]
    for model, entry in published["table1"]["models"].items():
        exact = sum(Decimal(str(f["value"])) for f in entry["scores"].values()) / 8
        assert found.loc[model, "recomputed"] == pytest.approx(float(exact), abs=1e-9)
    assert (found["printed"] - found["recomputed"]).abs().max() <= 0.005 + 1e-9
    assert set(found.index[found["rank"] != found["by"]]) == {"roberta", "bert"}
    assert found["below"].to_dict() == {
        "electra-deberta": 0.67,
        "electra": 1.84,
        "deberta": 3.17,
        "roberta": 3.87,
        "bert": 3.83,
    }


# --- the row of another project


def test_only_the_electra_row_equals_the_repository(names):
    found = names["identity"]
    assert found.loc["electra"].all()
    assert found.drop("electra").sum(axis=1).max() <= 1


# --- accuracies as counts


def printed(rows, rounding):
    """Every percentage of two decimals that a count of this many rows prints as."""
    step = Decimal("0.01")
    return {int((Decimal(100 * k) / rows).quantize(step, rounding) * 100) for k in range(rows + 1)}


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 277, 872, 1600])
def test_reach_against_every_count(rows):
    rounded, cut = printed(rows, ROUND_HALF_UP), printed(rows, ROUND_DOWN)
    for hundredths in range(10_001):
        value = hundredths / 100
        found = statistics.reach(value, rows)
        assert found.rounded == (hundredths in rounded), value
        assert found.cut == (hundredths in cut), value
        assert found.below_percent <= value + 1e-9
        assert value < found.above_percent + 1e-9
        assert statistics.impossible(value, rows) != (hundredths in rounded | cut)


def test_fewest_runs_is_the_smallest_that_fits(names):
    fewest_runs = names["fewest_runs"]
    assert fewest_runs(50.0, 2) == 1
    for value, rows in ((90.40, 872), (69.09, 277), (88.22, 408)):
        fits = [
            runs
            for runs in range(1, 11)
            if round(value * 100)
            in printed(rows * runs, ROUND_HALF_UP) | printed(rows * runs, ROUND_DOWN)
        ]
        assert fewest_runs(value, rows) == (fits or [0])[0]


def test_five_accuracies_of_the_small_dev_sets_are_no_single_runs(names):
    found = names["reachability"]
    assert set(found["task"]) == {"sst2", "mrpc", "qqp", "mnli", "qnli", "rte"}
    assert "electra" not in set(found["model"])
    small = found[found["task"].isin(["sst2", "mrpc", "rte"]) & ~found["possible"]]
    assert sorted(zip(small["model"], small["task"], strict=True)) == [
        ("deberta", "mrpc"),
        ("electra-deberta", "mrpc"),
        ("electra-deberta", "rte"),
        ("electra-deberta", "sst2"),
        ("roberta", "mrpc"),
    ]
    assert found[found["step"] < 0.01]["possible"].all()
    assert (found["runs"] == 1).tolist() == found["possible"].tolist()


# --- best of n


@pytest.mark.parametrize("n", [1, 2, 5, 10, 20])
def test_best_of_n_against_a_simulation(published, gains, n):
    spread = audit.deviations(published)
    drawn = np.random.default_rng(n).normal(0.0, spread, (RESAMPLES, n, len(spread)))
    bests, whole = drawn.max(1), drawn.mean(2).max(1)
    found = gains.loc[n]
    error = 5 * bests.std(0) / math.sqrt(RESAMPLES)
    assert (abs(found[spread.index] - bests.mean(0)) < error).all()
    average = bests.mean(1)
    assert found[audit.EACH] == pytest.approx(average.mean(), abs=error.mean())
    assert found[audit.SPREAD] == pytest.approx(average.std(), rel=0.05)
    assert found[audit.ONE] == pytest.approx(whole.mean(), abs=5 * whole.std() / RESAMPLES**0.5)


# --- the band


def test_the_band_against_the_error_function_and_a_simulation(names, gains):
    z, above, estimated, left = names["band"]
    assert z == pytest.approx((81.53 - 81.38) / 0.57)
    assert above == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)))
    drawn = np.random.default_rng(0).normal(size=(100_000, 14 + 1))
    past, new = drawn[:, :-1], drawn[:, -1]
    higher = (new - past.mean(axis=1)) / past.std(axis=1, ddof=1) > z
    assert estimated == pytest.approx(higher.mean(), abs=0.008)
    # What fine-tuning leaves of the band's deviation.
    assert math.hypot(left, gains.loc[10, audit.SPREAD]) == pytest.approx(0.57, abs=0.001)


# --- neighbours


# --- noise


def test_the_error_of_an_accuracy_is_that_of_a_binomial(names):
    right = names["scores"].loc["electra-deberta", "rte"] / 100
    assert names["over_rows"]["rte"] == pytest.approx(100 * stats.binom(277, right).std() / 277)


def test_flips_of_single_seeds_have_a_closed_form(published, names):
    spread = audit.average_deviation(published)
    found = names["flips"][names["ONE_SEED"]]
    wanted = stats.norm.cdf(-found.index.to_numpy() / (math.sqrt(2) * spread))
    assert np.abs(found - wanted).max() < 0.02


def test_flips_under_other_protocols(published, names):
    found = names["flips"]
    assert (found[names["MEDIAN"]].iloc[1:] <= found[names["ONE_SEED"]].iloc[1:]).all()
    gain = audit.best_of(audit.deviations(published)).loc[10, audit.EACH]
    best = found[names["BEST"]]
    assert best.index[best >= 0.5].max() == pytest.approx(gain, abs=0.06)


def test_the_figures_of_the_audit(notebook):
    noise, band = (value for value in notebook.shown if isinstance(value, Figure))
    assert [axis.get_ylabel() for axis in noise.axes] == ["worse model first, %"]
    (axis,) = band.axes
    curve = axis.lines[0]
    assert integrate.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(1, abs=1e-3)
    assert axis.texts[0].get_text() == " ELECTRA-DeBERTa 81.53"


# --- the notebook


def test_the_sentences_say_what_the_cells_compute(names):
    """They hold numbers: on Colab nothing can be pasted into a sentence."""
    cells = nbformat.read(ROOT / "notebooks" / "06_audit.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    published, gains, band = names["figures"], names["gains"], names["band"]
    average, gaps = names["averages"]["printed"], names["averages"]["below"]
    ten, apart = gains.loc[10], -average.sort_values(ascending=False).diff()
    each, flips = ten[audit.EACH], 100 * names["flips"]
    best = published["best_of_ten"]
    deviations = audit.deviations(published)
    assert names["identity"].sum(axis=1).tolist() == [0, 8, 0, 0, 0]
    for sentence in (
        f"ELECTRA-DeBERTa has {average['electra-deberta']:.2f} and is said",
        f"{apart['electra']:.2f} points lower, is another project's median",
        f"is worth {ten[audit.ONE]:.2f} points if one whole run is taken, {each:.2f} if each",
        f"the best of ten, {100 * names['rows'].iloc[4]:.0f} % of them would do better",
        f"If it is a median, {100 * names['rows'].iloc[5]:.0f} %",
        f"BERT ({average['bert']:.2f}) comes before RoBERTa ({average['roberta']:.2f})",
        f"{apart['roberta']:.2f} points apart",
        f"788 of 872, which is {78800 / 872:.2f} %, or 789 of 872, which is {78900 / 872:.2f} %",
        f"Five of the {len(names['tested'])} scores that can be tested fail",
        "Two of them, 90.40 and 85.30, are what a count gives when it is rounded to one decimal",
        f"nearer ({gaps['electra-deberta']}) and RoBERTa is farther ({gaps['roberta']})",
        f"are {published['announcement']['gap_smallest']['value']} to "
        f"{published['announcement']['gap_largest']['value']} points below",
        f"BERT-Base, which has {published['reference']['average']['value']:.2f}",
        f"varies by {deviations['rte']:.2f} points from seed to seed",
        f"40,430 rows, by {deviations['qqp']:.2f}",
        f"this gives {audit.average_deviation(published):.2f} points",
        f"on about {flips.loc[0.5, names['ONE_SEED']]:.0f} % of leaderboards",
        f"is worth {each:.2f} points if each task's best is taken, and {ten[audit.ONE]:.2f}",
        f"has a mean of {best['mean']['value']:.2f}, with a deviation of {best['sd']['value']:.2f}",
        f"{best['mean']['value']:.2f} in the mean, with a standard deviation of 0.57, from",
        f"from {best['smallest']['value']:.2f} to {best['largest']['value']:.2f}",
        f"is {band.iloc[0]:.2f} deviations above the mean",
        f"{100 * band.iloc[1]:.0f} % would score higher",
        f"a deviation of about {band.iloc[3]:.2f} points",
        "69.09 may be a mean of five runs; 88.22 and 88.49 are no mean of up to ten",
        f"{len(names['untrained'])} of {len(names['everything'])} parameter tensors with",
        f"{names['weights']:,} weights ({names['share']:.1f} % of all)",
        f"199 of 277 is {19900 / 277:.2f} and 200 of 277 is {20000 / 277:.2f}",
        f"already {gains.loc[2, 'rte']:.2f} points above the median",
        f"Half as much, {each / 2:.2f} points",
    ):
        assert sentence in prose
    odd = names["odd"]
    assert sorted(odd["value"][odd["one_decimal"]]) == [85.3, 90.4]
    assert dict(zip(odd["value"], odd["runs"], strict=True)).items() >= {
        (69.09, 5),
        (88.22, 0),
        (88.49, 0),
    }
    assert flips.loc[0.5, names["BEST"]] > 98
    assert flips.loc[1.0, names["BEST"]] == pytest.approx(50, abs=3)
