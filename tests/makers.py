"""What the tests share: small profiles, runs of made-up records, entries, tables read back."""

import ast
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bs4 import BeautifulSoup

from helpers.base import config, files, progress
from helpers.data import corpus, glue, tokenizer
from helpers.leaderboard import check
from helpers.pages import tables, view
from helpers.score import statistics
from helpers.study import grid
from helpers.train import floor

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published.json"
FIGURES = files.read_json(PUBLISHED)
TASKS = list(glue.TASKS)
MODELS = ["bert", "roberta", "deberta", "electra", "electra-deberta", "scratch"]
SEEDS = [0, 1, 2]
STUDY = [sys.executable, "-m", "helpers.study.cli"]
SMALL = {
    "max_length": 64,
    "documents": 200,
    "train_rows": 48,
    "dev_rows": 32,
    "pretrain_steps": 12,
    "pretrain_warmup": 0.17,
    "pretrain_batch_size": 8,
    "checkpoint_steps": 4,
    "finetune_epochs": 1,
    "finetune_epochs_small": 1,
    "bias_correction": "source",  # so that both kinds of optimiser are cut and resumed
}
# Of `write_study`: enough that each stage can be disturbed.
LONGER = {"models": ["bert", "electra"], "tasks": ["cola", "mrpc", "rte"]}
LONGER |= {"documents": 400, "train_rows": 192, "dev_rows": 48, "finetune_epochs": 3}
LONGER |= {"pretrain_steps": 240, "checkpoint_steps": 20, "pretrain_batch_size": 32}


def small_profile(runs, **changes):
    values = SMALL | {"runs": str(runs), "profile": "small"} | changes
    return config.load_profile("tiny", **values)


def command(*arguments, **options):
    """Python in a process of its own, with the checkout as its folder."""
    call = [sys.executable, *map(str, arguments)]
    return subprocess.run(call, **{"cwd": ROOT, "capture_output": True, "text": True} | options)


def write_study(folder, name="study", **changes):
    """The file of a study of seconds, two models and two tasks, whose run lies in `folder`."""
    values = yaml.safe_load((ROOT / "profiles" / "tiny.yaml").read_text(encoding="utf-8")) | SMALL
    values |= {"models": ["electra", "scratch"], "tasks": ["cola", "rte"], "seeds": [0]}
    values |= {"runs": str(folder), "profile": name, "finetune_job": "task"} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_grid(path, *more, **options):
    return command(*STUDY[1:], "run", "--profile", path, "--cores", "2", *more, **options)


def dry_run(path, *more):
    """What Snakemake says of the jobs it would run of a study."""
    profile = config.load_profile(str(path))
    grid.write_run(profile.folder, profile)
    done = command(
        *("-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", profile.folder),
        *(*more, "--dry-run", "--quiet", "host", "--", "all"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def make_inputs(profile):
    """Runs both stages before the training ones: corpus, the tasks, both tokenizers."""
    data = config.Data(**profile.stage(config.Data))
    corpus.run(data)
    for task in profile.tasks:
        glue.run(data, task)
    floor.run(data)
    for kind in ("wordpiece", "bpe"):
        tokenizer.run(config.Tokenizer(**profile.stage(config.Tokenizer, tokenizer_kind=kind)))


def pretraining(profile, model, **changes):
    values = profile.stage(config.Pretrain, model=model) | changes
    return config.Pretrain(**values)


def trained(steps):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        model(torch.randn(4, 5)).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return model, optimiser


def stop_training(monkeypatch, at):
    """SIGTERM in the next pre-training, after so many steps; what is returned undoes it."""
    real = progress.bar

    def bar(*arguments, **options):
        made = real(*arguments, **options)
        update, seen = made.update, []

        def counted(n=1):
            update(n)
            seen.append(n)
            if len(seen) == at and made.desc.startswith("pre-train"):
                signal.raise_signal(signal.SIGTERM)

        made.update = counted
        return made

    monkeypatch.setattr(progress, "bar", bar)
    return lambda: monkeypatch.setattr(progress, "bar", real)


def make_folder(root, tasks=("cola", "rte", "stsb"), rows=20):
    """A folder in the schema of nyu-mll/glue, with texts of this test's own."""
    rng = np.random.default_rng(0)
    for name in tasks:
        task = glue.get(name)
        (root / "glue" / name).mkdir(parents=True)
        for split in task.splits:
            values = {c: [f"{split} {c} number {i}" for i in range(rows)] for c in task.columns}
            if task.labels:
                values["label"] = rng.integers(0, len(task.labels), rows)
            else:
                values["label"] = rng.uniform(0, 5, rows).astype("float32")
            values["idx"] = np.arange(rows, dtype="int32")
            pd.DataFrame(values).to_parquet(root / "glue" / name / f"{split}.parquet")
    (root / "corpus").mkdir()
    texts = [f"Document {i} tells of the number {i}." for i in range(30)]
    pd.DataFrame({"text": [*texts, "", None]}).to_parquet(root / "corpus" / "a.parquet")
    return root


def data_stage(runs, data, **changes):
    values = {"documents": 0, "train_rows": 0, "dev_rows": 0, "data": str(data)} | changes
    return config.Data(**small_profile(runs, **values).stage(config.Data))


class Hub:
    """A server with the Hub's paths and headers: data sets and models by commit.

    What `answer` returns of a path, status, headers and perhaps a body, goes before; a file named
    in `breaks` ends after so many bytes; `asked` tells what was asked and how many bytes were sent.
    """

    def __init__(self):
        self.repositories, self.main, self.breaks, self.asked = {}, {}, {}, []
        self.answer = lambda path: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.serve(self)

            do_HEAD = do_POST = do_CONNECT = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name, commit, contents):
        """Files, name to bytes, of a repository, ``datasets/…`` or not, which main is then at."""
        self.repositories[name, commit] = contents
        self.main[name] = commit

    def add_folder(self, name, commit, folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.add(name, commit, {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths})

    def downloads(self):
        """Bytes sent of each file."""
        sent = {}
        for path, count in self.asked:
            if found := re.search("/cdn/[^/]+/(.+)", path):
                sent[found[1]] = sent.get(found[1], 0) + count
        return sent

    def serve(self, request):
        path, body, headers = unquote(request.path.partition("?")[0]), b"", {}
        if told := self.answer(path):
            status, headers, *text = told
            body = b"".join(text)
        elif found := re.fullmatch(r"/(.+)/(resolve|cdn)/([^/]+)/(.+)", path):
            name, kind, commit, file = found.groups()
            commit = self.main.get(name) if commit == "main" else commit
            status, headers, body = self.file(name, commit, file, kind == "resolve", request)
        else:
            found = re.fullmatch(r"/api/(datasets/|models/)([^/]+/[^/]+)(.*)", path)
            status, headers, body = self.about(found)
        headers = {"Content-Length": str(len(body))} | headers
        body = b"" if request.command == "HEAD" else body
        whole = len(body)
        if "/cdn/" in path and (at := self.breaks.get(file)) is not None:
            body = body[: max(at - self.offset(request), 0)]
        self.asked.append((path, len(body)))
        request.send_response(status)
        for header in headers.items():
            request.send_header(*header)
        request.end_headers()
        request.wfile.write(body)
        request.close_connection = len(body) < whole

    def offset(self, request):
        return int(re.search(r"\d+", request.headers.get("Range", "bytes=0-"))[0])

    def file(self, name, commit, file, resolve, request):
        content = self.repositories.get((name, commit), {}).get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        if resolve:  # a large file lies elsewhere
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": tag, "ETag": tag}
            elsewhere = self.address.replace("127.0.0.1", "localhost")
            linked["Location"] = f"{elsewhere}/{name}/cdn/{commit}/{file}"
            return 302, linked | {"X-Repo-Commit": commit}, b""
        start, size = self.offset(request), len(content)
        if not start:
            return 200, {"ETag": tag}, content
        part = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        return 206, {"ETag": tag, **part}, content[start:]

    def about(self, found):
        name = found and found[1].replace("models/", "") + found[2]
        if name not in self.main:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        rest = re.fullmatch(r"(?:/(?:revision|tree)/(.+))?", found[3])
        commit = self.main[name] if rest[1] in (None, "main") else rest[1]
        if (name, commit) not in self.repositories:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        there = self.repositories[name, commit]
        told = {"id": found[2], "sha": commit, "siblings": [{"rfilename": n} for n in there]}
        if found[3].startswith("/tree"):
            told = [
                {"type": "file", "path": n, "size": len(content), "oid": "0" * 40}
                for n, content in there.items()
            ]
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()


HARDWARE = {"device": "cpu", "name": "AMD EPYC 7R13", "threads": 1, "repeatable": True}
REDUCED = ("qqp", "mnli", "qnli")


def make_record(model, task, seed, source="embedded", **changes):
    official = glue.TASKS[task].official_rows
    whole = source != "embedded" and task not in REDUCED
    rows = {name: count if whole else count // 10 + 7 for name, count in official.items()}
    trained = not model.startswith("scratch")
    record = {
        "schema": 3,
        "profile": "tiny" if source == "embedded" else "mini",
        "source": source,
        "corpus": "embedded world, seed 0" if source == "embedded" else "mixed prose, 0.58 GB",
        "size": "tiny",
        "model": model,
        "task": task,
        "seed": seed,
        "score": 40.0 + 3 * TASKS.index(task) + seed + (5 if trained else 0),
        "metrics": {glue.TASKS[task].metric: 0.5},
        "note": "",
        "rows": rows,
        "reduced": [] if whole else list(rows),
        "complete": whole,
        "pretrain": {
            "steps": 1000 * trained,
            "tokens": 2048000 * trained,
            "epochs": 1.5 * trained,
            "flops": 1.2e13 * trained,
            "seconds": 61.0 * trained,
            "parameters": 812345,
            "generator_parameters": 0,
        },
        "finetune": {"steps": 90, "tokens": 30000, "flops": 1e11, "seconds": 3.1},
        "hardware": HARDWARE,
        "pretrain_hardware": HARDWARE,
        "precision": "float32",
        "code": {"commit": "a" * 40, "clean": True},
        "pretrain_code": {"commit": "b" * 40, "clean": True},
        "hashes": {"data": {"validation.parquet": "0" * 64}, "encoder": {}, "corpus": "0" * 64},
        "parameters": {"seeds": [0, 1]},
        "predictions": "0" * 64,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "spec": "0" * 64,
    }
    return {**record, **changes}


def make_labels(run, task):
    """A dev split of the task's shape in the run's data, with twenty examples."""
    folder, kind = run / "data" / "glue" / task, glue.TASKS[task]
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in kind.splits[1:]:
        labels = rng.integers(0, len(kind.labels), 20) if kind.labels else rng.uniform(0, 5, 20)
        texts = {column: [f"{column} {n}" for n in range(20)] for column in kind.columns}
        table = pd.DataFrame(texts | {"label": labels, "idx": np.arange(20)})
        table.to_parquet(folder / f"{split}.parquet")
    files.write_manifest(folder, {"spec": ""}, [f"{split}.parquet" for split in kind.splits[1:]])


def make_predictions(path, task, seed):
    """Predictions for those examples; right more often than not."""
    run, kind = path.parents[3], glue.TASKS[task]
    rng, parts = np.random.default_rng([seed, len(path.parent.parent.name)]), []
    for split in kind.splits[1:]:
        truth = glue.load(run, task, split)
        other = rng.permutation(truth["label"].to_numpy())
        found = np.where(rng.random(20) < 0.7, truth["label"], other)
        part = {"split": split, "idx": truth["idx"], "prediction": found}
        parts.append(pd.DataFrame(part))
    pd.concat(parts).to_parquet(path.with_suffix(".parquet"), index=False)


def write_record(folder, record):
    path = folder / record["model"] / record["task"] / f"seed-{record['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (folder.parent / "data" / "glue" / record["task"]).exists():
        make_labels(folder.parent, record["task"])
    make_predictions(path, record["task"], record["seed"])
    record = record | {"predictions": files.sha256(path.with_suffix(".parquet"))}
    path.write_text(json.dumps(record), encoding="utf-8")
    files.write_manifest(
        path.parent, {"spec": ""}, [found.name for found in path.parent.glob("seed-*")]
    )
    return path


def make_run(folder, source="embedded", models=MODELS, tasks=TASKS, seeds=(0, 1)):
    for model in models:
        for task in tasks:
            for seed in seeds:
                write_record(folder, make_record(model, task, seed, source))
    return folder


def make_view(run, source="embedded", models=MODELS, tasks=TASKS, seeds=(0, 1)):
    """A run of made-up records, as the pages read it."""
    make_run(run / "records", source, models, tasks, seeds)
    return view.open_run(run, models, tasks)


def shown(frame):
    """A frame as a page shows it: its rows by their headings, marks left out."""
    frame = frame.reset_index() if frame.index.nlevels > 1 else frame
    page = BeautifulSoup(tables.show(frame).to_html(), "html.parser")
    for mark in page.find_all("sup"):
        mark.decompose()
    header, *rows = (
        [" ".join(cell.get_text().split()) for cell in row.find_all(["th", "td"])]
        for row in page.find_all("tr")
    )
    return [dict(zip(header, row, strict=True)) for row in rows]


SIZE = make_record("electra", "cola", 0)["pretrain"]["parameters"]
TOKENS = make_record("electra", "cola", 0)["pretrain"]["tokens"]


def statement(name, scores, selection="mean", seeds=SEEDS, **changes):
    return {
        "name": name,
        "title": f"Model {name}",
        "link": "https://example.org/model",
        "authors": ["A. Author"],
        "licence": "Apache-2.0",
        "corpus": "mixed prose",
        "tokens": TOKENS,
        "parameters": {"encoder": SIZE - 12345, "embeddings": 12345},
        "hardware": {"device": "V100, 16 GB", "gpus": 1, "hours": 96.5},
        "protocol": {"selection": selection, "seeds": seeds, "n": len(seeds), "rule": 1},
        "decimals": 2,
        "scores": scores,
        "average": round(float(np.mean(list(scores.values()))), 2),
    } | changes


def claimed(name, average, selection="mean", **changes):
    values = statement(name, dict.fromkeys(TASKS, average), selection, **changes)
    return check.Entry(name, stated=check.Submission(**values))


def paired_bootstrap(first, second, labels, resamples=1000, seed=0):
    models = {"first": first, "second": second}
    sampled = statistics.resample(models, labels, resamples, seed)
    return statistics.compare(sampled, labels)["first", "second"]


def executed_notebook(path, stage):
    """A notebook as papermill leaves it, with this machine's path and a remote badge in it."""
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/open)"
    stream = nbformat.v4.new_output("stream", text=f"{ROOT}/runs/tiny: 3 files\n")
    cells = [
        nbformat.v4.new_markdown_cell(f"# {stage}\n\n{badge}\n\nLoss is $-\\log p$."),
        nbformat.v4.new_code_cell("print(1)", execution_count=1, outputs=[stream]),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "papermill": {"input_path": f"{ROOT}/notebooks/{stage}.ipynb"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def page_cells(path):
    """The code of the cells of a page or notebook, without their options and magics."""
    if path.suffix == ".ipynb":
        cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        return [re.sub(r"^%.*\n", "", cell.source, flags=re.M) for cell in cells]
    options = r"(?:---\n.*?---\n|(?::[^\n]*\n)*)"
    cell = re.compile(r"```\{code-cell\} python\n" + options + r"(.*?)```", re.S)
    return cell.findall(path.read_text(encoding="utf-8"))


def run_page(name, run=None, **given):
    """A page's cells, run here: their names, the values shown, the numbers of the prose.

    Parameters of a notebook are those `given`, where it declares them.
    """
    path = ROOT / (f"book/{name}.md" if "/" not in name else f"{name}.ipynb")
    names, shown, numbers = {}, [], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "inline", numbers.update)
        if run:
            patch.setenv(view.VARIABLE, str(run))
        for cell in page_cells(path):
            *body, last = ast.parse(cell).body
            if isinstance(last, ast.Expr):
                last = ast.Assign([ast.Name("_", ast.Store())], last.value)
            tree = ast.fix_missing_locations(ast.Module([*body, last], []))
            exec(compile(tree, name, "exec"), names)
            shown.append(names.pop("_", None))
            if "profile: str" in cell:
                names |= {key: given[key] for key in names.keys() & given.keys()}
    wanted = re.findall(r"\{glue(?::text)?\}`(\w+)", path.read_text(encoding="utf-8"))
    assert set(wanted) <= set(numbers) <= {*wanted}, name
    return SimpleNamespace(names=names, shown=shown, numbers=numbers)


def assert_stands_alone(html):
    """No asset of a built book comes from the network, every relative link leads to a file."""
    for path in (page for page in html.rglob("*.html") if "_static" not in page.parts):
        page = BeautifulSoup(path.read_bytes(), "html.parser")
        assets = [tag["src"] for tag in page.select("script[src], img[src], iframe[src]")]
        assets += [tag["href"] for tag in page.select("link[rel~=stylesheet], link[rel~=icon]")]
        links = [tag["href"] for tag in page.select("a[href], link[rel~=next], link[rel~=prev]")]
        for address in [*assets, *links]:
            parts = urlsplit(address)
            remote = parts.scheme not in ("", "data") or parts.netloc
            assert not (remote and address in assets), f"{path}: {address} is remote"
            if parts.path and not remote and parts.scheme != "data":
                assert (path.parent / unquote(parts.path)).exists(), f"{path}: {address}"
