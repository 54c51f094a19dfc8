"""The loss on documents that are held out: the same rows and masks for every run that shares them.

The training loss is another quantity: it counts chosen tokens that stay visible, which BERT and
ELECTRA have, it is a mean over steps, and two runs see other rows. Here every chosen token is
masked, and a second loss with the visible tokens shuffled tells what word order is worth.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from helpers.base import seeding
from helpers.train import loop, objectives
from helpers.train.batches import Rows
from helpers.train.objectives import Masked, Vocabulary

BATCH = 32  # rows
SHARE = 0.015  # of the work of training that measuring may take, about
PASSES = 2.5  # forward passes of an evaluation
LARGEST = (8, 32)  # batches at a point, and at the end


class HeldOut:
    """Batches of held-out rows, and how many of them are read at a point of the log.

    `packed` is uint16 or uint32 [rows, length]; `trained` counts the rows that training reads, of
    which a step costs three forward passes: measuring takes less than `SHARE` of that.
    """

    points = 20  # of the log, about

    def __init__(
        self, packed: np.ndarray, tok: Tokenizer, trained: int, vocabulary: Vocabulary
    ) -> None:
        self.vocabulary = vocabulary
        allowed = SHARE * 3 * trained / BATCH / PASSES
        there = max(1, len(packed) // BATCH)
        self.end = int(min(LARGEST[1], max(1, allowed / 3), there))
        self.point = int(min(LARGEST[0], max(1, allowed * 2 / 3 / self.points), self.end))
        self.batches = []  # none where the corpus is too small to hold out a document
        if len(packed):
            rows = Rows(packed, tok, BATCH, 0, vocabulary.special.device)
            self.batches = [rows.batch(number) for number in range(self.end)]

    def __call__(self, task: nn.Module, dtype: torch.dtype, last: bool) -> dict[str, float]:
        """What :func:`evaluate` says, over more rows at the `last` step."""
        read = self.batches[: self.end if last else self.point]
        return evaluate(task, read, self.vocabulary, dtype)


@torch.no_grad()
def evaluate(
    task: nn.Module, read: Sequence[torch.Tensor], vocabulary: Vocabulary, dtype: torch.dtype
) -> dict[str, float]:
    """Means over batches of rows, int64 [batch, length], each with masks of its own.

    ``held_out_loss`` and ``held_out_shuffled`` are the cross-entropy of masked tokens in nats, of
    the generator where there is one; ``held_out_auc`` says how well its discriminator orders tokens
    by whether they were replaced, and ``held_out_excess`` its loss over that of a constant guess,
    in nats. ``effective_rank`` is that of the encoder's last hidden states over the first batch.
    """
    training, is_rtd = task.training, isinstance(task, objectives.ReplacedTokenDetection)
    task.eval()
    network, device = task.generator if is_rtd else task.model, read[0].device
    sums, chosen, scores, labels = {}, 0.0, [], []
    generator = torch.Generator(device)
    for number, tokens in enumerate(read):
        generator.manual_seed(seeding.derive_seed("held-out", number))
        masked = objectives.mask_tokens(tokens, vocabulary, (1.0, 0.0), generator)
        mixed = masked._replace(inputs=_shuffle(masked, tokens, vocabulary, generator))
        one = torch.ones((), device=device)
        with loop.autocast(device, dtype):
            logits = objectives.masked_logits(network, masked)
            found = {"loss": objectives.masked_loss(logits, masked, one)}
            found["shuffled"] = objectives.masked_loss(
                objectives.masked_logits(network, mixed), mixed, one
            )
            if is_rtd:
                torch.manual_seed(seeding.derive_seed("held-out samples", number))
                corrupted, replaced = objectives.corrupt(tokens, masked, logits)
                score = objectives.replaced_scores(task.model, corrupted, masked.types)
                ordinary = ~vocabulary.special[tokens]
                scores.append(score[ordinary].float())
                labels.append(replaced[ordinary])
            if number == 0:
                states = objectives.hidden_states(task.model, tokens, masked.types)
                states = states.float().flatten(0, 1).cpu().numpy()
        chosen += masked.weights.sum().item()
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    task.train(training)
    means = {f"held_out_{name}": value / chosen for name, value in sums.items()}
    if is_rtd:
        means |= detection(torch.cat(scores), torch.cat(labels))
    return means | {"effective_rank": effective_rank(states)}


def _shuffle(
    masked: Masked, tokens: torch.Tensor, vocabulary: Vocabulary, generator: torch.Generator
) -> torch.Tensor:
    """The inputs with the visible ordinary tokens of each row in a random order."""
    visible = (masked.inputs == tokens) & ~vocabulary.special[tokens]
    noise = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    drawn = torch.where(visible, noise, 2.0).argsort(dim=1, stable=True)
    place = (~visible).long().argsort(dim=1, stable=True)
    return masked.inputs.scatter(1, place, masked.inputs.gather(1, drawn))


def detection(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """AUC, and loss over that of the base rate, of a discriminator's logits, float [tokens]."""
    loss = nn.functional.binary_cross_entropy_with_logits(scores, labels).item()
    rate = labels.mean().item()
    if not 0 < rate < 1:  # a generator that is always right, or never
        return {"held_out_auc": math.nan, "held_out_excess": math.nan}
    base = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    auc = roc_auc_score(labels.cpu().numpy(), scores.cpu().numpy())
    return {"held_out_auc": float(auc), "held_out_excess": loss - base}


def effective_rank(states: np.ndarray) -> float:
    """How many directions vectors, float [n, width], spread over: 1 on a line, at most the width.

    The exponential of the entropy of their covariance's eigenvalues, each over the sum.
    Source: Roy and Vetterli 2007.
    """
    centred = states - states.mean(0)
    shares = np.linalg.svd(centred, compute_uv=False).astype(np.float64) ** 2
    return float(np.exp(stats.entropy(shares)))
