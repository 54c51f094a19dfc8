"""A small run of the study, made once per session and shared by the tests that only read it."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from helpers import config, corpus, finetune, glue, pretrain, tokenizer

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "max_length": 64,
    "documents": 200,
    "train_rows": 48,
    "dev_rows": 32,
    "pretrain_steps": 12,
    "pretrain_warmup_steps": 2,
    "pretrain_batch_size": 8,
    "checkpoint_steps": 4,
    "finetune_epochs": 1,
    "finetune_epochs_small": 1,
}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def small_profile(runs, **changes):
    values = SMALL | {"runs": str(runs), "profile": "small"} | changes
    return config.load_profile("tiny", **values)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Data, both tokenizers, every model pre-trained, two of them fine-tuned on three tasks."""
    os.chdir(ROOT)
    profile = small_profile(tmp_path_factory.mktemp("runs"))
    data = config.Data(**profile.stage(config.Data))
    corpus.run(data)
    glue.prepare(data)
    for kind in ("wordpiece", "bpe"):
        tokenizer.run(config.Tokenizer(**profile.stage(config.Tokenizer, tokenizer_kind=kind)))
    for model in profile.models:
        pretrain.run(config.Pretrain(**profile.stage(config.Pretrain, model=model)))
    for model in ("roberta", "scratch"):
        finetune.run(
            config.Finetune(
                **profile.stage(
                    config.Finetune, model=model, tasks=["cola", "stsb", "mnli"], seeds=[0]
                )
            )
        )
    return profile
