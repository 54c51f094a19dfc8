"""What the pages compute, against other code and closed forms, and what every page has."""

import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from makers import ROOT, make_run, page_cells, run_page
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import BertConfig, BertModel, DebertaModel

from helpers.base import config, files
from helpers.data import glue, tokenizer
from helpers.pages import tables
from helpers.score import costs

PAGES = sorted((ROOT / "book").glob("*.md"))


# --- objectives


def test_an_example_hides_and_replaces_what_it_says():
    page = run_page("objectives")
    names, numbers = page.names, page.numbers
    tokens, masked, corrupted = names["tokens"], names["masked"], names["corrupted"]
    differ, hidden = corrupted != tokens, masked.inputs != tokens
    assert torch.equal(names["labels"].bool(), differ)
    assert not (differ & ~hidden).any()
    assert (masked.inputs[hidden] == names["MASK"]).all()
    assert not (corrupted == names["MASK"]).any()
    assert (hidden.sum(1) == 3).all()  # 15 % of 20
    unigram = torch.bincount(tokens.flatten()).float()
    assert numbers["loss"] < stats.entropy(unigram.numpy()) < numbers["blind"]
    assert numbers["least"] == pytest.approx(stats.bernoulli(0.15).entropy())
    row = names["row"]
    assert 0 < differ[row].sum() < hidden[row].sum()


# --- attention


def test_equal_words_differ_by_their_places_alone():
    names = run_page("disentangled").names
    i, j = np.indices((8, 8))
    assert np.array_equal(names["index"], np.clip(i - j + 3, 0, 5))
    table = names["table"]
    for word in ("the", "dog"):
        one, other = table[table.index == word].to_dict("records")
        assert one["Content"] == pytest.approx(other["Content"])
        assert abs(one["c2p"] - other["c2p"]) > 0.1
        assert abs(one["p2c"] - other["p2c"]) > 0.05
    assert table["Away"].tolist() == [6, 5, 4, 3, 2, 1, 0]
    # The weights are those of transformers' own layer.
    weights = DebertaModel(names["config"]).eval()
    weights.config._attn_implementation = "eager"
    weights.load_state_dict(names["layer"].state_dict())
    with torch.no_grad():
        found = weights(names["tokens"], output_attentions=True).attentions[0]
    mine = found[0, names["head"], names["query"]].numpy()
    assert 100 * mine == pytest.approx(table["Weight, %"].to_numpy(), abs=0.01)


def test_a_trained_layer_is_read_as_the_page_says(small_run, capsys):
    text = (ROOT / "book" / "disentangled.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "runs/tiny" in b)
    exec(compile(block.replace("runs/tiny", str(small_run.folder)), "page", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "[" in line] == [str(d) for d in range(-5, 6)]


# --- data


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_folder_says_of_its_data_is_shown_and_inert(tmp_path, kept):
    make_run(tmp_path / "records", "folder", ["bert"], ["cola"])
    nasty = "a & `b` *c* {{ d }} $e$ &lt;f&gt;"
    about = {"name": nasty, "composition": nasty, "licence": "unknown"}
    about |= {"warnings": [nasty], "tasks": {"cola": nasty}}
    facts = {"parameters": {"models": ["bert"], "tasks": ["cola"]}}
    if kept:
        facts["description"] = about
    else:
        corpus = tmp_path / "data" / "corpus"
        corpus.mkdir(parents=True)
        files.write_manifest(corpus, {"spec": "", "description": about}, [])
    files.write_json(tmp_path / "run.json", facts)
    lines = run_page("results", tmp_path).names["about_data"]
    table = BeautifulSoup(tables.show(lines).to_html(), "html.parser")
    cells = [cell.get_text() for cell in table.find_all("td")]
    assert cells == [
        *("Name", nasty, "Composition", nasty, "Licence", "unknown"),
        *("To know", nasty, "cola", nasty),
    ]


# --- cost and speed


@pytest.fixture(scope="module")
def cost():
    """What the page of cost and speed leaves behind."""
    return run_page("cost")


def test_hours_are_at_the_rates_that_others_measured(cost):
    flop = costs.flops("electra", config.load_profile("paper"))
    gpus = files.read_json(ROOT / "results" / "gpus.json")["gpus"]
    peaks = {name: gpu["peak_tflops"] * 1e12 for name, gpu in gpus.items()}
    used = [
        one.tokens_per_second * flop / peaks[one.gpu] for one in cost.names["rates"].itertuples()
    ]
    work = 1_000_000 * 128 * 128 * flop / peaks["v100"] / 3600
    wanted = f"{work / max(used):.0f} to {work / min(used):.0f}"
    assert cost.names["table_of_hours"].loc["ELECTRA", "V100"] == wanted


def test_losses_of_both_sides_differ_as_the_page_says(cost):
    runs = cost.names["runs"]
    means = runs.groupby(["model", "side"])["final"].mean().unstack()
    apart = means.div(means["stock"], axis="index") - 1
    assert cost.numbers["apart"] == pytest.approx(100 * apart.abs().max(axis=None))
    spread = runs.groupby(["model", "side"])["final"].apply(stats.variation, ddof=1)
    assert cost.numbers["spread"] == pytest.approx(100 * spread.max())


# --- scores


def test_one_answer_for_every_row_and_the_metrics_that_count():
    names = run_page("glue").names
    example = names["example"]
    truth = names["labels"]
    for model, answers in names["answers"].items():
        wanted = [accuracy_score, f1_score, matthews_corrcoef]
        assert example.loc[model].tolist() == pytest.approx(
            [100 * f(truth, answers) for f in wanted]
        )
    found = names["constant"].rename(lambda name: name.removesuffix(" †"))
    present = names["shown"].present
    assert list(found.index) == [glue.TASKS[name].name for name in present]
    for name in present:
        score, f1 = found.loc[glue.TASKS[name].name]
        if name in ("cola", "stsb"):
            assert score == 0
        if name in ("mrpc", "qqp"):  # of the class that is always answered, or of the other one
            share = score / 100
            assert f1 in (0, pytest.approx(100 * 2 * share / (1 + share)))
    as_glue = names["as_glue"]
    assert as_glue({"accuracy": 0.8, "f1": 0.9}, 80.0) == pytest.approx(85)
    assert as_glue({"spearman": 0.7, "pearson": 0.6}, 70.0) == pytest.approx(65)
    assert as_glue({"matthews_correlation": 0.3}, 30.0) == 30.0
    records = names["records"]
    wanted = records[records["model"] == "bert"].groupby("seed")["score"].mean().mean()
    assert names["counted"].loc["bert", "score"] == pytest.approx(wanted)


# --- what was stated


def test_what_was_stated_has_the_numbers_of_the_papers_profile():
    here = run_page("method").names["stated"]["This book"]
    assert here.str.contains("10 a cell in profile paper").any()
    assert not here.str.contains("{", regex=False).any()


# --- the pages


def python_blocks():
    """The Python code of the pages that needs no run."""
    for path in PAGES:
        after = path.read_text(encoding="utf-8").partition("## Run this yourself")[2]
        for place, block in enumerate(re.findall(r"```python\n(.*?)```", after, re.DOTALL)):
            if "runs/" not in block:
                yield pytest.param(block, id=f"{path.stem}-{place}")


@pytest.mark.parametrize("block", list(python_blocks()))
def test_what_a_page_tells_to_run_runs(block, capsys):
    exec(compile(block, "page", "exec"), {})
    if "print" in block:
        assert capsys.readouterr().out


@pytest.mark.parametrize(("strength", "low", "high"), [(0.0, 1 - 1e-5, 1 + 1e-5), (8.0, 5, 1e9)])
def test_a_head_that_compares_words_is_told_from_one_that_does_not(small_run, strength, low, high):
    (cell,) = [c for c in page_cells(ROOT / "notebooks/05_analysis.ipynb") if "def likes" in c]
    names = {}
    exec(cell, names)
    tok = tokenizer.load(small_run.folder / "tokenizer" / "wordpiece")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    shape |= {"intermediate_size": 16, "vocab_size": len(tok), "attn_implementation": "eager"}
    encoder = BertModel(BertConfig(**shape)).eval()
    with torch.no_grad():
        encoder.embeddings.position_embeddings.weight.zero_()
        encoder.embeddings.token_type_embeddings.weight.zero_()
        for one in (
            encoder.encoder.layer[0].attention.self.query,
            encoder.encoder.layer[0].attention.self.key,
        ):
            one.weight.copy_(strength**0.5 * torch.eye(16))
            one.bias.zero_()
    found = names["likes"](encoder, tok, [("a b c d e f", "f a d"), ("g h k", "k m")])
    assert found.shape == (1, 1)
    assert low < found.item() < high
