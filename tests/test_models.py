"""The registry: the paper's parameter counts, and checkpoints plain transformers opens."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from makers import ROOT
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RoFormerConfig,
)

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import tokenizer
from helpers.model import disentangled, registry
from helpers.train import heads, objectives

PUBLISHED = json.loads((ROOT / "results" / "published.json").read_text())["table1"]["models"]
VOCABULARY = {"wordpiece": 30_522, "bpe": 50_265}


def at_paper_size(name, **options):
    spec = registry.get(name)
    with torch.device("meta"):
        return objectives.build(
            spec, registry.get_size("paper"), VOCABULARY[spec.tokenizer], 128, **options
        )


def test_generator_and_discriminator_share_their_token_embeddings():
    for name in ("electra", "electra-deberta"):
        task = at_paper_size(name)
        mine = registry.encoder(task.model).embeddings.word_embeddings.weight
        assert registry.encoder(task.generator).embeddings.word_embeddings.weight is mine
        tied = task.generator.get_output_embeddings().weight is mine
        assert tied == registry.get(name).tie_softmax


@pytest.mark.parametrize(
    ("size", "fraction", "heads"),
    [("paper", 0.25, 1), ("paper", 0.5, 2), ("paper", 1.0, 4), ("mini", 0.5, 1), ("mini", 1.0, 4)],
)
def test_a_generators_heads_are_64_wide_as_electras(size, fraction, heads):
    """max(1, hidden // 64) in its code; a full-size generator is the same encoder."""
    shape = registry.get_size(size)
    found = registry.build_config(registry.get("electra"), shape, 100, 64, width=fraction)
    assert found.num_attention_heads == heads


def test_a_head_on_deberta_is_drawn_as_the_releases_init_weights():
    torch.manual_seed(0)
    config = registry.build_config(
        registry.get("electra-deberta"), registry.get_size("paper"), 9, 64
    )
    head = disentangled.Discriminator(config).discriminator_predictions
    assert head.dense.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.dense_prediction.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not head.dense.bias.any()
    assert not head.dense_prediction.bias.any()


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "scratch"])
def test_a_table_of_positions_may_start_from_sinusoids(name):
    def build(name):
        torch.manual_seed(0)
        return objectives.build(registry.get(name), registry.get_size("small"), 100, 64)

    task, released = build(name), build(f"{name}+random-positions")
    table = registry.encoder(task.model).embeddings.position_embeddings
    width, skipped = table.weight.shape[1], {table.padding_idx} - {None}
    rows = [row for row in range(len(table.weight)) if row not in skipped]
    for row, pair in [(rows[3], 0), (rows[-1], width // 4), (rows[7], width // 2 - 1)]:
        length = np.pi * 60 ** (pair / (width // 2 - 1))
        wanted = 0.06 * 2**0.5 * np.array([f(2 * np.pi * row / length) for f in (np.sin, np.cos)])
        found = table.weight[row, 2 * pair : 2 * pair + 2].detach().numpy()
        assert found == pytest.approx(wanted, abs=1e-5)
    assert table.weight[rows].std().item() == pytest.approx(0.06, rel=0.05)
    assert table.weight.requires_grad
    for (key, one), other in zip(
        task.state_dict().items(), released.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other) != key.endswith("position_embeddings.weight"), key


@pytest.mark.parametrize("name", ["bert", "roberta", "electra-deberta"])
def test_token_types_may_start_from_zero(name):
    for model, zero in ((name, True), (f"{name}+random-types", False)):
        task = objectives.build(registry.get(model), registry.get_size("small"), 100, 64)
        types = registry.encoder(task.model).embeddings.token_type_embeddings.weight
        assert types.requires_grad
        assert (not types.any()) == zero


@pytest.mark.parametrize("change", ["random-positions", "random-types"])
def test_a_start_that_a_size_has_already_is_refused(change):
    with pytest.raises(UserError, match=change):
        objectives.build(registry.get(f"bert+{change}"), registry.get_size("tiny"), 100, 64)


def test_roberta_has_two_positions_less():
    config = at_paper_size("roberta").model.config
    assert config.max_position_embeddings == 128
    assert tokenizer.usable_length("bpe", 128) == 126
    model = registry.masked_lm(config)
    model(torch.full((1, 126), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 127), 5))


OTHERS = ("roformer", "albert", "mpnet", "bert")


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", *OTHERS])
def test_sparse_logits_are_the_models_own(monkeypatch, name):
    """Of the registry's models, and of any that transformers has, which is one entry of it."""
    if name in OTHERS:
        entry = registry.Spec("transformers", "mlm", model_type=name)
        monkeypatch.setitem(registry.REGISTRY, name, entry)
    torch.manual_seed(0)
    task = objectives.build(registry.get(name), registry.get_size("tiny"), 100, 34)
    model = task.model.eval()
    assert name not in OTHERS or model.config.model_type == name
    inputs, positions = torch.randint(5, 100, (3, 32)), torch.tensor([[1, 7], [0, 31], [5, 6]])
    masked = objectives.Masked(inputs, torch.zeros_like(inputs), positions, positions, positions)

    def gradients(logits):
        model.zero_grad()
        logits.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    dense = model(inputs).logits
    wanted = torch.stack([dense[row, positions[row]] for row in range(3)])
    expected, found = gradients(wanted), objectives.masked_logits(model, masked)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients(found), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(inputs).logits, dense)  # nothing stays in the model
    assert objectives.flops_per_token(task, 32) > 0


@pytest.mark.parametrize(
    ("model_type", "missing"),
    [("distilbert", "intermediate_size"), ("modernbert", "hidden_dropout")],
)
def test_an_architecture_the_study_cannot_set_is_refused(model_type, missing):
    spec = registry.Spec("transformers", "mlm", model_type=model_type)
    with pytest.raises(UserError, match=f"model_type = '{model_type}': its config.* no {missing}"):
        objectives.build(spec, registry.get_size("tiny"), 100, 32)


def test_rates_follow_the_list_of_layers_however_it_is_built():
    """ALBERT's shared layers have one; XLM has lists side by side, Funnel a list of lists."""

    def rates(name, part):
        made = getattr(transformers, f"{name}Config")(vocab_size=30, **part)
        model = getattr(transformers, f"{name}ForSequenceClassification")(made)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = heads.layer_rates(model, 1.0, 0.5)
        found = {names[id(p)]: group["base"] for group in groups for p in group["params"]}
        return heads.are_shared(model), found

    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    shared, found = rates("Albert", small | {"embedding_size": 8, "num_hidden_layers": 3})
    assert shared
    depths = {"embeddings": 0.5**3, "albert_layer_groups": 0.5**2, "pooler": 1, "classifier": 1}
    depths["hidden_mapping_in"] = 0.5**3
    for name, rate in found.items():
        assert rate == depths[next(part for part in depths if part in name)], name
    shared, found = rates("XLM", {"emb_dim": 16, "n_layers": 2, "n_heads": 2})
    assert not shared
    for name, rate in found.items():
        inner = [part for part in name.split(".") if part.isdigit()]
        first = "embeddings" in name or "layer_norm_emb" in name
        wanted = 0.5 ** (3 - int(inner[0])) if inner else 0.5**4 if first else 1.0
        assert rate == wanted, name
    shape = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "block_sizes": [1, 2]}
    _, found = rates("Funnel", shape)
    blocks = {name[22:25]: rate for name, rate in found.items() if ".blocks." in name}
    assert blocks == {"0.0": 0.5**4, "1.0": 0.5**3, "1.1": 0.5**2}


def test_a_folder_with_a_configuration_is_a_model(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "root", lambda: tmp_path)
    folder = tmp_path / "models" / "mine"
    RoFormerConfig(hidden_size=48, num_attention_heads=3, num_hidden_layers=1).save_pretrained(
        folder
    )
    built = objectives.build(registry.get("mine"), registry.get_size("tiny"), 100, 32).model.config
    assert (built.hidden_size, built.num_attention_heads, built.vocab_size) == (48, 3, 100)
    (folder / "config.json").write_text('{"model_type": "roformr"}')
    with pytest.raises(UserError, match=r"config\.json: model_type = 'roformr': .*roformer"):
        registry.get("mine")


def test_unknown_names_are_errors_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean deberta"):
        registry.get("debreta")
    with pytest.raises(UserError, match="size = 'huge'"):
        registry.get_size("huge")
    with pytest.raises(UserError, match=r"generator_fraction = 0\.01"):
        at_paper_size("electra", fraction=0.01)


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "deberta", "electra", "electra-deberta", "scratch"]
)
def test_checkpoints_open_with_plain_transformers(small_run, name):
    folder = small_run.folder / "models" / name
    tok = AutoTokenizer.from_pretrained(folder / "encoder", local_files_only=True)
    batch = tok("The first one.", "And the second.", return_tensors="pt")
    assert tok.decode(batch["input_ids"][0]).startswith(tok.cls_token)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModel.from_pretrained(folder / "encoder", local_files_only=True).eval()
        hidden = model(**batch).last_hidden_state
    assert torch.isfinite(hidden).all()
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "encoder")
    assert len(tok) == classifier.config.vocab_size
    # A text of any length is cut to what the model has positions for.
    batch = tok("one more word " * 400, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == (62 if name == "roberta" else 64)
    model(**batch)


def test_checkpoints_hold_nothing_that_transformers_4_reads_otherwise(small_run):
    """Tried by hand with 4.57: it has no class TokenizersBackend, and one bias where 5 has two."""
    for path in small_run.folder.glob("models/*/*/tokenizer_config.json"):
        assert files.read_json(path)["tokenizer_class"] == "PreTrainedTokenizerFast"
    weights = load_file(
        small_run.folder / "models" / "electra-deberta" / "generator" / "model.safetensors"
    )
    bias, other = (weights[f"cls.predictions.{name}bias"] for name in ("", "decoder."))
    assert torch.equal(bias, other)
    assert bias.any()


def missing(folder, auto):
    _, info = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    return info["missing_keys"]


def test_heads_are_saved_with_their_models(small_run):
    folder = small_run.folder / "models"
    for name in ("bert", "roberta", "deberta"):
        assert not missing(folder / name / "encoder", AutoModelForMaskedLM)
    for name in ("electra", "electra-deberta"):
        assert not missing(folder / name / "generator", AutoModelForMaskedLM)
    assert not missing(folder / "electra" / "encoder", AutoModelForPreTraining)
    assert not missing(folder / "electra-deberta" / "encoder", AutoModel)


@pytest.mark.parametrize("name", [*registry.REGISTRY, "roberta+pre-ln", "bert+seed-1", "nobody's"])
def test_a_control_is_the_same_encoder_without_pretraining(name):
    control = registry.control(name)
    if name in ("roberta+pre-ln", "nobody's") or registry.get(name).objective == "none":
        assert control is None
        return
    assert registry.get(control).objective == "none"
    assert registry.get(control).tokenizer == registry.get(name).tokenizer
    size = registry.get_size("tiny")
    one, two = (
        registry.encoder(objectives.build(registry.get(each), size, 200, 64).model)
        for each in (name, control)
    )
    shapes, others = (
        {k: v.shape for k, v in each.state_dict().items() if "token_type" not in k}
        for each in (one, two)
    )
    assert shapes == others
