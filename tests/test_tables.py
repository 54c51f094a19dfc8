import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from makers import (
    HARDWARE,
    MODELS,
    PUBLISHED,
    REDUCED,
    TASKS,
    make_record,
    make_run,
    parse,
    table_rows,
    write_record,
)

from helpers.base import files
from helpers.data import glue
from helpers.pages import details, paper_page, plots, tables, write
from helpers.score import audit, paper, statistics


@pytest.fixture
def published():
    return paper.load(PUBLISHED)


@pytest.fixture
def embedded(tmp_path):
    return tables.load_records(make_run(tmp_path / "records"))


@pytest.fixture
def folder_data(tmp_path):
    return tables.load_records(make_run(tmp_path / "records", "folder"))


# --- published figures


def test_every_published_figure_has_a_known_source_and_status(published):
    figures = list(paper._figures(published, ""))
    assert len(figures) > 100


def test_table_1_shows_every_published_cell_with_its_source(published):
    text = paper_page.table1(published)
    rows = table_rows(text)
    assert len(rows) == 1 + len(published["table1"]["models"])
    for row, entry in zip(rows[1:], published["table1"]["models"].values(), strict=True):
        shown = dict(zip(rows[0], row, strict=True))
        assert shown["Model"] == entry["name"]
        assert int(shown["Rank"]) == entry["rank"]["value"]
        for task, figure in entry["scores"].items():
            assert float(shown[published["tasks"][task]["name"]]) == figure["value"]
        assert float(shown["Mean"]) == entry["average"]["value"]
    marks = [mark.get_text() for mark in parse(text).select("table sup")]
    number = list(published["sources"]).index("leaderboard") + 1
    assert marks.count(f"R{number}") == 5 * (1 + 8 + 1)


def test_published_averages_are_the_plain_means(published):
    scores = audit.scores(published)
    for row in table_rows(paper_page.table1(published))[1:]:
        model = next(m for m, e in published["table1"]["models"].items() if e["name"] == row[0])
        assert float(row[-2]) == pytest.approx(scores.loc[model].mean(), abs=0.005)
        assert float(row[-3]) == pytest.approx(scores.loc[model].mean(), abs=0.006)


def test_published_five_task_means_are_recomputed(published):
    rows = table_rows(paper_page.table1(published, ["cola", "sst2", "mrpc", "stsb", "rte"]))
    column = rows[0].index("Mean of 5")
    means = {row[0]: row[column] for row in rows[1:]}
    assert means == {
        "ELECTRA-DeBERTa": "78.39",
        "ELECTRA": "77.56",
        "DeBERTa": "75.83",
        "RoBERTa": "73.98",
        "BERT": "74.31",
    }


def test_table_2_gaps_as_in_the_paper(published, embedded):
    rows = table_rows(tables.table2(embedded, published, MODELS, TASKS))
    gaps = {row[0]: row[-1] for row in rows[1:]}
    assert gaps.pop("BERT-Base") == "–"
    assert gaps == {
        "ELECTRA-DeBERTa": "0.67",
        "ELECTRA": "1.84",
        "DeBERTa": "3.17",
        "RoBERTa": "3.87",
        "BERT": "3.83",
    }
    assert rows[1][1:3] == ["110.00", "82.20"]


@pytest.mark.parametrize(
    ("value", "rows", "expected"),
    [(50.0, 2, False), (33.33, 3, False), (66.66, 3, False), (66.67, 3, False), (66.7, 3, True)],
)
def test_impossible_accuracies(value, rows, expected):
    assert statistics.impossible(value, rows) is expected


def test_reference_points_show_every_published_figure(published):
    text = paper_page.reference_points(published)
    points = table_rows(text, 0)[1:]
    wanted = [(p["method"], f"{p['average']:.2f}") for p in published["quality_per_compute"]]
    assert [(row[0], row[-1]) for row in points] == wanted
    assert [row[1] for row in table_rows(text, 1)[1:]] == ["70", "65", "71", "166"]


# --- measured


def test_embedded_scores_are_never_called_glue(published, embedded):
    for text in (
        tables.table1_measured(embedded, published, MODELS, TASKS),
        tables.table1_side_by_side(embedded, published, MODELS, TASKS),
        tables.table2(embedded, published, MODELS, TASKS),
        tables.scratch(embedded, published, MODELS, TASKS),
        tables.summary(embedded, published, MODELS, TASKS),
    ):
        assert "embedded world (not GLUE)" in text
        assert "cannot be compared" in text
    assert tables.complete_tasks(embedded, TASKS) == []


def test_measured_tables_are_headed_with_profile_source_tokens_and_hardware(published, embedded):
    shown = parse(tables.table1_measured(embedded, published, MODELS, TASKS)).get_text()
    for word in ("Profile tiny", "embedded world", "2.05 M", "AMD EPYC 7R13 (cpu, 1 thread)"):
        assert word in shown
    header = table_rows(tables.table1_side_by_side(embedded, published, MODELS, TASKS))[0]
    assert all(word in header[2] for word in ("tiny", "embedded world", "2.05 M", "EPYC"))


def test_measured_cells_are_medians_and_means_have_errors(published, tmp_path):
    records = tables.load_records(make_run(tmp_path / "records", seeds=(0, 1, 2)))
    rows = table_rows(tables.table1_measured(records, published, MODELS, TASKS))
    bert = dict(zip(rows[0], rows[1], strict=True))
    assert bert["CoLA"] == "46.00"
    assert bert["Mean of 8"] == "56.50 (55.50 to 57.50)"
    assert bert["Seeds"] == "3"


def test_side_by_side_gives_no_difference_on_the_embedded_world(published, embedded):
    text = tables.table1_side_by_side(embedded, published, MODELS, TASKS)
    rows = table_rows(text)
    assert [row[1] for row in rows[1:9]] == [
        f"{figure['value']:.2f}"
        for figure in published["table1"]["models"]["bert"]["scores"].values()
    ]
    assert {row[3] for row in rows[1:]} == {"–"}
    assert "for layout only" in text


def test_side_by_side_gives_the_difference_on_complete_tasks_only(published, folder_data):
    rows = table_rows(tables.table1_side_by_side(folder_data, published, ["bert"], TASKS))
    found = {row[0]: row for row in rows[1:]}
    assert found["CoLA"][3] == f"{45.5 - 45.0:+.2f}"
    assert found["QQP †"][3] == "–"
    assert found["Mean of 8 †"][3] == "–"
    assert found["Mean of 5 complete"][1] == "74.31"
    assert float(found["Mean of 5 complete"][3]) == pytest.approx(53.3 - 74.314, abs=0.006)


def test_the_mean_of_the_complete_tasks_comes_first_and_that_of_all_is_marked(
    published, folder_data
):
    five, eight = "Mean of 5 complete", "Mean of 8 †"
    rows = table_rows(tables.table1_measured(folder_data, published, MODELS, TASKS))
    where = rows[0].index(five)
    assert rows[0][where : where + 3] == [five, eight, "Best of n"]
    mine = folder_data[folder_data["model"] == "bert"]
    own = mine[mine["task"].isin(["cola", "sst2", "mrpc", "stsb", "rte"])]
    own, every = (part.groupby("seed")["score"].mean() for part in (own, mine))
    assert rows[1][where].startswith(f"{own.median():.2f} (")
    assert rows[1][where + 1].startswith(f"{every.median():.2f} (")
    assert rows[1][where + 2] == f"{own.max():.2f} (n = 2)"
    beside = table_rows(tables.table1_side_by_side(folder_data, published, ["bert"], TASKS))
    assert [row[0] for row in beside[-2:]] == [five, eight]
    table2 = table_rows(tables.table2(folder_data, published, MODELS, TASKS), 1)
    assert table2[0][2:4] == [five, eight]
    gains = table_rows(tables.scratch(folder_data, published, MODELS, TASKS))
    assert [row[1] for row in gains[1:]] == ["5 complete"] * len(MODELS) + ["8 †"] * len(MODELS)
    summary = tables.summary(folder_data, published, MODELS, TASKS)
    assert f"{five.lower()}  {eight.lower()}" in re.sub(" {3,}", "  ", summary)


def test_reduced_splits_are_marked_with_their_rows(published, folder_data):
    for text in (
        tables.table1_measured(folder_data, published, MODELS, TASKS),
        tables.table1_side_by_side(folder_data, published, MODELS, TASKS),
        tables.table2(folder_data, published, MODELS, TASKS),
        tables.scratch(folder_data, published, MODELS, TASKS),
        tables.summary(folder_data, published, MODELS, TASKS),
    ):
        assert "QQP †: reduced training set: 36,391 of GLUE's 363,846 rows" in text
        assert "not GLUE's dev set: 4,050 of GLUE's 40,430 rows" in text
        assert "CoLA †" not in text
    rows = table_rows(tables.rows(folder_data, published, TASKS))
    assert ["CoLA", "train", "8,551", "8,551", "complete"] in rows
    assert ["QQP", "train", "36,391", "363,846", "reduced"] in rows


def test_the_gap_to_bert_base_needs_all_eight_tasks_whole(published, folder_data, tmp_path):
    reduced = tables.table2(folder_data, published, MODELS, TASKS)
    assert "reduced or missing: QQP, MNLI, QNLI" in reduced
    rows = table_rows(reduced, 1)
    assert {row[rows[0].index("Below BERT-Base")] for row in rows[1:]} == {"–"}
    assert rows[1][rows[0].index("Mean of 5 complete")] == "53.30 (52.80 to 53.80)"
    published_rows = table_rows(reduced)
    column = published_rows[0].index("Mean of 5 complete")
    assert [row[column] for row in published_rows[2:]] == [
        "78.39",
        "77.56",
        "75.83",
        "73.98",
        "74.31",
    ]
    whole = tmp_path / "whole" / "records"
    for task in TASKS:
        rows = glue.TASKS[task].official_rows
        record = make_record("bert", task, 0, "hub", complete=True, reduced=[], rows=rows)
        write_record(whole, record)
    records = tables.load_records(whole)
    text = tables.table2(records, published, ["bert"], TASKS)
    assert table_rows(text, 1)[1][3] == f"{82.20 - 55.5:.2f}"


def test_missing_tasks_and_models_are_named(published, tmp_path):
    records = make_run(tmp_path / "records", models=["bert"], tasks=["cola", "rte"], seeds=(0,))
    frame = tables.load_records(records)
    asked = (["bert", "electra"], ["cola", "qqp", "rte"])
    text = tables.table1_measured(frame, published, *asked)
    assert "Missing tasks (asked for, no record): QQP." in text
    assert "Missing models (asked for, no record): electra." in text
    assert "Tasks this run did not ask for: SST-2, MRPC, STS-B, MNLI, QNLI." in text
    rows = table_rows(text)
    assert rows[0][1:4] == ["CoLA", "QQP (missing)", "RTE"]
    assert rows[1][2] == "–"
    assert set(rows[2][1:]) == {"–"}
    assert "QQP (missing)" in tables.table1_side_by_side(frame, published, *asked)
    assert "no record" in tables.scratch(frame, published, *asked)


def test_a_model_without_every_task_has_no_mean(published, tmp_path):
    folder = make_run(tmp_path / "records", models=["bert", "electra"], seeds=(0,))
    (folder / "electra" / "rte" / "manifest.json").unlink()
    text = tables.table1_measured(
        tables.load_records(folder), published, ["bert", "electra"], TASKS
    )
    assert "electra has no record of RTE, so it has no mean." in text
    rows = table_rows(text)
    assert rows[2][rows[0].index("Mean of 8")] == "–"


def test_constant_predictions_are_counted_and_shown(published, tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"])
    note = "constant prediction: scored 0"
    write_record(folder, make_record("bert", "cola", 1, score=0.0, note=note))
    records = tables.load_records(folder)
    text = tables.table1_measured(records, published, ["bert"], TASKS)
    assert "bert on CoLA: constant prediction: scored 0 (1 of 2 seeds)." in text
    assert "1 of 2 noted" in text
    assert table_rows(text)[1][1] == "22.50"


def test_mnli_shows_mismatched_beside_matched(published, tmp_path):
    metrics = {"accuracy": 0.6, "mismatched_accuracy": 0.5925}
    write_record(tmp_path / "records", make_record("bert", "mnli", 0, metrics=metrics))
    records = tables.load_records(tmp_path / "records")
    text = tables.table1_measured(records, published, ["bert"], ["mnli"])
    assert table_rows(text)[1][1] == "60.00 / 59.25"


def test_a_cell_with_fewer_seeds_says_so(published, tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola"], seeds=(0, 1, 2))
    make_run(folder, models=["bert"], tasks=["rte"], seeds=(0, 1))
    records = tables.load_records(folder)
    rows = table_rows(tables.table1_measured(records, published, ["bert"], ["cola", "rte"]))
    assert rows[1][1:4] == ["46.00", "66.50 (n = 2)", "56.00 (55.50 to 56.50) (n = 2)"]


def test_difference_to_scratch_has_an_error_and_seeds(published, embedded):
    rows = table_rows(tables.scratch(embedded, published, MODELS, TASKS))
    bert = dict(zip(rows[0], rows[1], strict=True))
    assert bert["Difference"] == f"+5.00 ± {math.hypot(0.5, 0.5):.2f}"
    assert bert["In standard errors"] == f"{5 / math.hypot(0.5, 0.5):.1f}"
    assert bert["Seeds / scratch"] == "2 / 2"


def test_run_shows_budget_hardware_and_versions(published, embedded):
    text = tables.run(embedded, published, MODELS)
    shown = parse(text).get_text()
    for word in ("torch 2.13.0", "embedded world, seed 0", "AMD EPYC 7R13", "812 k", "12 T"):
        assert word in shown


def test_text_from_data_is_inert(published, tmp_path):
    nasty = "<script>alert(1)</script> | *x* `y` [z](http://a) $q$ {{ r }}"
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola"])
    hardware = HARDWARE | {"name": nasty}
    for seed in (0, 1):
        record = make_record("bert", "cola", seed, note=nasty, hardware=hardware, corpus=nasty)
        write_record(folder, record)
    records = tables.load_records(folder)
    for text in (
        tables.table1_measured(records, published, ["bert"], ["cola"]),
        tables.run(records, published, ["bert"]),
        tables.table1_side_by_side(records, published, ["bert"], ["cola"]),
    ):
        assert "<script" not in text
        page = parse(text)
        assert nasty in page.get_text()
        assert not page.select("script, em, a[href^='http://a']:-soup-contains('z')")
        assert len({len(row.find_all(["th", "td"])) for row in page.table.find_all("tr")}) == 1


def test_records_of_two_profiles_are_not_mixed(tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola"])
    write_record(folder, make_record("bert", "rte", 0, "folder"))
    with pytest.raises(ValueError, match="records mix profile"):
        tables.select(tables.load_records(folder), ["bert"], TASKS)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"score": "41"}, "score"),
        ({"score": None}, "score"),
        ({"seed": True}, "seed"),
        ({"pretrain": {}}, "pretrain"),
        ({"source": "web"}, "source"),
        ({"rows": {"train": "many"}}, "rows"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_broken_record_is_named_in_one_line(tmp_path, change, field):
    path = write_record(tmp_path / "records", make_record("bert", "cola", 0))
    record = {**make_record("bert", "cola", 0), **change}
    path.write_text(json.dumps(record), encoding="utf-8")
    files.write_manifest(path.parent, {"spec": ""}, [path.name])
    with pytest.raises(ValueError, match=field) as caught:
        tables.load_records(tmp_path / "records")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_or_missing_record_is_named(tmp_path):
    with pytest.raises(ValueError, match="no record"):
        tables.load_records(tmp_path / "records")
    path = write_record(tmp_path / "records", make_record("bert", "cola", 0))
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"seed-0\.json"):
        tables.load_records(tmp_path / "records")
    path.unlink()
    with pytest.raises(ValueError, match=r"seed-0\.json"):
        tables.load_records(tmp_path / "records")


def test_records_no_manifest_vouches_for_are_left_out(tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola", "rte"])
    (folder / "bert" / "rte" / "manifest.json").unlink()
    left = folder / "bert" / "cola" / "seed-9.json"
    left.write_text(json.dumps(make_record("bert", "cola", 9)), encoding="utf-8")
    frame = tables.load_records(folder)
    assert set(zip(frame["task"], frame["seed"], strict=True)) == {("cola", 0), ("cola", 1)}


def test_a_published_figure_without_a_known_source_is_named(tmp_path):
    data = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    data["reference"]["average"]["source"] = "hearsay"
    path = tmp_path / "published.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=r"reference\.average\.source: 'hearsay'"):
        paper.load(path)


@pytest.mark.parametrize("key", ["best_of_ten", "electra_small_owt", "throughput"])
def test_a_missing_part_of_the_published_figures_is_named(tmp_path, key):
    data = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    del data[key]
    path = tmp_path / "published.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{key} is missing"):
        paper.load(path)


def test_write_leaves_every_fragment_and_the_same_bytes_twice(tmp_path):
    folder = make_run(tmp_path / "records")
    for name in ("first", "second"):
        write.write(folder, PUBLISHED, tmp_path / name, MODELS, TASKS)
    names = sorted((*write.FRAGMENTS, *plots.FIGURES))
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == names
    for name in names:
        first, second = ((tmp_path / k / name).read_bytes() for k in ("first", "second"))
        assert first == second, name
    text = (tmp_path / "first" / "summary.txt").read_text(encoding="utf-8")
    assert "&#" not in text
    assert "electra-deberta" in text


def test_the_headline_ranks_the_means_and_says_what_the_data_was(published, embedded):
    text = tables.headline(embedded, published, MODELS, TASKS)
    assert "not GLUE" in text
    rows = table_rows(text)[1:]
    means = embedded.groupby(["model", "seed"])["score"].mean().groupby("model").median()
    names = means.rename(lambda model: paper.model_name(published, model))
    shown = [float(row[1]) for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert {row[0] for row in rows} == set(names.index)
    for name, mean, above in rows:
        assert float(mean) == pytest.approx(names[name], abs=0.006)
        if name != "scratch":
            assert float(above) == pytest.approx(names[name] - names["scratch"], abs=0.006)


def test_the_headline_counts_the_complete_tasks_beside_the_published_mean(published, folder_data):
    text = tables.headline(folder_data, published, MODELS, TASKS)
    assert "mixed prose, 0.58 GB" in text
    assert "1.5 passes over" in text
    assert "CoLA, SST-2, MRPC, STS-B, RTE, which are GLUE's own, whole" in text
    header, *rows = table_rows(text)
    assert header[1:4] == ["Mean of 5, × 100", "Published", "Mean of 8 †"]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    theirs = {"ELECTRA-DeBERTa": 78.39, "ELECTRA": 77.56, "DeBERTa": 75.83, "BERT": 74.31}
    for name, mean in (theirs | {"RoBERTa": 73.98}).items():
        assert found[name]["Published"] == f"{mean:.2f}"
    assert found["scratch"]["Published"] == "–"
    mine = folder_data[folder_data["model"] == "bert"]
    five = mine[~mine["task"].isin(REDUCED)].groupby("seed")["score"].mean()
    assert found["BERT"]["Mean of 5, × 100"].startswith(f"{five.median():.2f} (")
    assert found["BERT"]["Mean of 8 †"] == f"{mine.groupby('seed')['score'].mean().median():.2f}"


# --- figures


def log(*columns):
    steps = np.arange(1, 20)
    return pd.DataFrame({"tokens": steps * 2048, **dict.fromkeys(columns, 1 / steps)})


@pytest.mark.parametrize(
    ("columns", "axes"), [(["loss"], 1), (["loss", "generator_loss", "discriminator_loss"], 2)]
)
def test_the_loss_is_drawn_against_tokens(columns, axes):
    figure = plots.loss(log(*columns))
    assert len(figure.axes) == axes
    assert {axis.get_xlabel() for axis in figure.axes} == {"tokens seen, millions"}
    assert {axis.get_ylabel() for axis in figure.axes} == {"loss, nats"}


def test_a_log_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="column loss is missing, it has tokens"):
        plots.loss(log())


def test_labels_and_lengths_have_units():
    counts = pd.DataFrame(
        [("cola", "train", "acceptable", 3), ("cola", "train", "unacceptable", 1)],
        columns=["task", "split", "label", "rows"],
    )
    axis = plots.labels(counts).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [75.0, 25.0]
    assert axis.get_ylabel() == "share of rows, %"
    values = pd.DataFrame({"name": ["corpus"] * 4, "length": [3, 3, 4, 90]})
    axis = plots.lengths(values).axes[0]
    assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(100)
    assert axis.get_xlabel() == "length, words"


def test_the_score_figure_has_a_point_per_seed(published, embedded):
    upper, lower = plots.scores(embedded, published, MODELS, TASKS).axes
    assert "not GLUE" in lower.get_title()
    assert sum(len(line.get_xdata()) for line in upper.lines) == 5 * 8
    assert sum(len(line.get_xdata()) for line in lower.lines) == len(embedded)
    assert not upper.get_shared_y_axes().joined(upper, lower)


def test_embedded_points_stand_apart_from_published_ones(published, embedded):
    (axis,) = plots.overview(embedded, published, MODELS, TASKS).axes
    assert "not GLUE" in axis.get_title()
    assert all(line.get_fillstyle() == "full" for line in axis.lines)
    low, high = axis.get_xlim()
    assert high / low >= 10**1.49
    both = plots.compute(embedded, published, MODELS, TASKS).axes
    assert len(both) == 4
    assert not both[0].get_shared_y_axes().joined(both[0], both[2])


def test_saved_figures_have_no_date(tmp_path):
    plots.save(plots.loss(log("loss")), tmp_path / "loss.svg")
    text = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in text
    assert str(tmp_path) not in text


def test_kept_comparisons_may_lack_a_pair(published, embedded, tmp_path):
    names = ["bert", "roberta", "scratch"]
    pairs = [["bert", "scratch", 5.0, 4.0, 6.0], ["roberta", "scratch", 0.5, -1.0, 2.0]]
    kept = {"tasks": TASKS, "models": names, "pairs": pairs}
    files.write_json(tmp_path / details.COMPARISONS, kept)
    text = details.comparisons(tmp_path, embedded, published, names, TASKS)
    _, bert, roberta = table_rows(text)
    assert bert[1:] == ["–", "+5.00 (+4.00 to +6.00)"]
    assert roberta[1:] == ["", "+0.50 (-1.00 to +2.00)"]
    assert "1 of 2 differences are resolved at 95 %" in text
    assert "not kept in one place (1)" in text
