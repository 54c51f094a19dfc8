"""A pre-trained model as a folder for the Hugging Face Hub: weights, tokenizer, model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from helpers.base import files
from helpers.base.errors import UserError
from helpers.base.text import escape, quantity
from helpers.data import glue
from helpers.model import registry
from helpers.pages import view
from helpers.score import statistics
from helpers.train import records as records_of

TEMPLATE = Path(__file__).with_name("card.md")
OBJECTIVES = {"mlm": "MLM", "rtd": "replaced-token detection", "none": "none"}


def export_run(run: str, model: str, out: str) -> None:
    """Exports one model of a run, or every finished one, and prints the folders."""
    source = files.resolve(run)
    target = files.resolve(out) if out else source / "export"
    if not (done := sorted(path.parent.name for path in source.glob("models/*/manifest.json"))):
        raise UserError(f"run = {run!r}: no finished model there")
    for name in [model] if model else done:
        print(os.path.relpath(export(source, name, target / name)))


def export(run: Path, model: str, out: Path) -> Path:
    """Writes weights, tokenizer, model card and records of one finished model of a run to `out`."""
    source = run / "models" / model
    manifest = files.require_manifest(source, "03_pretrain", f" with model = {model}")
    records = view.load_records(run / "records")
    mine = records[records["model"] == model]
    if mine.empty:
        raise UserError(f"{run}: no record of {model}; run notebooks/04_finetune.ipynb first")
    ours = all((out / name).exists() for name in ("README.md", "config.json", "records"))
    if out.exists() and not ours:
        raise UserError(f"{out}: exists and is no export; name another folder")
    card = model_card(model, manifest, mine)
    with files.building(out) as made:
        for name in manifest["files"]:
            if name.startswith("encoder/"):
                shutil.copyfile(source / name, made / Path(name).name)
        for cell, names in records_of.vouched(run).items():
            if cell.parent.name == model:
                (made / "records" / cell.name).mkdir(parents=True)
                for name in names:
                    shutil.copyfile(cell / name, made / "records" / cell.name / name)
        files.write_text(made / "README.md", str(card))
    return out


def model_card(model: str, manifest: dict[str, Any], records: pd.DataFrame) -> ModelCard:
    """The card, from the manifest of the pre-training and the model's records.

    Scores of the embedded world are named as such.
    """
    size = manifest["size"]
    cells = {
        task.name: statistics.mean_of_tasks(records, model, [key])
        for key, task in glue.TASKS.items()
        if key in set(records["task"])
    }
    data = ModelCardData(
        language="en",
        library_name="transformers",
        pipeline_tag="fill-mask" if registry.get(model).objective == "mlm" else None,
        tags=["small-bench-nlp", size],
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model=escape(model),
        size=escape(size),
        facts=_facts(model, manifest),
        cells=cells,
        embedded=bool((records["source"] == "embedded").all()),
        reduced=not records["complete"].all(),
    )


def _facts(model: str, manifest: dict[str, Any]) -> dict[str, str]:
    code = manifest["code"]
    spent, parameters = manifest["pretrain"], manifest["specification"]["parameters"]
    return {
        "Objective": OBJECTIVES[registry.get(model).objective],
        "Encoder": f"{quantity(spent['parameters'])} parameters",
        "Corpus": escape(manifest["corpus"]),
        "Tokens seen": f"{quantity(spent['tokens'])} ({spent['epochs']:g} epochs)",
        "FLOPs": quantity(spent["flops"]),
        "Time": f"{spent['seconds'] / 3600:.2f} h on {escape(manifest['hardware']['name'])}",
        "Number format": escape(manifest["precision"]),
        "Code": f"`{code['commit']}`" if code["commit"] else escape(code.get("why", "no commit")),
        **{escape(name): escape(parameters[name]) for name in sorted(parameters)},
    }
