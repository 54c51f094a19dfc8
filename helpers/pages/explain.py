"""What the background pages compute: objectives, attention, a GPU-day, metrics, noise.

Nothing here trains. Examples come from the embedded world, costs from the registry's shapes, noise
from the published deviations; ``helpers.explain_page`` makes Markdown of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional
from transformers import AutoModel, DebertaModel

from helpers.base import config
from helpers.base.seeding import derive_seed
from helpers.data import glue, metrics, synthetic, tokenizer
from helpers.model import disentangled, registry
from helpers.score import costs
from helpers.train import objectives
from helpers.train.loop import quiet

MASK = 0  # id of the mask in the example's vocabulary
SMOOTHING = 0.01  # added to every count of the example's generator
FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # widths of a generator
BERT_BASE = registry.Size(12, 768, 12, 3072, 768, 768, 512)  # Devlin et al. 2019, section 3
SECONDS_A_DAY = 86400

Published = Mapping[str, Any]


# --- objectives ----------------------------------------------------------------------------------


class Corruption(NamedTuple):
    """Segments of the embedded world as both objectives see them.

    Attributes:
        words: The vocabulary; word *i* has the id *i*, and the mask is word 0.
        tokens: int64 [segments, length], the original.
        masked: The same with chosen words hidden, all by the mask.
        corrupted: int64 [segments, length], with samples of the generator in their place.
        labels: float32 [segments, length], 1 where a word differs from the original.
        loss: Cross-entropy of the generator at the chosen words, nats a word.
    """

    words: list[str]
    tokens: torch.Tensor
    masked: objectives.Masked
    corrupted: torch.Tensor
    labels: torch.Tensor
    loss: float

    @property
    def chosen(self) -> float:
        """Share of the words that were hidden, 0 to 1."""
        return float(self.masked.weights.sum()) / self.tokens.numel()

    @property
    def replaced(self) -> float:
        """Share of the words that differ from the original, 0 to 1."""
        return float(self.labels.mean())


def corruption(documents: int = 400, length: int = 20, seed: int = 0) -> Corruption:
    """Masks and corrupts a corpus of the embedded world by the functions of pre-training.

    The generator is a table of counts in place of a network: a word is as likely as it was seen
    after the word before it and ahead of the word behind it.

    Args:
        documents: Of the corpus.
        length: Words and full stops of a segment; documents run into each other.
        seed: Of the world, the masks and the samples.
    """
    texts = synthetic.documents(documents, synthetic.MINIMUM_WORDS, seed)
    stream = re.findall(r"\w+|[.?]", " ".join(texts).lower())
    words = ["[MASK]", *sorted(set(stream))]
    index = {word: place for place, word in enumerate(words)}
    ids = torch.tensor([index[word] for word in stream])
    tokens = ids[: len(ids) // length * length].view(-1, length)
    special = torch.zeros(len(words), dtype=torch.bool)
    special[MASK] = True
    vocabulary = objectives.Vocabulary(MASK, special, torch.arange(1, len(words)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "samples"))
        chooser = torch.Generator().manual_seed(derive_seed(seed, "masks"))
        masked = objectives.mask_tokens(tokens, vocabulary, (1.0, 0.0), chooser)
        logits = _neighbour_logits(ids, len(words), masked)
        corrupted, labels = objectives.corrupt(tokens, masked, logits)
    loss = objectives.masked_loss(logits, masked, masked.weights.sum())
    return Corruption(words, tokens, masked, corrupted, labels, float(loss))


def _neighbour_logits(ids: torch.Tensor, size: int, masked: objectives.Masked) -> torch.Tensor:
    """Scores of every word between its neighbours, float32 [segments, K, words]."""
    pairs = torch.zeros(size, size)
    pairs.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1), accumulate=True)
    pairs = (pairs + SMOOTHING).log()
    once = (torch.bincount(ids, minlength=size) + SMOOTHING).log()
    # A segment's edge counts as a mask: it was never seen, so it says nothing of its neighbour.
    around = functional.pad(masked.inputs, (1, 1), value=MASK)
    before, behind = (around.gather(1, masked.positions + step) for step in (0, 2))
    logits = pairs[before] + pairs.T[behind] - once
    logits[..., MASK] = -math.inf
    return logits


def entropy(share: float) -> float:
    """Loss of a discriminator that answers `share` everywhere and is right on average, nats.

    Args:
        share: Of replaced tokens, 0 to 1.
    """
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def generator_sizes(name: str, profile: str = "paper") -> pd.DataFrame:
    """What a generator of another width costs.

    Args:
        name: A registry entry with replaced-token detection.
        profile: Its size, vocabulary and length are counted.

    Returns:
        Indexed by the generator's width over the discriminator's (`FRACTIONS`): parameters
        (generator's own, shared ones left out), mflop (per token, forward and backward) and ratio
        (to the narrowest).
    """
    lines = {}
    for fraction in FRACTIONS:
        study = config.load_profile(profile, generator_fraction=fraction)
        task = costs.outline(name, study)
        length = tokenizer.usable_length(registry.get(name).tokenizer, study.max_length)
        lines[fraction] = {
            "parameters": registry.count(task) - registry.count(task.model),
            "mflop": objectives.flops_per_token(task, length) / 1e6,
        }
    found = pd.DataFrame(lines).T
    return found.assign(ratio=found["mflop"] / found["mflop"].iloc[0])


# --- disentangled attention ----------------------------------------------------------------------


def index_matrix(length: int, span: int) -> np.ndarray:
    """Rows of the table of relative positions that each pair of tokens reads.

    Read by the shift of `helpers.disentangled`, not by the formula.

    Args:
        length: Tokens L.
        span: Distances the table tells apart in each direction.

    Returns:
        int64 [L, L]; element [*i*, *j*] is the row of the distance *i* - *j*.
    """
    rows = disentangled.relative_rows(length, span, torch.device("cpu"))
    return disentangled.shift(rows.expand(length, -1).contiguous()).numpy()


def score_terms(model: DebertaModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The three terms of the first layer's scores, each as it goes into the softmax.

    Args:
        model: A DeBERTa-v1 that `disentangled.speed_up` has been through, in evaluation mode.
        tokens: int64 [batch, L], no padding.

    Returns:
        ``c2c``, ``c2p``, ``p2c``: float [heads, batch, L, L].
    """
    own: disentangled.Attention = model.encoder.layer[0].attention.self
    table = own.table(model.encoder.rel_embeddings.weight, tokens.shape[1])
    query, key, _ = own.project(model.embeddings(tokens))
    terms = {
        "c2c": query @ key.transpose(-1, -2),
        "c2p": own.content_to_position(query, table),
        "p2c": own.position_to_content(key, table),
    }
    return {name: (own.scale * t).unflatten(0, (own.heads, -1)) for name, t in terms.items()}


def by_distance(terms: torch.Tensor) -> torch.Tensor:
    """Mean score at each distance i - j, from -(L - 1) to L - 1, float [heads, 2L - 1].

    Args:
        terms: float [heads, batch, L, L].
    """
    length = terms.shape[-1]
    mean = terms.mean(1)
    found = [mean.diagonal(-d, -2, -1).mean(-1) for d in range(1 - length, length)]
    return torch.stack(found, -1)


@torch.inference_mode()
def position_scores(run: Path, names: Sequence[str]) -> pd.DataFrame:
    """What the first layer's two positional terms add at each distance, on average.

    Args:
        run: The run's folder.
        names: Models of the run; the first DeBERTa among them that is pre-trained is read.

    Returns:
        Columns model (empty: fresh weights, always there), term (``c2p``, ``p2c``), head, distance
        (i - j, tokens) and score (added before the softmax; four decimals).
    """
    name = next((n for n in names if _is_deberta(run, n)), "")
    if name:
        quiet()
        source = run / "models" / name / "encoder"
        trained = AutoModel.from_pretrained(source, local_files_only=True, use_safetensors=True)
        packed = tokenizer.rows(run / "tokenizer" / registry.get(name).tokenizer)[:64]
        tokens, shape = torch.from_numpy(packed.astype(np.int64)), trained.config
    else:
        study = config.load_profile("tiny")
        size = registry.get_size(study.size)
        count, length = study.wordpiece_vocabulary, study.max_length
        shape = registry.build_config(registry.get("deberta"), size, count, length)
        drawn = torch.Generator().manual_seed(0)
        tokens = torch.randint(count, (64, length), generator=drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {"": DebertaModel(shape)} | ({name: trained} if name else {})
    lines = []
    for label, network in networks.items():
        # In float64 and rounded, so that every machine draws the same figure.
        terms = score_terms(disentangled.speed_up(network).double().eval(), tokens)
        for term in ("c2p", "p2c"):
            for head, row in enumerate(by_distance(terms[term]).tolist()):
                lines += [
                    {"model": label, "term": term, "head": head, "distance": place, "score": value}
                    for place, value in enumerate(row, 1 - tokens.shape[1])
                ]
    return pd.DataFrame(lines).round({"score": 4})


def _is_deberta(run: Path, name: str) -> bool:
    made = (run / "models" / name / "encoder" / "config.json").is_file()
    return made and registry.get(name).architecture == "deberta"


# --- small models --------------------------------------------------------------------------------


def shapes(utilisation: float, peak_tflops: float, profile: str = "paper") -> pd.DataFrame:
    """A small encoder beside BERT-Base's shape, both as a masked language model.

    Args:
        utilisation: The model's own FLOP over the GPU's peak.
        peak_tflops: Of the GPU.
        profile: Its size, vocabulary, length and number of tokens.

    Returns:
        Indexed by ``small`` and ``base``: parameters and embeddings (of the encoder, and of its
        token embeddings), mflop (per token, forward and backward, head at masked positions), days
        (for the profile's tokens).
    """
    study, spec = config.load_profile(profile), registry.get("bert")
    count = costs.tokens("bert", study)
    lines = {}
    for name, size in (("small", registry.get_size(study.size)), ("base", BERT_BASE)):
        with torch.device("meta"):
            task = objectives.build(spec, size, study.wordpiece_vocabulary, study.max_length)
        own = registry.encoder(task.model)
        flop = objectives.flops_per_token(task, study.max_length)
        lines[name] = {
            "parameters": registry.count(own),
            "embeddings": own.get_input_embeddings().weight.numel(),
            "mflop": flop / 1e6,
            "days": count * flop / (utilisation * peak_tflops * 1e12) / SECONDS_A_DAY,
        }
    return pd.DataFrame(lines).T


def reported_score(published: Published, tokens: float, method: str) -> float:
    """The mean of eight that others report after this many tokens.

    Args:
        published: The published figures.
        tokens: Read in pre-training.
        method: What the method of the points begins with.

    Returns:
        Metric x 100, on a straight line in the logarithm of tokens between the two nearest points;
        NaN outside of the points.
    """
    points = sorted(
        (1e9 * point["tokens_billions"], point["average"])
        for point in published["quality_per_compute"]
        if point["method"].startswith(method)
    )
    at, values = np.array(points).T
    if not at[0] <= tokens <= at[-1]:
        return math.nan
    return float(np.interp(math.log(tokens), np.log(at), values))


def gpu_day(
    gpus: Mapping[str, costs.Gpu], published: Published, name: str = "electra"
) -> pd.DataFrame:
    """Tokens that one GPU reads in a day.

    Args:
        gpus: `costs.load`.
        published: The published figures; peers' rates give the lowest and highest utilisation.
        name: Registry entry; it must be one whose rates others measured.

    Returns:
        `costs.table` at the lowest, the assumed and the highest utilisation, and the measured rows
        once, with columns day (tokens) and share (of the pre-training, 0 to 1) in addition.
    """
    assumed = costs.table(gpus, published, names=[name])
    seen = assumed.loc[assumed["measured"], "utilisation"]
    ends = [
        costs.table(gpus, published, names=[name], utilisation=u).query("not measured")
        for u in (seen.min(), seen.max())
    ]
    found = pd.concat([ends[0], assumed, ends[1]], ignore_index=True)
    day = found["tokens_per_second"] * SECONDS_A_DAY
    return found.assign(day=day, share=day / found["tokens"])


# --- how scores come about -----------------------------------------------------------------------


def majority(run: Path, tasks: Sequence[str]) -> pd.DataFrame:
    """Scores of one answer for every row: the commonest label, or the mean for a regression.

    Args:
        run: The run's folder; tasks without prepared data are left out.
        tasks: Tasks in order.

    Returns:
        Indexed by task: rows, score (the headline, x 100), f1 (x 100; NaN for a task without one).
    """
    lines = {}
    for name in tasks:
        task = glue.get(name)
        if not (run / "data" / "glue" / name / "manifest.json").is_file():
            continue
        truth = glue.load(run, name, task.validation)["label"].to_numpy()
        answer = np.bincount(truth).argmax() if task.labels else truth.mean()
        score, found, _ = metrics.score(name, np.full(len(truth), answer), truth)
        lines[name] = {
            "rows": len(truth),
            "score": score,
            "f1": 100 * found.get("f1", math.nan),
        }
    return pd.DataFrame(lines, index=["rows", "score", "f1"]).T


def choices(records: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The same runs averaged as Table 1 counts and as GLUE's own leaderboard does.

    GLUE averages accuracy and F1 for MRPC and QQP, Pearson and Spearman for STS-B.

    Args:
        records: Records of one run (`tables.select`).
        names: Models in order.

    Returns:
        Indexed by model with a record of every task of the run: table1, glue (medians over seeds,
        then the plain mean of the tasks, metric x 100).
    """
    pairs = zip(records["metrics"], records["score"], strict=True)
    both = records.assign(glue=[_as_glue(*pair) for pair in pairs])
    cells = both.groupby(["model", "task"])[["score", "glue"]].median()
    count = records["task"].nunique()
    means = cells.groupby("model").mean()[cells.groupby("model").size() == count]
    shown = [name for name in names if name in means.index]
    return means.loc[shown].rename(columns={"score": "table1"})


def _as_glue(found: Mapping[str, float], score: float) -> float:
    """Mean of a task's metrics where GLUE takes two, x 100; the headline elsewhere."""
    for pair in (("accuracy", "f1"), ("spearman", "pearson")):
        if all(key in found for key in pair):
            return 100 * sum(found[key] for key in pair) / 2
    return score


# --- noise ---------------------------------------------------------------------------------------
