"""What checks and publishes the repository: workflow, hooks, clean notebooks, kept runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from makers import ROOT, command, executed_notebook, make_folder, run_page, small_profile

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.pages import build, view
from helpers.study import cli, notebook, publish
from helpers.train import records

BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_pin_their_actions_and_may_write_only_where_they_publish():
    for path in WORKFLOWS:
        text = path.read_text()
        assert re.findall(r"uses: (\S+)", text) == re.findall(r"uses: (\S+@[0-9a-f]{40}) # v", text)
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        writers = {name for name, job in workflow["jobs"].items() if "permissions" in job}
        assert writers == {"publish"}
        # A pull request is checked, never published.
        for name in ("site", "publish"):
            assert workflow["jobs"][name]["if"] == "github.event_name == 'push'"
        assert workflow[True]["push"] == {"branches": ["main"]}  # YAML 1.1 reads `on` as true


def test_the_workflow_runs_what_contributors_run():
    text = WORKFLOWS[0].read_text() + (ROOT / ".ci" / "run").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\S+)", text):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    commands = set(re.findall(r"(?:small-bench|helpers\.study\.cli) ([a-z]+)", text))
    assert commands <= {command.name for command in cli.app.registered_commands}
    assert ".ci/run" in text
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_kept_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_notebooks_show_no_text_of_a_folder(tmp_path, capsys):
    """Real data is not ours to publish: where it is read, the notebooks show texts of our own."""
    folder = make_folder(tmp_path / "data")
    given = small_profile(
        tmp_path, source="folder", data=str(folder), tasks=["cola"], seeds=[0], max_length=16
    ).model_dump()
    for stage in ("01_data", "02_tokenizer", "03_pretrain", "04_finetune"):
        page = run_page(f"notebooks/{stage}", **given)
        shown = [getattr(one, "_repr_html_", one.__repr__)() for one in page.shown]
        text = " ".join([*filter(None, shown), capsys.readouterr().out])
        found = BeautifulSoup(text, "html.parser").get_text(" ", strip=True).lower()
        assert "cola" in found or "doctor" in found, stage
        assert not re.search(r"tells of|sentence \W?number|sentence\d number", found), stage


def test_parameters_are_shown_once_with_the_values_of_the_run(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "02_tokenizer.ipynb", as_version=4)
    place = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    given = '# Parameters\nprofile = "mine"\nmax_length = 64\nclip = 1.0\n'
    injected = nbformat.v4.new_code_cell(given, metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(notebook.cells.index(place[0]) + 1, injected)
    path = tmp_path / "02_tokenizer.ipynb"
    nbformat.write(notebook, path)
    cells = json.loads(build.clean(path))["cells"]
    shown = ["".join(c["source"]) for c in cells if "profile: str" in "".join(c["source"])]
    assert len(cells) == len(notebook.cells) - 1
    assert "profile: str = 'mine'  # name of the run" in shown[0]
    assert "max_length: int = 64  # tokens per row" in shown[0]
    assert 'runs: str = "runs"  # folder' in shown[0]
    assert "Defaults" not in shown[0]


@pytest.fixture
def finished(small_run, tmp_path):
    """A finished run of two models on three tasks, with an executed notebook for each stage."""
    profile = small_profile(
        tmp_path, models=["roberta", "scratch"], tasks=["cola", "stsb", "mnli"], seeds=[0]
    )
    profile.folder.mkdir()
    for name in ("data", "tokenizer", "models", "records"):
        (profile.folder / name).symlink_to(small_run.folder / name)
    ends = {
        "01_data": "2026-11-23",
        "02_tokenizer-bpe": "2026-11-23",
        "03_pretrain-roberta": "2026-11-24",
        "04_finetune-roberta": "2026-11-24",
        "04_finetune-scratch": "2026-11-25",  # not shown, and the last of the run
        "05_analysis": "2026-11-26",
    }
    for name, day in ends.items():
        path = profile.folder / "notebooks" / f"{name}.ipynb"
        executed_notebook(path, name.split("-")[0])
        notebook = json.loads(path.read_text())
        notebook["metadata"]["papermill"] |= {"end_time": f"{day}T17:30:50+00:00"}
        path.write_text(json.dumps(notebook))
    return profile


def test_only_a_finished_run_is_kept(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(view, "MEASURED", str(tmp_path / "measured"))
    more = finished.model_copy(update={"seeds": [0, 1]})
    with pytest.raises(UserError, match=r"missing: 04_finetune-roberta \(waiting\), 04"):
        publish.keep(more, "")
    assert not (tmp_path / "measured").exists()


def test_of_several_kept_runs_the_one_with_most_tokens_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "MEASURED", str(tmp_path))
    for name, tokens in (("brief", 5), ("long", 10), ("middle", 7)):
        files.write_json(tmp_path / name / "run.json", {"tokens": tokens})
    assert view.kept_run("") == tmp_path / "long"
    assert view.kept_run(str(tmp_path / "brief")) == tmp_path / "brief"
    files.write_json(tmp_path / "later" / "run.json", {"tokens": 10, "finished": "2026-11-30"})
    assert view.kept_run("") == tmp_path / "later"
    with pytest.raises(UserError, match=r"run = .*none.*: no run is kept there"):
        view.kept_run(str(tmp_path / "none"))


def test_a_kept_run_is_checked_without_labels_and_with_them(
    finished, tmp_path, monkeypatch, capsys
):
    kept, data = tmp_path / "measured" / "small", tmp_path / "data"
    monkeypatch.setattr(view, "MEASURED", str(kept.parent))

    def verify(*more):
        status = cli.command_line(["verify", "--run", str(kept), *map(str, more)])
        return status, *capsys.readouterr()

    publish.keep(finished, "")
    capsys.readouterr()
    shutil.copytree(finished.folder / "data", data)
    status, said, _ = verify()
    assert status == 0
    assert "not recomputed: 12 scores (no labels: --data gives them), comparisons.json" in said
    status, said, _ = verify("--data", data)
    assert status == 0
    assert "12 scores recomputed from labels; comparisons.json too" in said
    assert "not recomputed" not in said
    # A scored encoder has records and no tables.
    (kept / "run.json").rename(tmp_path / "run.json")
    assert verify("--data", data)[1].rstrip().endswith("together; 12 scores recomputed from labels")
    (tmp_path / "run.json").rename(kept / "run.json")

    # Labels of other rows are told from a wrong score.
    path = data / "glue" / "stsb" / "validation.parquet"
    table = pd.read_parquet(path)
    table.assign(label=5 - table["label"]).to_parquet(path)
    status, said, _ = verify("--data", data)
    assert status == 0
    assert "8 scores recomputed" in said
    assert "4 scores (stsb has other rows there than were scored), comparisons.json" in said

    # A record that agrees with itself, its manifest forged as well: only labels tell.
    cell = records.folder(kept, "roberta", "cola")
    record = files.read_json(cell / "seed-0.json")
    record |= {"score": 50.0, "metrics": {"matthews_correlation": 0.5}}
    files.write_json(cell / "seed-0.json", record)
    files.write_manifest(cell, {"spec": ""}, ["seed-0.json", "seed-0.parquet"])
    status, _, said = verify("--data", data)
    assert status == 1
    assert "seed-0.json: score = 50.0: the predictions give" in said
    status, _, said = verify()
    assert status == 1
    assert "table1.csv: line 2 has" in said


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_what_is_kept_holds_in_a_clone_of_any_system(tmp_path):
    """As a Windows user's git would write it, were .gitattributes not there."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", ROOT, clone], check=True)
    texts = [path for path in (clone / "leaderboard").rglob("*") if path.is_file()]
    assert not any(b"\r\n" in path.read_bytes() for path in texts)
    done = command("-m", "helpers.study.cli", "verify", cwd=clone)
    assert done.returncode == 0, done.stderr
    assert "records hold together, and the tables follow from them" in done.stdout


@pytest.mark.slow
def test_the_published_book_comes_from_the_kept_run_alone(finished, tmp_path, monkeypatch):
    profile = finished
    kept = tmp_path / "measured" / "small"
    monkeypatch.setattr(view, "MEASURED", str(kept.parent))
    (tmp_path / "a" / "disk").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "a" / "disk")
    monkeypatch.setattr(publish, "RUNS", str(tmp_path / "runs"))
    analysis = notebook.executed(profile.folder, "05_analysis")
    notebook.execute(ROOT / "notebooks" / analysis.name, analysis, profile.stage(config.Analysis))
    assert publish.keep(profile, "") == 0
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert {path.suffix for path in map(Path, names)} == {".json", ".csv", ".txt", ".parquet"}
    assert {"run.json", "comparisons.json", "summary.txt", "models/roberta/log.csv"} <= names
    heads = pd.read_csv(kept / "heads.csv").set_index(["model", "layer", "head"])["ratio"]
    assert heads.index.is_unique and heads.gt(0).all() and len(heads.groupby("model")) == 2
    assert "notebooks/04_finetune.json" in names
    assert len([name for name in names if "/seed-" in name]) == 24  # half of them the floors'
    for path in kept.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    record = records.folder(profile.folder, "roberta", "cola") / "seed-0.json"
    there = records.folder(kept, "roberta", "cola") / "seed-0.json"
    assert files.sha256(record) == files.sha256(there)

    # Neither the run nor its data is there any more.
    for name in ("data", "tokenizer", "models", "records"):
        (profile.folder / name).unlink()
    assert publish.site("") == 0
    pages = tmp_path / "runs" / "site" / "book" / "html"
    for name in ("book/index", "book/results", "notebooks/04_finetune"):
        page = BeautifulSoup((pages / f"{name}.html").read_text(), "html.parser").article
        note = " ".join(page.select_one(".provenance").get_text().split())
        assert note.startswith("Measured in run small, finished on 2026-11-25, and not rerun"), name
    for kind in ("json", "parquet"):
        assert (pages / "records" / "roberta" / "cola" / f"seed-0.{kind}").exists()
