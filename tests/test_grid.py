"""The study as users run it: notebooks through papermill, the grid through snakemake."""

import json
import os
import re
import shutil
import sys

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from makers import ROOT, command, dry_run, run_grid, small_profile

from helpers.base import config
from helpers.base.errors import UserError
from helpers.model import registry
from helpers.model.flops import token_flops
from helpers.score import costs
from helpers.study import cli
from helpers.study import grid as grid_of


@pytest.mark.parametrize("stage", config.NOTEBOOKS)
def test_papermill_prints_every_parameter_with_its_comment(stage):
    from papermill.inspection import inspect_notebook

    found = inspect_notebook(str(ROOT / "notebooks" / f"{stage}.ipynb"))
    fields = config.NOTEBOOKS[stage].model_fields
    assert set(found) == set(fields)
    for name, field in fields.items():
        assert found[name]["help"] == field.description
        assert found[name]["inferred_type_name"] in ("str", "int", "float", "bool", "list")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [{"name": "mine", "display_name": "", "language": "R"}, None])
def test_this_python_runs_a_notebook_whatever_was_saved_and_however_long_tmpdir(tmp_path, kernel):
    found = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import sys; sys.executable")],
        metadata={"kernelspec": kernel} if kernel else {},
    )
    place, out = tmp_path / "06_audit.ipynb", tmp_path / "out.ipynb"
    nbformat.write(found, place)
    long = tmp_path / f"job_{1:0100}"
    long.mkdir()
    options = {"env": os.environ | {"TMPDIR": str(long)}}
    done = command("-m", "helpers.study.notebook", place, out, "{}", **options)
    assert done.returncode == 0, done.stderr[-2000:]
    (cell,) = (cell for cell in nbformat.read(out, as_version=4).cells if cell.outputs)
    assert cell.outputs[0].data["text/plain"] == repr(sys.executable)


@pytest.mark.slow
def test_a_misspelt_parameter_stops_plain_papermill_in_one_line(tmp_path):
    out = tmp_path / "out.ipynb"
    done = command(
        *("-m", "papermill", "-p", "runs", str(tmp_path), "-p", "document", "50"),
        *("notebooks/01_data.ipynb", str(out)),
    )
    assert done.returncode != 0
    cells = nbformat.read(out, as_version=4).cells
    errors = [o for c in cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert "did you mean documents" in errors[0].evalue
    assert len(errors[0].traceback) == 1
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
def test_a_failing_notebook_is_named_with_its_cell_and_kept(tmp_path):
    values = small_profile(tmp_path).stage(config.Pretrain, model="bert")
    out = tmp_path / "notebooks" / "03_pretrain-bert.ipynb"
    done = command(
        *("-m", "helpers.study.notebook", "notebooks/03_pretrain.ipynb", str(out)),
        json.dumps(values),
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "failed" in line]
    assert "03_pretrain-bert.ipynb: code cell" in line
    assert "run notebooks/02_tokenizer.ipynb" in line
    assert "Traceback" not in done.stderr
    assert out.exists()


def test_plan_prints_the_paper_without_running_it():
    done = command("-m", "helpers.study.cli", "plan", "--profile", "paper")
    assert done.returncode == 0, done.stderr
    assert "03_pretrain electra-deberta" in done.stdout
    assert "13,483,008" in done.stdout
    assert "1.64e+10" in done.stdout
    assert not (ROOT / "runs" / "paper").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "--models", "bert bart"], "model = 'bart'"),
        (["plan", "--tasks", "wnli"], "task = 'wnli'"),
        (["plan", "--profile", "x; rm -rf"], "profile 'x; rm -rf'"),
        (["plan", "--data", "nowhere"], "nowhere: no such folder; --data names one"),
        (["plan", "--seeds", "-1"], "seeds"),
        (["plan", "--modls", "bert"], "no such option: --modls"),
        (["plan", "--steps", "many"], "invalid value for '--steps'"),
        (["plan", "--steps"], "'--steps' requires an argument"),
        (["plan", "more"], "more"),
        (["notebook", "03_pretrin"], "no such notebook; did you mean 03_pretrain?"),
        (["notebook", ""], "known: 01_data, 02_tokenizer"),
        (["notebook", "03_pretrain", "pretrain_step=20"], "did you mean pretrain_steps?"),
        (["notebook", "03_pretrain", "pretrain_steps=many"], "ipynb: pretrain_steps = 'many'"),
        (["notebook", "03_pretrain", "pretrain_steps"], "'pretrain_steps' is not name=value"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, says):
    with pytest.raises(UserError, match=re.escape(says)):
        cli.command_line(arguments)


def test_help_lists_every_command_without_loading_torch():
    done = command("-X", "importtime", "-m", "helpers.study.cli", "--help")
    assert done.returncode == 0
    for name in ("run", "status", "plan", "notebook", "report", "keep", "site", "verify", "submit"):
        assert f"\n  {name} " in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert "torch" not in done.stderr


def test_what_keeps_snakemake_from_its_jobs_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(grid_of, "ROOT", tmp_path)
    for rules, says in (
        ("rule data:\n    input: 'none'\n", "Missing input files for rule data:"),
        ("rule data:\n    output: 1 / 0\n", "ZeroDivisionError"),
    ):
        (tmp_path / "Snakefile").write_text(rules)
        assert grid_of.run(small_profile(tmp_path), 1, 1, "") == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: Snakemake: ")
        assert says in line


def jobs(done):
    # Two jobs may write into one line.
    return sorted(re.findall(r"\[([^\[\]]+)\] done in", done.stderr))


@pytest.mark.slow
def test_the_grid_runs_reruns_nothing_and_then_only_what_changed(grid):
    path, values, done = grid
    folder = path.parent / "grid"
    assert done.returncode == 0, done.stderr[-3000:]
    first = jobs(done)
    models, tasks = values["models"], values["tasks"]
    assert first == [
        *("01_data", "02_tokenizer-wordpiece", *(f"03_pretrain-{model}" for model in models)),
        *(f"04_finetune-{model}-{task}" for model in models for task in tasks),
        *("05_analysis", "06_audit"),
    ]
    for name in first:
        notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        assert all(c.execution_count for c in notebook.cells if c.cell_type == "code"), name
    assert "embedded world" in done.stdout
    assert "index.html" in done.stdout
    page = folder / "book" / "html" / "notebooks" / "03_pretrain.html"
    assert "electra" in BeautifulSoup(page.read_text(), "html.parser").text

    done = run_grid(path)
    assert (done.returncode, jobs(done)) == (0, [])

    # What follows from a parameter, and nothing else.
    path.write_text(yaml.safe_dump(values | {"finetune_epochs": 2}))
    planned = re.findall(r" log: notebooks/(\S+)\.ipynb", dry_run(path))
    assert sorted(planned) == [n for n in first if n.startswith("04")] + ["05_analysis"]

    # One more seed: what is finished stays.
    kept = (folder / "records" / "electra" / "cola" / "seed-0.json").read_bytes()
    path.write_text(yaml.safe_dump(values | {"seeds": [0, 1]}))
    done = run_grid(path, "--tasks", "cola")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "records" / "electra" / "cola" / "seed-0.json").read_bytes() == kept
    assert (folder / "records" / "electra" / "cola" / "seed-1.json").exists()

    # A job that fails does not stop the others.
    shutil.rmtree(folder / "records")
    encoder = folder / "models" / "electra" / "encoder" / "model.safetensors"
    os.truncate(encoder, 100)
    done = run_grid(path, "--tasks", "cola")
    assert done.returncode != 0
    assert "[04_finetune-electra-cola] failed: " in done.stderr
    assert "model.safetensors: missing or changed since its manifest was written" in done.stderr
    assert "04_finetune-scratch-cola" in jobs(done)
    # The tables of the run before are still there; they are not shown for this one's.
    assert (folder / "tables" / "summary.txt").exists()
    again = run_grid(path, "--tasks", "cola")
    assert again.returncode != 0
    assert "[04_finetune-electra-cola] failed: " in again.stderr
    assert "index.html" not in again.stdout


def test_plan_counts_fine_tuning_steps():
    profile = config.load_profile("paper")
    steps, tokens, flops = costs.finetuning(profile, "bert", "mrpc")
    # 3,668 rows, doubled by swapping, in batches of 32; 3 epochs, ten seeds.
    assert steps == 3 * 230 * 10
    assert tokens == 3 * 7336 * 128 * 10
    own = registry.encoder(costs.outline("bert", profile).model).config
    per_token = token_flops(own, 128, 1 / 128)  # the head reads one token of a row
    assert flops == tokens * per_token
