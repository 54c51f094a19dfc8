"""How far a study has come, told from its files; one notebook run from the front door."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from makers import ROOT, SMALL, STUDY, command, executed_notebook, small_profile, write_study

from helpers.base import config, files, progress
from helpers.base.errors import PREEMPTED, UserError
from helpers.study import cli, jobs
from helpers.study.notebook import beside, executed
from helpers.train import finetune


def notebook(path, *outputs, seconds=None):
    """An executed notebook with the outputs of one cell."""
    cell = nbformat.v4.new_code_cell("run()", outputs=list(outputs), execution_count=1)
    made = nbformat.v4.new_notebook(cells=[cell])
    made.metadata["papermill"] = {"duration": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)


def error(name, value):
    return nbformat.v4.new_output("error", ename=name, evalue=value, traceback=[value])


@pytest.fixture
def run(small_run, tmp_path):
    """The small run's files under a profile of its own, with no notebook executed yet."""
    profile = small_profile(tmp_path, models=["roberta", "bert"], tasks=["cola", "mnli"], seeds=[0])
    profile.folder.mkdir()
    for name in ("data", "tokenizer", "models", "records"):
        (profile.folder / name).symlink_to(small_run.folder / name)
    return profile


def states(profile):
    return {job.name: state for job, state in jobs.survey(profile).items()}


def place(profile, name):
    return executed(profile.folder, name)


def test_what_is_done_follows_from_manifests_and_records(run):
    found = states(run)
    assert {name for name, state in found.items() if state.state == "done"} == {
        *("01_data", "02_tokenizer-bpe", "02_tokenizer-wordpiece"),
        *("03_pretrain-roberta", "03_pretrain-bert", "04_finetune-roberta"),
    }
    assert found["04_finetune-bert"].state == "waiting"
    records = [
        files.read_json(run.folder / "records" / "roberta" / task / "seed-0.json")
        for task in run.tasks
    ]
    spent = sum(record["finetune"]["seconds"] for record in records)
    assert found["04_finetune-roberta"].seconds == pytest.approx(spent)
    # What papermill took for all of the notebook counts where it is more.
    notebook(place(run, "04_finetune-roberta"), seconds=spent + 7)
    assert states(run)["04_finetune-roberta"].seconds == pytest.approx(spent + 7)


def test_what_other_parameters_made_is_not_done(run):
    longer = run.model_copy(update={"pretrain_steps": 13})
    assert states(longer)["03_pretrain-roberta"].state == "waiting"
    for change in ({"documents": 70}, {"dev_rows": 7}, {"world_seed": 1}, {"source": "hub"}):
        other = states(run.model_copy(update=change))
        assert other["01_data"].state == "waiting", change
        assert other["02_tokenizer-bpe"].state == "done"
    small = states(run.model_copy(update={"bpe_vocabulary": 310}))
    assert small["01_data"].state == "done"
    assert small["02_tokenizer-bpe"].state == "waiting"
    assert small["02_tokenizer-wordpiece"].state == "done"
    more = run.model_copy(update={"seeds": [0, 1]})
    assert states(more)["03_pretrain-roberta"].state == "done"
    assert states(more)["04_finetune-roberta"].state == "waiting"


def test_a_running_job_holds_its_lock_and_tells_its_progress(run):
    notebook(place(run, "04_finetune-bert"), error("UserError", "of a run before"))
    told = {"done": 3, "total": 12, "unit": "steps", "speed": "4.17k tokens/s"}
    told |= {"seconds_left": 7.2, "note": "cola, seed 0"}
    part = beside(place(run, "04_finetune-bert"), "ipynb")
    part.write_text("")
    with files.lock(part.parent, ".04_finetune-bert.lock"):
        found = states(run)["04_finetune-bert"]
        assert (found.state, found.detail) == ("running", "no progress told yet")
        files.write_json(beside(place(run, "04_finetune-bert"), "progress.json"), told)
        found = states(run)["04_finetune-bert"]
    assert (found.state, found.share) == ("running", 0.25)
    assert found.detail.startswith("25 %, 3/12 steps, 4.17k tokens/s, 00:07 left, cola, seed 0 (")
    # Killed without a chance to tidy up: the lock is free, the part is there.
    assert states(run)["04_finetune-bert"].state == "stopped"


def test_a_notebook_run_by_hand_shows_by_its_model(run, tmp_path):
    other = run.model_copy(update={"runs": str(tmp_path / "other")})
    with files.lock(other.folder / "models" / "bert"):
        assert states(other)["03_pretrain-bert"].state == "running"
    assert states(other)["03_pretrain-bert"].state == "waiting"


def test_a_failed_job_tells_why(run):
    bad = error("UserError", "pretrain_learning_rate = 0.5: the loss of bert is nan by step 9")
    notebook(place(run, "04_finetune-bert"), bad)
    found = states(run)["04_finetune-bert"]
    assert found.state == "failed"
    assert found.detail == f"code cell 1: UserError: {bad.evalue}"
    saved = error("Preempted", "fine-tune, seed 0: stopped, saved at step 7")
    notebook(place(run, "04_finetune-bert"), saved)
    assert states(run)["04_finetune-bert"] == jobs.State("stopped", saved.evalue)


def test_the_rest_is_told_from_what_is_finished(run):
    found = jobs.survey(run)
    (one,) = [job for job in found if job.name == "04_finetune-roberta"]
    (other,) = [job for job in found if job.name == "04_finetune-bert"]
    found[one] = jobs.State("done", seconds=50.0, share=1.0, hardware="a machine")
    wanted = jobs.flops(run, other) / (jobs.flops(run, one) / 50.0)
    line, last = jobs.time_left(run, found, 2)
    assert f"{progress.duration(wanted)} at the {jobs.flops(run, one) / 50:.3g} FLOP/s" in line
    assert "a machine" in line
    # One job cannot be split between two.
    assert last == f"training left, 2 at a time: about {progress.duration(wanted)}"
    found[other] = jobs.State("running", share=0.5)
    assert progress.duration(wanted / 2) in jobs.time_left(run, found, 2)[0]
    found[one] = jobs.State("waiting")
    (line,) = jobs.time_left(run, found, 2)
    assert "cannot be told" in line
    assert jobs.time_left(run, dict.fromkeys(found, jobs.State("done", share=1.0)), 2) == []


def test_lines_of_progress_have_rate_and_time_left(capsys, monkeypatch, tmp_path):
    """Against a clock of the test's own: rates are this process's, whatever was done before."""
    told = tmp_path / "progress.json"
    monkeypatch.setenv(progress.FILE, str(told))
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    bar = progress.bar(100, "pre-train bert", "steps", done=20)
    bar._time = lambda: clock[0]
    bar.start_t = bar.last_print_t = clock[0]
    bar.skip(20)
    for _ in range(30):
        clock[0] += 1
        bar.tokens += 1500
        bar.set_postfix_str("loss 3.000", refresh=False)
        bar.update()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" 20 %, 20/100 steps")
    assert lines[-1] == (
        "pre-train bert:  70 %, 70/100 steps, 1.50k tokens/s, 00:30 left, loss 3.000"
    )
    assert len(lines) == 4  # one each ten seconds
    state = files.read_json(told)
    assert (state["done"], state["total"], state["note"]) == (65, 100, "loss 3.000")
    assert progress.line(state).strip().startswith("65 %, 65/100 steps, 1.50k tokens/s, 00:35 left")
    assert all(progress.LINE.match(line) for line in lines)
    # Of a run of three days few enough to read, none older than ten minutes.
    bar.total = 10**6
    for _ in range(3 * 24 * 60):
        clock[0] += 60
        bar.update()
    assert 400 < len(capsys.readouterr().out.splitlines()) < 600


def test_fine_tuning_tells_each_step(small_run, tmp_path, capsys):
    profile = small_profile(tmp_path)
    profile.folder.mkdir()
    for name in ("data", "models"):
        (profile.folder / name).symlink_to(small_run.folder / name)
    values = profile.stage(config.Finetune, model="bert", tasks=["cola", "mrpc"], seeds=[0])
    finetune.run(config.Finetune(**values))
    last = capsys.readouterr().out.splitlines()[-1]
    steps = 2 * -(-SMALL["train_rows"] // profile.finetune_batch_size)
    assert f"100 %, {steps}/{steps} steps, " in last
    assert re.search(r"tokens/s, 00:00 left, mrpc, seed 0$", last)
    finetune.run(config.Finetune(**values))  # nothing is left to do
    assert f"100 %, {steps}/{steps} steps" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_the_command_line_and_plain_papermill_write_the_same_bytes(small_run, tmp_path):
    """One notebook both ways, from a profile's file with two changes; then the status of it."""
    written = {}
    for way in ("small-bench", "papermill"):
        folder = tmp_path / way / "tiny"
        folder.mkdir(parents=True)
        (folder / "tokenizer").symlink_to(small_run.folder / "tokenizer")
        changes = {"runs": str(folder.parent), "model": "electra", "max_length": 64}
        changes |= {"pretrain_steps": 12, "pretrain_warmup": 0.17, "pretrain_batch_size": 8}
        if way == "small-bench":
            made = [f"{name}={value}" for name, value in changes.items()]
            done = command("-m", "helpers.study.cli", "notebook", "03_pretrain", *made)
            assert (folder / "notebooks" / "03_pretrain-electra.ipynb").exists()
            assert "[03_pretrain-electra] done in" in done.stderr
        else:
            given = [word for k, v in changes.items() for word in ("-p", k, str(v))]
            done = command(
                *("-m", "papermill", "-f", "profiles/tiny.yaml", *given),
                *("notebooks/03_pretrain.ipynb", str(tmp_path / "out.ipynb")),
            )
        assert done.returncode == 0, done.stderr[-2000:]
        made = files.read_json(folder / "models" / "electra" / "manifest.json")
        written[way] = (made["spec"], made["files"])
    assert written["small-bench"] == written["papermill"]
    assert len(written["small-bench"][1]) > 5


@pytest.mark.slow
def test_status_while_a_grid_runs_and_after_it_was_killed(small_run, tmp_path):
    (tmp_path / "grid").mkdir()
    for name in ("data", "tokenizer"):
        (tmp_path / "grid" / name).symlink_to(small_run.folder / name)
    changes = {"pretrain_steps": 100_000, "checkpoint_steps": 10**6, "models": ["bert"]}
    path = write_study(tmp_path, "grid", **changes, tasks=["rte"])
    call = [*STUDY, "run", "--profile", str(path), "--cores", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "process_group": 0}
    running = subprocess.Popen(call, **quiet)
    try:
        told = beside(executed(tmp_path / "grid", "03_pretrain", "bert"), "progress.json")
        for _ in range(3000):
            if told.exists() or running.poll() is not None:
                break
            time.sleep(0.2)
        done = command(*STUDY[1:], "status", "--profile", str(path))
        assert done.returncode == 0, done.stderr
        assert f"held by process {running.pid}" in done.stdout
        assert re.search(
            r"03_pretrain +bert +running +\d+ %, \d+/100000 steps, .* left", done.stdout
        )
        assert re.search(r"04_finetune +bert +rte +waiting", done.stdout)
        assert "cannot be told" in done.stdout
    finally:
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait() == PREEMPTED
    done = command(*STUDY[1:], "status", "--profile", str(path))
    assert "no grid is running" in done.stdout
    assert re.search(r"03_pretrain +bert +stopped +.*bert: .* run it again", done.stdout)
    assert json.loads((tmp_path / "grid" / "notebooks" / "03_pretrain-bert.ipynb").read_text())


@pytest.mark.slow
def test_a_report_shows_what_is_finished_and_names_the_rest(run):
    for name in ("01_data", "04_finetune-roberta"):
        executed_notebook(place(run, name), name.split("-")[0])
    notebook(place(run, "03_pretrain-roberta"), error("UserError", "of a run before"))
    path = Path(run.runs) / "small.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(exclude={"model", "tokenizer_kind"})))
    before = sorted(run.folder.rglob("*"))
    done = command("-m", "helpers.study.cli", "report", "--profile", str(path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *BERT +CoLA +no record", done.stdout, re.M)
    assert "not finished: 04_finetune-bert (waiting)" in done.stdout
    *_, last = done.stdout.splitlines()
    pages = (ROOT / last.removeprefix("open ")).parent
    text = {
        name: BeautifulSoup((pages / f"{name}.html").read_text(), "html.parser").article.get_text()
        for name in ("book/results", "notebooks/03_pretrain", "notebooks/04_finetune")
    }
    for name, page in text.items():
        assert "This run is not finished" in page, name
        assert "04_finetune-bert (waiting)" in page, name
        assert ("Not executed" in page) == (name == "notebooks/03_pretrain"), name
    assert "3 files" in text["notebooks/04_finetune"]
    assert (pages / "records" / "bag-of-words" / "cola" / "seed-0.json").exists()
    # What Snakemake judges by is as it was: the grid goes on and builds its own book.
    assert sorted(run.folder.rglob("*")) == before


def test_a_report_of_nothing_is_one_line(tmp_path):
    path = write_study(tmp_path)
    with pytest.raises(UserError, match=r"study: no fine-tuning is finished, so there is nothing"):
        cli.command_line(["report", "--profile", str(path)])
