"""What the background pages compute, against other code and closed forms."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from makers import PUBLISHED, ROOT, TASKS, make_run, table_rows
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import BertConfig, BertModel, DebertaModel

from helpers.base import config
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.model import disentangled, registry
from helpers.pages import explain, explain_page, plots, tables
from helpers.score import audit, costs, paper

PAGES = sorted((ROOT / "book").glob("*.md"))


@pytest.fixture(scope="module")
def published():
    return paper.load(PUBLISHED)


@pytest.fixture(scope="module")
def found():
    return explain.corruption(documents=100)


# --- objectives


def test_a_corruption_hides_and_replaces_what_it_says(found):
    differ = found.corrupted != found.tokens
    hidden = found.masked.inputs != found.tokens
    assert torch.equal(found.labels.bool(), differ)
    assert not (differ & ~hidden).any()
    assert (found.masked.inputs[hidden] == explain.MASK).all()
    assert (hidden.sum(1) == 3).all()  # 15 % of 20
    assert not (found.corrupted == explain.MASK).any()
    assert 0 < found.replaced < found.chosen == pytest.approx(0.15)


def test_the_counting_generator_beats_a_blind_guess(found):
    unigram = torch.bincount(found.tokens.flatten()).float()
    entropy = stats.entropy(unigram.numpy())
    assert found.loss < entropy < math.log(len(found.words) - 1)


def test_the_example_shows_a_restored_and_a_replaced_word(found):
    rows = table_rows(explain_page.example(found))
    original, masked, corrupted, labels = (row[1].split() for row in rows[1:])
    assert len(original) == len(masked) == len(corrupted) == len(labels) == 20
    assert [int(a != b) for a, b in zip(original, corrupted, strict=True)] == [*map(int, labels)]
    assert 0 < sum(map(int, labels)) < masked.count("[MASK]") == 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.15, 0.5])
def test_the_loss_of_a_constant_answer(share):
    assert explain.entropy(share) == pytest.approx(stats.bernoulli(share).entropy())


def test_a_generator_of_the_registry_costs_what_the_registry_says():
    sizes = explain.generator_sizes("electra-deberta")
    paper = config.load_profile("paper")
    assert list(sizes.index) == list(explain.FRACTIONS)
    for fraction, name in ((0.25, "electra-deberta-quarter"), (1.0, "electra-deberta")):
        assert sizes.loc[fraction, "mflop"] * 1e6 == pytest.approx(costs.flops(name, paper))
    assert sizes["mflop"].is_monotonic_increasing
    assert sizes["parameters"].is_monotonic_increasing


# --- attention


@pytest.mark.parametrize(("length", "span"), [(8, 3), (5, 5), (12, 1), (3, 7)])
def test_the_index_matrix_is_the_clipped_distance(length, span):
    i, j = np.indices((length, length))
    wanted = np.clip(i - j + span, 0, 2 * span - 1)
    assert np.array_equal(explain.index_matrix(length, span), wanted)


def small_deberta():
    torch.manual_seed(0)
    size = registry.Size(1, 32, 4, 64, 32, 32, initial=0.3)
    shape = registry.build_config(registry.get("deberta"), size, 50, 12, dropout=0.0)
    return disentangled.speed_up(DebertaModel(shape)).eval()


@torch.inference_mode()
def test_the_three_terms_are_the_scores_of_the_layer():
    network, tokens = small_deberta(), torch.randint(50, (3, 9))
    terms = explain.score_terms(network, tokens)
    wanted = network(tokens, output_attentions=True).attentions[0]
    weights = sum(terms.values()).softmax(-1).transpose(0, 1)
    torch.testing.assert_close(weights, wanted)


def test_scores_by_distance_are_means_of_the_diagonals():
    terms = torch.randn(2, 3, 5, 5)
    found = explain.by_distance(terms)
    for distance in range(-4, 5):
        pairs = [terms[:, :, i, j] for i in range(5) for j in range(5) if i - j == distance]
        torch.testing.assert_close(found[:, distance + 4], torch.stack(pairs).mean((0, 2)))


def test_positions_of_a_run_and_of_fresh_weights(small_run, tmp_path):
    scores = explain.position_scores(small_run.folder, ["bert", "deberta"])
    assert set(scores["model"]) == {"", "deberta"}
    fresh = explain.position_scores(tmp_path, ["bert", "deberta"])
    assert set(fresh["model"]) == {""}
    labels = plots.attention(explain.index_matrix(8, 3), scores).legends[0].get_texts()
    assert [text.get_text() for text in labels][:2] == ["as initialised", "deberta, head 0"]


# --- small models


def test_bert_base_has_the_size_of_transformers_own():
    shape = explain.shapes(0.05, 125).loc["base"]
    with torch.device("meta"):
        stock = BertModel(BertConfig(), add_pooling_layer=False)
    assert shape["parameters"] == registry.count(stock)
    assert shape["embeddings"] == stock.get_input_embeddings().weight.numel()


def test_days_follow_from_flop():
    small = explain.shapes(0.1, 100).loc["small"]
    tokens = 1_000_000 * 128 * 128
    assert small["days"] == pytest.approx(tokens * small["mflop"] * 1e6 / 1e13 / 86400)


def test_a_day_at_a_measured_rate(published):
    gpus = costs.load(ROOT / "results" / "gpus.json")
    days = explain.gpu_day(gpus, published)
    theirs = days[days["measured"] & (days["gpu"] == "v100")]
    assert theirs["day"].tolist() == pytest.approx([47000 * 86400, 91000 * 86400])
    assumed = days[~days["measured"]]
    assert assumed.groupby("gpu").size().eq(3).all()
    assert assumed["utilisation"].agg(["min", "max"]).tolist() == pytest.approx(
        days.loc[days["measured"], "utilisation"].agg(["min", "max"]).tolist()
    )


def test_reported_scores_are_met_at_their_points_and_between(published):
    def score(tokens):
        return explain.reported_score(published, tokens, "ELECTRA-Small, ")

    assert [score(x) for x in (4.1e9, 8.2e9)] == pytest.approx([77.7, 79.0])
    assert score(4.1e9 * math.sqrt(2)) == pytest.approx((77.7 + 79.0) / 2)
    assert math.isnan(score(1e9))
    assert math.isnan(score(17e9))


# --- scores


def test_one_answer_for_every_row(tmp_path):
    make_run(tmp_path / "records", models=["bert"], seeds=(0,))
    found = explain.majority(tmp_path, TASKS)
    assert list(found.index) == TASKS
    for task in TASKS:
        kind = glue.TASKS[task]
        truth = glue.load(tmp_path, task, kind.validation)["label"]
        if not kind.labels:
            assert found.loc[task, "score"] == 0
            continue
        same = np.full(len(truth), truth.mode()[0])
        wanted = matthews_corrcoef(truth, same) if task == "cola" else (truth == same).mean()
        assert found.loc[task, "score"] == pytest.approx(100 * wanted)
        if task in ("mrpc", "qqp"):
            assert found.loc[task, "f1"] == pytest.approx(100 * f1_score(truth, same))


def test_a_run_without_dev_labels_says_so(tmp_path, published):
    records = tables.load_records(make_run(tmp_path / "records", models=["bert"], seeds=(0,)))
    text = explain_page.majority(tmp_path / "elsewhere", records, published, TASKS)
    assert text == "This run has no dev labels (data: embedded world).\n"


def test_glue_counts_two_metrics_where_table_1_counts_one():
    lines = [
        {"model": model, "task": task, "score": score, "metrics": metrics}
        for model in ("a", "b")
        for task, score, metrics in (
            ("mrpc", 80.0, {"accuracy": 0.8, "f1": 0.9}),
            ("stsb", 70.0, {"spearman": 0.7, "pearson": 0.6}),
            ("cola", 30.0, {"matthews_correlation": 0.3}),
        )
        if (model, task) != ("b", "cola")
    ]
    found = explain.choices(pd.DataFrame(lines), ["a", "b"])
    assert list(found.index) == ["a"]
    assert found.loc["a"].tolist() == pytest.approx([60.0, (85 + 65 + 30) / 3])


# --- noise


def test_the_error_of_an_accuracy_is_that_of_a_binomial(published):
    row = audit.dev_errors(published).loc["rte"]
    right = published["table1"]["models"]["electra-deberta"]["scores"]["rte"]["value"] / 100
    assert row["dev"] == pytest.approx(100 * stats.binom(277, right).std() / 277)
    assert row["step"] == pytest.approx(100 / 277)


def test_flips_of_single_seeds_have_a_closed_form(published):
    spread = audit.average_deviation(published)
    found = audit.flips(published)[audit.ONE_SEED]
    wanted = stats.norm.cdf(-found.index.to_numpy() / (math.sqrt(2) * spread))
    assert np.abs(found - wanted).max() < 0.02


def test_flips_under_other_protocols(published):
    found = audit.flips(published)
    assert (found[audit.MEDIAN].iloc[1:] <= found[audit.ONE_SEED].iloc[1:]).all()
    gain = audit.best_of(audit.deviations(published), 20000, 1).loc[10, audit.EACH]
    best = found[audit.BEST]
    assert best.index[best >= 0.5].max() == pytest.approx(gain, abs=0.06)


def test_equal_models_are_as_far_apart_as_normal_ones(published):
    drawn = audit.equal_models(published)
    spread = audit.average_deviation(published)
    assert drawn.shape[1] == 5
    assert drawn.std() == pytest.approx(spread, rel=0.02)
    # The expected range of five normal values is 2.326 deviations (Tippett 1925).
    assert (drawn.max(1) - drawn.min(1)).mean() == pytest.approx(2.326 * spread, rel=0.02)


def test_ranks_are_shared_out_whole(published):
    found = audit.rank_shares(published)
    assert found.sum(axis=0).tolist() == pytest.approx([1] * 5)
    assert found.sum(axis=1).tolist() == pytest.approx([1] * 5)
    average = audit.averages(published)["printed"]
    gap = (average["deberta"] - average["bert"]) / audit.average_deviation(published)
    assert found.loc["deberta", [1, 2, 3]].sum() <= stats.norm.cdf(gap / math.sqrt(2))


# --- what was stated


def test_what_was_stated_names_pages_that_are_there(published):
    names = {path.stem for path in PAGES}
    assert {entry["page"] for entry in published["stated"]} <= names
    text = explain_page.stated(published)
    assert "10 a cell in profile paper" in text
    assert "{" not in text


def test_an_unknown_parameter_among_what_was_stated_is_one_line():
    data = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    data["stated"][0]["here"] = "{learning_rte}"
    with pytest.raises(UserError, match="learning_rte is no parameter of a profile"):
        explain_page.stated(data)


# --- the pages


def test_every_page_says_how_to_run_it():
    for path in PAGES:
        if path.stem not in ("index", "run"):  # the landing page, and the page that is all of it
            assert "\n## Run this yourself\n" in path.read_text(encoding="utf-8"), path.name


def python_blocks():
    """The Python code of the pages that needs no run."""
    for path in PAGES:
        after = path.read_text(encoding="utf-8").partition("## Run this yourself")[2]
        for place, block in enumerate(re.findall(r"```python\n(.*?)```", after, re.DOTALL)):
            if "runs/" not in block:
                yield pytest.param(block, id=f"{path.stem}-{place}")


@pytest.mark.parametrize("block", list(python_blocks()))
def test_what_a_page_tells_to_run_runs(block, capsys):
    exec(compile(block, "page", "exec"), {})
    if "print" in block:
        assert capsys.readouterr().out


def test_terms_that_pages_link_are_in_the_glossary():
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\w[^\n]*)\n  \S", text, re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    for path in PAGES:
        used = re.findall(r"\{term\}`([^`<]+)`", path.read_text(encoding="utf-8"))
        assert set(used) <= set(terms), path.name


def test_the_figure_of_noise_has_units(published):
    figure = plots.noise(audit.equal_models(published), audit.flips(published))
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "average from the true one, points",
        "of leaderboards, %",
    ]
