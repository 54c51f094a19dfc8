"""Nothing from outside is run: no pickles, no foreign code, no shell, no markup in the book."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from makers import ROOT, SMALL, claimed, run_page

from helpers.base import config
from helpers.base.errors import UserError
from helpers.data import glue, tokenizer
from helpers.leaderboard import check
from helpers.study import grid
from helpers.train import heads

HOSTILE = [
    "$(touch {mark})",
    "$$(touch {mark})",
    "$(shell touch {mark})",
    "`touch {mark}`",
    '"; touch {mark}; "',
    "'; touch {mark}; '",
    "a\n\ttouch {mark}",
    "x; rm -rf",
    "--profile",
    "two words & 'quotes' \"too\" \\ #",
]


def test_a_checkpoint_in_pickles_is_refused(tmp_path, small_run):
    source = small_run.folder / "models" / "roberta" / "encoder"
    shutil.copytree(source, tmp_path / "encoder")
    model = heads.open_encoder(tmp_path / "encoder", glue.get("cola"), 0.0)
    (tmp_path / "encoder" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "encoder" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be opened as an encoder"):
        heads.open_encoder(tmp_path / "encoder", glue.get("cola"), 0.0)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_checkpoint_is_neither_run_nor_asked_for(
    tmp_path, small_run, monkeypatch, name
):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "n")
    folder, mark = tmp_path / "encoder", tmp_path / "mark"
    shutil.copytree(small_run.folder / "models" / "roberta" / "encoder", folder)
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    values = json.loads((folder / name).read_text())
    classes = ("AutoConfig", "AutoModelForSequenceClassification")
    own = {auto: f"own.{auto}" for auto in classes} | {"AutoTokenizer": ["own.T", "own.T"]}
    values |= {"auto_map": own, "model_type": "own", "tokenizer_class": "Own"}
    (folder / name).write_text(json.dumps(values))
    with suppress(UserError):
        tokenizer.load(folder)
    with suppress(UserError):
        heads.open_encoder(folder, glue.get("cola"), 0.0)
    assert not mark.exists()
    assert not asked


# --- make, the grid ------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path):
    """Runs make with a `python` that only prints its arguments, one per line, NUL at the end."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stub.chmod(0o755)

    def run(target, *given, **environment):
        line = ["make", "-s", "-o", ".venv/ready", target, f"BIN={stub.parent}", *given]
        return subprocess.run(
            line, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
        )

    return run


def option(name, text):
    return f"--{name.lower()}={text}"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_given_to_make_is_never_a_command(make, tmp_path, text):
    mark = tmp_path / "mark"
    text = text.format(mark=mark)
    names = ("PROFILE", "DATA", "MODELS", "TASKS", "SEEDS", "STEPS", "CORES", "CLUSTER")
    done = make("book", *(f"{name}={text}" for name in names))
    assert done.returncode == 0, done.stderr
    assert {option(name, text) for name in names} <= set(done.stdout.split("\0"))
    # Of the environment, where such names may mean something else, nothing is taken.
    done = make("book", **dict.fromkeys(names, text))
    assert done.returncode == 0, done.stderr
    assert not [word for word in done.stdout.split("\0") if word.endswith(f"={text}")]
    done = make("serve", f"PROFILE={text}", f"PORT={text}")
    assert {f"runs/{text}/book/html", text} <= set(done.stdout.split("\0"))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../results", "a/b", "/", "web.yaml"])
def test_clean_deletes_a_run_and_nothing_else(make, name):
    done = make("clean", f"PROFILE={name}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(f"error: PROFILE = '{name}'")
    assert (ROOT / "results" / "published.json").exists()


def write_source(folder):
    """A folder source of one task and a corpus."""
    table = pd.DataFrame({"sentence": ["A b.", "C d."], "label": [0, 1]})
    (folder / "glue" / "cola").mkdir(parents=True)
    for split in ("train", "validation"):
        table.to_parquet(folder / "glue" / "cola" / f"{split}.parquet")
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"text": ["One two.", "Three."]}), folder / "corpus" / "a.parquet")
    return folder


@pytest.mark.slow
def test_the_grid_runs_on_a_folder_of_any_name(tmp_path):
    folder = write_source(tmp_path / "$(touch mark) 'a' \"b\" `touch mark`; touch mark\n&")
    values = yaml.safe_load((ROOT / "profiles" / "tiny.yaml").read_text()) | SMALL
    values |= {"runs": str(tmp_path / "a 'b' runs"), "profile": "odd"}
    profile = tmp_path / "odd's.yaml"
    profile.write_text(yaml.safe_dump(values))
    run = tmp_path / "a 'b' runs" / "odd"
    study = config.load_profile(str(profile), data=str(folder), tasks="cola")
    grid.write_run(run, study)
    line = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    line += ["--directory", str(run), "--cores", "1", "data"]
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        line, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((run / "data/corpus/manifest.json").read_text())
    assert made["documents"] + made["held_out"]["documents"] == 2
    assert not list(tmp_path.rglob("mark")) and not (ROOT / "mark").exists()


# --- the book ------------------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script>"
MARKUP = [
    SCRIPT,
    "[me](javascript:alert(1))",
    "{raw} html",
    "```{raw} html",
    "{eval-rst}`x`",
    "$x$ and $$y$$",
    "# heading",
    "- item",
    "1. item",
    "% comment",
    "(target)=",
    ":::{raw} html",
    "__bold__ *em* ~~gone~~",
    "&lt;b&gt; &amp; <https://a.b>",
    "a | b \\| c",
    "<img src=x onerror=alert(1)>",
    "+++",
    "===",
]


def test_what_a_submission_says_is_text_on_the_page(monkeypatch):
    text = "\n".join(MARKUP)
    entries = [claimed("a", 80.0), claimed("b", 79.9), check.Entry(text, "refused")]
    said = {"title": text, "corpus": text, "authors": [text, text], "licence": text}
    for place, entry in enumerate(entries[:2]):  # past the check, which refuses the worst of it
        entries[place] = replace(entry, stated=entry.stated.model_copy(update=said))
    monkeypatch.setattr(check, "check", lambda *_: entries)
    shown = [table.to_html() for table in run_page("leaderboard").shown if table is not None]
    page = BeautifulSoup("".join(shown), "html.parser")
    [style.decompose() for style in page.select("style")]
    assert not page.select("script, img, em, code, h1, h2, a[href^=javascript], .math, li li")
    assert not [tag for tag in page.find_all(True) if any(a.startswith("on") for a in tag.attrs)]
    assert sum(text in cell.get_text() for cell in page.select("td")) == 13
