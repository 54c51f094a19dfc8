"""Frames of made-up records, published figures, and figures drawn."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from makers import (
    HARDWARE,
    MODELS,
    PUBLISHED,
    REDUCED,
    TASKS,
    make_record,
    make_run,
    make_view,
    run_page,
    shown,
    write_record,
)

from helpers.base import files
from helpers.pages import comparisons, plots, tables, view
from helpers.score import paper
from helpers.score.statistics import Comparison

FIVE, EIGHT = "Mean of 5 complete", "Mean of 8 †"
NOTHING = comparisons.Compared(TASKS, [], {}, {})


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return make_view(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def folder_data(tmp_path_factory):
    return make_view(tmp_path_factory.mktemp("folder"), "folder")


# --- published figures


def test_a_mark_is_the_number_of_its_source_and_leads_there(published):
    figure = published["table1"]["models"]["bert"]["average"]
    number = list(published["sources"]).index(figure["source"]) + 1
    text = str(paper.cited(figure, published))
    assert text.startswith(f'{figure["value"]:.2f}<sup title="read at the source">')
    assert f'href="../book/references.html#source-{number}">[S{number}]</a>' in text
    sources = run_page("references").names["sources"]
    assert f'id="source-{number}"' in str(sources.loc[f"S{number}", "Source"])
    nasty = paper.cited(figure | {"value": "<b>"}, published)
    assert str(nasty).startswith("&lt;b&gt;")


# --- measured


def cells(view, model="BERT"):
    """A model's column of the grid, by task."""
    return {row["Task"]: row[model] for row in shown(tables.grid(view))}


def test_embedded_scores_are_never_called_glue(embedded):
    for word in ("(not GLUE)", "Profile tiny", "2.05 M", "AMD EPYC 7R13 (cpu, 1 thread)"):
        assert word in tables.heading(embedded)
    assert "embedded world (not GLUE)" in tables.summary(embedded)
    assert "not GLUE scores and cannot be compared" in str(view.note(embedded))
    assert embedded.whole == []


def test_measured_cells_are_means_over_seeds_with_their_range(tmp_path):
    bert = cells(make_view(tmp_path, models=["bert"], seeds=(0, 1, 2)))
    assert bert["CoLA"] == "46.00 45.00 to 47.00"
    assert bert["Mean of 8"] == "56.50 55.50 to 57.50"
    assert (bert["Tokens read"], bert["Seeds"], bert["Parameters"]) == ("2.05 M", "3", "812 k")
    many = make_view(tmp_path / "many", models=["bert"], seeds=tuple(range(7)))
    assert cells(many)["Mean of 8"] == "58.50 55.50 to 61.50"
    assert "58.50 (55.50 to 61.50)" in tables.summary(many)
    one = make_view(tmp_path / "one", models=["bert"], seeds=(0,))
    assert cells(one)["Mean of 8"] == "55.50"
    assert comparisons.compared(one)[1:] == ([], {}, {task: {} for task in TASKS})
    assert tables.comparisons(one).empty


def test_published_scores_stand_below_measured_ones_on_glue_alone(embedded, folder_data):
    assert not any("published" in cell for cell in cells(embedded).values())
    bert, scratch = cells(folder_data), cells(folder_data, "scratch")
    assert bert["CoLA"] == "45.50 45.00 to 46.00 published 45.00"
    assert bert[FIVE].endswith("published 74.31")
    assert not any("published" in cell for cell in scratch.values())


def test_the_mean_of_the_complete_tasks_comes_first_and_that_of_all_is_marked(folder_data):
    column = cells(folder_data)
    where = list(column).index(FIVE)
    assert list(column)[where : where + 3] == [FIVE, EIGHT, "Seeds"]
    mine = folder_data.of("bert")
    own = mine[~mine["task"].isin(REDUCED)]
    own, every = (part.groupby("seed")["score"].mean() for part in (own, mine))
    assert column[FIVE].startswith(f"{own.mean():.2f} ")
    assert column[EIGHT].startswith(f"{every.mean():.2f} ")
    groups = tables.controls(folder_data, NOTHING)["Tasks"].tolist()
    assert groups == ["5 complete"] * len(MODELS) + ["8 †"] * len(MODELS)
    assert tables.spread(folder_data).loc[("BERT", FIVE), "mean"] == pytest.approx(own.mean())


def test_without_a_model_on_all_tasks_there_is_no_first_table(folder_data):
    rows = folder_data.records
    some = (rows["model"] == "bert") == (rows["task"] == "cola")
    assert tables.headline(replace(folder_data, records=rows[some])).empty


def test_reduced_splits_are_marked_with_their_rows(folder_data):
    rows = [list(row.values()) for row in shown(tables.rows(folder_data))]
    assert ["CoLA", "train", "8,551", "8,551", "complete"] in rows
    assert ["QQP", "train", "36,391", "363,846", "reduced"] in rows
    assert "QQP †" in tables.summary(folder_data)
    assert "CoLA †" not in tables.summary(folder_data)


def test_missing_tasks_and_models_are_dashes_and_named(tmp_path):
    make_run(tmp_path / "records", models=["bert"], tasks=["cola", "rte"], seeds=(0,))
    asked = view.open_run(tmp_path, ["bert", "electra"], ["cola", "qqp", "rte"])
    bert, electra = cells(asked), cells(asked, "ELECTRA")
    assert (bert["CoLA"], bert["QQP"]) == ("45.00", "–")
    assert {electra[name] for name in ("CoLA", "QQP", "RTE")} == {"–"}
    found = [tuple(row.values())[:3] for row in shown(tables.remarks(asked))]
    assert ("BERT", "QQP", "no record") in found
    assert ("ELECTRA", "CoLA", "no record") in found
    marks = {(row["Task"], row["Mark"]) for row in shown(tables.rows(asked))}
    assert {("QQP", "no record"), ("MNLI", "not asked for")} <= marks
    for frame in (tables.controls(asked, NOTHING), tables.run(asked)):
        assert shown(frame)


def test_an_unfinished_run_says_what_is_missing(tmp_path):
    make_run(tmp_path / "records", models=["bert"], tasks=["cola"])
    parameters = {"models": ["bert", "electra"], "tasks": ["cola"]}
    missing = {"04_finetune-<b>": "waiting"}
    files.write_json(tmp_path / "run.json", {"parameters": parameters, "missing": missing})
    text = str(view.note(view.open_run(tmp_path), executed=False))
    assert "<code>04_finetune-&lt;b&gt;</code> (waiting)." in text
    assert "no job of this stage is finished" in text


def test_a_model_without_every_task_has_no_mean(tmp_path):
    folder = make_run(tmp_path / "records", models=["bert", "electra"], seeds=(0,))
    (folder / "electra" / "rte" / "manifest.json").unlink()
    found = view.open_run(tmp_path, ["bert", "electra"], TASKS)
    assert cells(found, "ELECTRA")["Mean of 8"] == "–"


def test_constant_predictions_are_counted_and_shown(tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"])
    note = "constant prediction: scored 0"
    write_record(folder, make_record("bert", "cola", 1, score=0.0, note=note))
    noted = view.open_run(tmp_path, ["bert"], TASKS)
    assert [tuple(row.values()) for row in shown(tables.remarks(noted))] == [
        ("BERT", "CoLA", note, "1 of 2")
    ]
    assert cells(noted)["CoLA"].startswith("22.50 ")
    assert note in tables.summary(noted)


def test_mnli_shows_mismatched_beside_matched(tmp_path):
    metrics = {"accuracy": 0.6, "mismatched_accuracy": 0.5925}
    write_record(tmp_path / "records", make_record("bert", "mnli", 0, metrics=metrics))
    found = view.open_run(tmp_path, ["bert"], ["mnli"])
    assert cells(found)["MNLI"] == "60.00 / 59.25"


def test_a_cell_with_fewer_seeds_says_so(tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola"], seeds=(0, 1, 2))
    make_run(folder, models=["bert"], tasks=["rte"], seeds=(0, 1))
    row = cells(view.open_run(tmp_path, ["bert"], ["cola", "rte"]))
    assert row["RTE"] == "66.50 (n = 2) 66.00 to 67.00"
    assert row["Mean of 2"] == "56.00 (n = 2) 55.50 to 56.50"


def test_what_pretraining_is_worth_is_the_difference_to_the_same_architecture(tmp_path):
    asked = ["bert", "roberta", "electra-deberta", "scratch", "scratch-roberta"]
    run = make_view(tmp_path, models=asked)
    pairs = {("scratch", "bert"): Comparison(-5.0, -7.0, -3.0, 0.01)}
    without = {"cola": pairs, "rte": {("scratch", "bert"): Comparison(-1.0, -3.0, 1.0, 0.5)}}
    found = tables.controls(run, comparisons.Compared(TASKS, asked, pairs, without))
    bert = found.loc["BERT"]
    assert (bert["Control"], bert["Seeds / control's"]) == ("scratch", "2 / 2")
    assert tuple(bert[["Difference", "95 % from", "95 % to"]]) == (5, 3, 7)
    assert bert["Without one task"] == "+1.00 (-1.00 to +3.00) without RTE"
    assert found.loc["RoBERTa", "Control"] == "scratch-roberta"
    absent = found.loc["ELECTRA-DeBERTa"]
    assert absent["Control"] == "scratch-deberta, not run"
    assert absent[["Difference", "95 % to"]].isna().all()
    assert pd.isna(found.loc["scratch", "Control"])


def test_run_shows_budget_hardware_and_versions(embedded):
    bert, *_ = shown(tables.run(embedded))
    assert (bert["Parameters"], bert["FLOPs"], bert["Fine-tunings"]) == ("812 k", "12 T", "16")
    facts = {row["Fact"]: row["This run"] for row in shown(tables.facts(embedded))}
    assert facts["Versions"] == "python 3.11.7 / torch 2.13.0"
    assert facts["Corpus"] == "embedded world, seed 0"
    assert facts["Fine-tuning on"] == "AMD EPYC 7R13 (cpu, 1 thread)"


def test_text_from_data_is_inert(tmp_path):
    nasty = "<script>alert(1)</script> | *x* `y` [z](http://a) $q$ {{ r }}"
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola"])
    hardware = HARDWARE | {"name": nasty}
    for seed in (0, 1):
        record = make_record("bert", "cola", seed, note=nasty, hardware=hardware, corpus=nasty)
        write_record(folder, record)
    found = view.open_run(tmp_path, ["bert"], ["cola"])
    found.facts.update(finished="2026", hardware=[nasty], commits=[], corpus=nasty, remark=nasty)
    found.facts["parameters"]["profile"] = nasty
    frames = (tables.remarks(found), tables.facts(found), tables.records(found))
    texts = [tables.show(frame, tables.heading(found)).to_html() for frame in frames]
    for text in (*texts, str(view.note(found, foot=True))):
        assert "<script" not in text
        page = BeautifulSoup(text, "html.parser")
        assert nasty in " ".join(page.get_text().split())
    page = BeautifulSoup(tables.show(pd.DataFrame({nasty: [1]}, [nasty])).to_html(), "html.parser")
    assert [tag.get_text() for tag in page.find_all("th")][1:] == [nasty, nasty]


def test_records_of_two_profiles_are_not_mixed(tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola"])
    write_record(folder, make_record("bert", "rte", 0, "folder"))
    with pytest.raises(ValueError, match="records mix profile"):
        view.select(view.load_records(folder), ["bert"], TASKS)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(ValueError, match="no record"):
        view.load_records(tmp_path / "records")
    path = write_record(tmp_path / "records", make_record("bert", "cola", 0))
    path.unlink()
    with pytest.raises(ValueError, match=r"seed-0\.json"):
        view.load_records(tmp_path / "records")


def test_records_no_manifest_vouches_for_are_left_out(tmp_path):
    folder = make_run(tmp_path / "records", models=["bert"], tasks=["cola", "rte"])
    (folder / "bert" / "rte" / "manifest.json").unlink()
    left = folder / "bert" / "cola" / "seed-9.json"
    left.write_text(json.dumps(make_record("bert", "cola", 9)), encoding="utf-8")
    frame = view.load_records(folder)
    assert set(zip(frame["task"], frame["seed"], strict=True)) == {("cola", 0), ("cola", 1)}


def test_every_published_figure_has_a_known_source_and_status():
    published, seen = files.read_json(PUBLISHED), []

    def look(value):
        if isinstance(value, dict) and {"source", "status"} & value.keys():
            seen.append(value)
            assert value["source"] in published["sources"], value
            assert value["status"] in published["statuses"], value
        for inner in value.values() if isinstance(value, dict) else value:
            if isinstance(inner, dict | list):
                look(inner)

    look(published)
    assert len(seen) > 100


def test_the_parameters_of_a_run_are_written_once(tmp_path):
    run = make_view(tmp_path, models=["bert"], tasks=["cola"])
    view.save_facts(run)
    assert view.open_run(tmp_path).models == ("bert",)
    files.write_json(tmp_path / "run.json", files.read_json(tmp_path / "run.json") | {"tokens": 5})
    again = view.open_run(tmp_path, ["bert", "electra"], ["cola"])
    view.save_facts(again)
    assert files.read_json(tmp_path / "run.json")["tokens"] == 5
    assert view.open_run(tmp_path).models == ("bert", "electra")


def test_the_headline_ranks_and_counts_the_complete_tasks_beside_the_published_mean(folder_data):
    means = [float(row["Mean of 5, × 100"]) for row in shown(tables.headline(folder_data))]
    assert means == sorted(means, reverse=True)
    found = {row["Model"]: row for row in shown(tables.headline(folder_data))}
    theirs = {"ELECTRA-DeBERTa": 78.39, "ELECTRA": 77.56, "DeBERTa": 75.83, "BERT": 74.31}
    for name, mean in (theirs | {"RoBERTa": 73.98}).items():
        assert found[name]["Published"] == f"{mean:.2f}"
    assert found["scratch"]["Published"] == "–"
    mine = folder_data.of("bert")
    five = mine[~mine["task"].isin(REDUCED)].groupby("seed")["score"].mean()
    assert found["BERT"]["Mean of 5, × 100"] == f"{five.mean():.2f}"
    assert found["BERT"][EIGHT] == f"{mine.groupby('seed')['score'].mean().mean():.2f}"


def test_kept_comparisons_are_shown_pair_by_pair(tmp_path):
    names = ["bert", "roberta", "scratch"]
    pairs = [["bert", "scratch", 5.0, 4.0, 6.0, 0.01], ["roberta", "scratch", 3, 1, 5, 0.06]]
    pairs += [["bert", "roberta", -1, -3, 1, 0.4]]
    kept = {"tasks": TASKS, "models": names, "pairs": pairs, "without": {}}
    files.write_json(tmp_path / comparisons.FILE, kept)
    frame = tables.comparisons(make_view(tmp_path, models=names))
    bert, roberta = (list(row.values()) for row in shown(frame))
    assert bert[1:] == ["-1.00 (-3.00 to +1.00)", "+5.00 (+4.00 to +6.00)"]
    assert roberta[1:] == ["", "+3.00 (+1.00 to +5.00)"]
    assert "<strong>+5.00 (" in str(frame.loc["BERT", "scratch"])
    assert "<strong>" not in str(frame.loc["RoBERTa", "scratch"])


def test_a_win_is_told_without_the_task_that_speaks_most_for_it(tmp_path):
    def rows(difference, p):
        ends = difference - 2, difference + 2
        return [["bert", "electra", difference, *ends, p], ["bert", "scratch", 5.0, 4.0, 6.0, 0.01]]

    kept = {"tasks": ["cola", "rte"], "models": MODELS, "pairs": rows(-6.0, 0.001)}
    kept["without"] = {"cola": rows(-5.0, 0.01), "rte": rows(0.5, 1.0)}
    files.write_json(tmp_path / comparisons.FILE, kept)
    run = make_view(tmp_path, models=["bert", "electra", "scratch"], tasks=["cola", "rte"])
    (row,) = comparisons.questions(run).to_dict("records")
    assert (row["what"], row["model"], row["difference"]) == ("detection", "electra", 6.0)
    task, left = comparisons.least(comparisons.compared(run), "electra", "bert")
    assert (task, left.difference) == ("rte", -0.5)
    found = tables.key_figures(run)
    asked = "ELECTRA over BERT +6.00 (+4.00 to +8.00), -0.50 (-2.50 to +1.50) without RTE"
    assert (found["detection"], found["attention"]) == (asked, "not measured")


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


def test_embedded_points_stand_apart_from_published_ones(embedded):
    (axis,) = plots.budgets([embedded]).axes
    assert "not GLUE" in axis.get_title()
    assert all(line.get_fillstyle() == "full" for line in axis.lines)
    low, high = axis.get_xlim()
    assert high / low >= 10**1.49


def test_scores_along_the_budget_stand_beside_published_ones_on_the_same_tasks(
    folder_data, published
):
    (axis,) = plots.budgets([folder_data, folder_data]).axes
    lines = [line for line in axis.lines if line.get_fillstyle() == "none"]
    main = folder_data.headline
    wanted = {
        np.mean([entry["scores"][task]["value"] for task in main])
        for name, entry in published["table1"]["models"].items()
        if name in folder_data.models
    }
    assert {line.get_ydata()[0] for line in lines if len(line.get_ydata()) == 1} == wanted
    (along,) = (line for line in lines if len(line.get_ydata()) > 1)
    assert max(along.get_ydata()) == 79.9
    assert max(along.get_xdata()) == pytest.approx(16.4e9 * 70e6, rel=0.01)
    handles = axis.get_legend_handles_labels()[0]
    measured = [one for one in handles if hasattr(one, "has_yerr") and one.has_yerr]
    assert measured
    assert all(len(one.lines[0].get_xdata()) == 2 for one in measured)


def test_runs_of_one_recipe_differ_in_their_budget_alone(folder_data, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "find", lambda path: tmp_path / path)
    files.write_json(tmp_path / "results" / "published.json", folder_data.published)
    facts = {"pretrain_steps": 10, "clip": 1.0, "models": ["bert"], "tasks": ["cola"]}
    for name, changes in {
        "longer": {"pretrain_steps": 30, "profile": "x"},
        "same": {},
        "otherwise": {"pretrain_steps": 30, "clip": 2.0},
        "older": {"pretrain_steps": 50, "gone": 1},
    }.items():
        kept = tmp_path / view.MEASURED / name
        make_run(kept / "records", "folder", models=["bert"], tasks=["cola"])
        files.write_json(kept / "run.json", {"parameters": facts | changes})
    shown = replace(folder_data, facts={"parameters": facts})
    found = view.budgets(shown)
    assert found[0] is shown
    assert [run.run.name for run in found[1:]] == ["longer", "older"]
    alone = replace(folder_data, facts={"parameters": {"models": ["bert"], "tasks": ["cola"]}})
    assert view.budgets(alone) == [alone]  # nothing says how it was made


def test_saved_figures_have_no_date(tmp_path):
    plots.save(plots.loss(log("loss")), tmp_path / "loss.svg")
    text = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in text
    assert str(tmp_path) not in text
