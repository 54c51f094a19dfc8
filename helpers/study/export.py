"""A pre-trained model as a folder for the Hugging Face Hub: weights, tokenizer, model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from helpers.base import files
from helpers.base.errors import UserError
from helpers.base.text import escape, markdown, quantity, score
from helpers.data import glue
from helpers.model import registry
from helpers.pages import tables
from helpers.score import statistics
from helpers.train import records as records_of

CITATION = """```bibtex
@misc{kanakarajan2021smallbench,
  title = {Small-Bench {NLP}: Benchmark for small single {GPU} trained models in Natural Language
           Processing},
  author = {Kanakarajan, Kamal Raj and Kundumani, Bhuvana and Sankarasubbu, Malaikannan},
  year = {2021},
  eprint = {2109.10847},
  archivePrefix = {arXiv}
}
```
"""


def export_run(run: str, model: str, out: str) -> None:
    """Exports one model of a run, or every finished one, and prints the folders.

    Raises:
        UserError: As :func:`export`; or there is no finished model.
    """
    source = files.resolve(run)
    target = files.resolve(out) if out else source / "export"
    done = sorted(path.parent.name for path in source.glob("models/*/manifest.json"))
    if not done:
        raise UserError(f"run = {run!r}: no finished model there")
    for name in [model] if model else done:
        print(os.path.relpath(export(source, name, target / name)))


def export(run: Path, model: str, out: Path) -> Path:
    """Writes the folder of one pre-trained model of a run.

    Args:
        run: The run's folder.
        model: A model with a finished pre-training and records.
        out: Folder to write; must not exist, or be an export of this function.

    Returns:
        `out`: config.json, model.safetensors, the tokenizer's files, README.md (the model card) and
        records/ (the records its figures come from).

    Raises:
        UserError: When the model is not finished, has no record, or `out` holds something else.
    """
    source = run / "models" / model
    manifest = files.require_manifest(source, "03_pretrain", f" with model = {model}")
    records = tables.load_records(run / "records")
    mine = records[records["model"] == model]
    if mine.empty:
        raise UserError(f"{run}: no record of {model}; run notebooks/04_finetune.ipynb first")
    own = all((out / name).exists() for name in ("README.md", "config.json", "records"))
    if out.exists() and not own:
        raise UserError(f"{out}: exists and is no export; name another folder")
    card = model_card(model, manifest, mine)
    made = out.with_name(f".{out.name}")
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        for name in manifest["files"]:
            if name.startswith("encoder/"):
                shutil.copyfile(source / name, made / Path(name).name)
        for cell, names in records_of.vouched(run).items():
            if cell.parent.name == model:
                (made / "records" / cell.name).mkdir(parents=True)
                for name in names:
                    shutil.copyfile(cell / name, made / "records" / cell.name / name)
        files.write_text(made / "README.md", card)
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot write: {error.strerror or error}") from error
    return out


def model_card(model: str, manifest: dict[str, Any], records: pd.DataFrame) -> str:
    """The card: metadata with every score, then what was trained, on what, and its limits.

    Args:
        model: Name in the registry.
        manifest: Of the pre-training.
        records: Its records; scores of the embedded world are named as such.
    """
    embedded = tables.is_embedded(records)
    tasks = [task for task in glue.TASKS if task in set(records["task"])]
    data = ModelCardData(
        model_name=f"small-bench-nlp-{model}",
        language="en",
        library_name="transformers",
        pipeline_tag="fill-mask" if registry.get(model).objective == "mlm" else None,
        tags=["small-bench-nlp", manifest["size"]],
        eval_results=[_result(records, task, embedded) for task in tasks],
    )
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {escape(model)}, {escape(manifest['size'])} size\n\n"
        + _what(model, manifest)
        + _scores(records, tasks, embedded)
        + _limits(embedded, records)
        + f"\n## Citation\n\nThe study this model reproduces:\n\n{CITATION}"
    )


def _result(records: pd.DataFrame, task: str, embedded: bool) -> EvalResult:
    name = f"{glue.get(task).name} of the embedded world (not GLUE)" if embedded else None
    found = statistics.cell(records, records["model"].iloc[0], task)
    return EvalResult(
        task_type="text-classification",
        dataset_type="embedded-world" if embedded else "nyu-mll/glue",
        dataset_name=name or f"GLUE {glue.get(task).name}",
        dataset_config=task,
        dataset_split=glue.get(task).validation,
        metric_type=glue.get(task).metric,
        metric_value=round(found.median / 100, 4),
        metric_name=f"{glue.get(task).metric}, median of {found.n} seeds",
    )


def _what(model: str, manifest: dict[str, Any]) -> str:
    spec, spent = registry.get(model), manifest["pretrain"]
    objectives = {"mlm": "MLM", "rtd": "replaced-token detection", "none": "none"}
    parameters = manifest["specification"]["parameters"]
    rows = [
        ["Objective", objectives[spec.objective]],
        ["Encoder", f"{quantity(spent['parameters'])} parameters"],
        ["Corpus", escape(manifest["corpus"])],
        ["Tokens seen", f"{quantity(spent['tokens'])} ({spent['epochs']:g} epochs)"],
        ["FLOPs", quantity(spent["flops"])],
        ["Time", f"{spent['seconds'] / 3600:.2f} h on {escape(manifest['hardware']['name'])}"],
        ["Number format", escape(manifest["precision"])],
        ["Code", f"`{manifest['code']['commit'] or 'not from a git checkout'}`"],
        *([escape(key), escape(value)] for key, value in sorted(parameters.items())),
    ]
    return "## Pre-training\n\n" + markdown(["What", "Value"], rows, left=2) + "\n"


def _scores(records: pd.DataFrame, tasks: list[str], embedded: bool) -> str:
    name = records["model"].iloc[0]
    cells = {task: statistics.cell(records, name, task) for task in tasks}
    rows = [
        [glue.get(task).name, score(found.median), score(found.best), str(found.n)]
        for task, found in cells.items()
    ]
    what = "the embedded world, a generated language: **not GLUE**" if embedded else "GLUE dev sets"
    return (
        f"## Scores on {what}\n\nMetric × 100. The records behind each are in `records/`.\n\n"
        + markdown(["Task", "Median", "Best", "Seeds"], rows)
    )


def _limits(embedded: bool, records: pd.DataFrame) -> str:
    lines = ["English only; sequences up to the pre-training length."]
    if embedded:
        lines.append("Trained on generated sentences: of no use on real text.")
    elif not records["complete"].all():
        lines.append("Some tasks were cut to fewer rows than GLUE's own; see the records.")
    lines.append("What the corpus holds of prejudice, the model may have learned.")
    return "\n## Limits\n\n" + "".join(f"- {line}\n" for line in lines)
