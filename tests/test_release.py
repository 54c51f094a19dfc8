"""Exports open with plain transformers, and their cards parse."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from makers import ROOT
from transformers import AutoModel, AutoTokenizer

from helpers.base.errors import UserError
from helpers.data import glue
from helpers.study import export
from helpers.train import records


def test_an_export_is_a_model_with_a_card(small_run, tmp_path):
    out = export.export(small_run.folder, "scratch", tmp_path / "export" / "scratch")
    tok = AutoTokenizer.from_pretrained(out, local_files_only=True)
    model = AutoModel.from_pretrained(out, local_files_only=True).eval()
    with torch.no_grad():
        found = model(**tok("One sentence.", return_tensors="pt")).last_hidden_state
    own = AutoModel.from_pretrained(small_run.folder / "models" / "scratch" / "encoder").eval()
    with torch.no_grad():
        wanted = own(**tok("One sentence.", return_tensors="pt")).last_hidden_state
    assert torch.equal(found, wanted)

    card = ModelCard.load(out / "README.md")
    kept = [records.read(path) for path in sorted((out / "records").glob("*/seed-*.json"))]
    assert {record["task"] for record in kept} == {"cola", "stsb", "mnli"}
    for record in kept:
        name, score = glue.get(record["task"]).name, record["score"]
        assert f"| {name} | {score:.2f} | {score:.2f} | 1 |" in card.text
    assert "not GLUE" in card.text
    assert not any(str(part) in card.content for part in (ROOT, small_run.folder))
    # Again into the same place; never over something else.
    export.export(small_run.folder, "scratch", out)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists and is no export"):
        export.export(small_run.folder, "scratch", tmp_path / "mine")


def test_an_unfinished_model_is_one_line(small_run, tmp_path):
    with pytest.raises(UserError, match=r"03_pretrain\.ipynb first with model = nobody"):
        export.export(small_run.folder, "nobody", tmp_path / "out")
    with pytest.raises(UserError, match="no record of electra"):
        export.export(small_run.folder, "electra", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_schema_of_records_is_published():
    # json.dumps(..., indent=2) of the right side writes it anew.
    kept = json.loads((ROOT / "results" / "record.schema.json").read_text())
    assert kept == records.Record.model_json_schema(by_alias=True)
