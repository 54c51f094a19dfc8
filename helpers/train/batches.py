"""Batches: rows of the packed corpus, and a task's rows as token ids, batched by length."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from helpers.base import seeding
from helpers.data import glue
from helpers.train import loop

POOL = 64  # batches at most, sorted by length together; more: less padding, and less chance


class Rows:
    """The packed corpus as an endless stream of batches: permutations of the epochs, end to end.

    `packed` is a memory map, uint16 or uint32 [rows, length], of `tok`; a permutation follows from
    the seed and the epoch's number. Batches have no padding: rows of like length share one, and it
    is cut to the shortest, or to a multiple of `multiple` below.
    """

    def __init__(
        self,
        packed: np.ndarray,
        tok: Tokenizer,
        size: int,
        seed: int,
        device: torch.device,
        multiple: int = 1,
    ) -> None:
        self.packed, self.size, self.seed, self.device = packed, size, seed, device
        self.pad, self.separator, self.multiple = tok.pad_token_id, tok.sep_token_id, multiple
        # As many as an epoch has, at most.
        self.together = max(1, min(POOL, len(packed) // size))
        self.orders: dict[int, np.ndarray] = {}
        self.pool, self.batches = -1, np.empty(0)
        # torch indexes signed integers everywhere; the mask takes the sign back.
        self.signed = packed.view(packed.dtype.str.replace("u", "i"))
        self.mask = 2 ** (8 * packed.dtype.itemsize) - 1

    def order(self, epoch: int) -> np.ndarray:
        """Permutation of an epoch, int64 [rows]; the last two are kept."""
        if epoch not in self.orders:
            self.orders = {e: order for e, order in self.orders.items() if e == epoch - 1}
            generator = seeding.numpy_generator(self.seed, "order", epoch)
            self.orders[epoch] = generator.permutation(len(self.packed))
        return self.orders[epoch]

    def rows(self, step: int) -> tuple[np.ndarray, int]:
        """Row numbers of the batch of a step (from 0), int64 [size], and its length in tokens."""
        pool, place = divmod(step, self.together)
        if pool != self.pool:
            # The next rows of the stream, which may end one epoch and begin the next.
            count = self.together * self.size
            numbers = np.arange(pool * count, (pool + 1) * count)
            epochs, places = np.divmod(numbers, len(self.packed))
            parts = [self.order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
            rows = np.concatenate(parts)
            # Sort those of an epoch by length, cut all into batches, shuffle these.
            lengths = (self.packed[rows] != self.pad).sum(1)
            order = np.lexsort((-lengths, epochs)).reshape(-1, self.size)
            order = seeding.numpy_generator(self.seed, "pool", pool).permutation(order)
            self.pool, self.batches, self.lengths = pool, rows[order], lengths[order].min(1)
        shortest = int(self.lengths[place])
        return self.batches[place], shortest // self.multiple * self.multiple or shortest

    def batch(self, step: int) -> torch.Tensor:
        """The batch of a step, int64 [size, at most length] on the device, without waiting."""
        rows, length = self.rows(step)
        signed = loop.send(torch.from_numpy(self.signed[rows, :length]), self.device)
        tokens = signed.long() & self.mask
        tokens[:, -1] = self.separator  # of a row that was cut
        return tokens


@dataclass(frozen=True)
class Encoded:
    """A split as token ids, examples end to end."""

    ids: np.ndarray  # int32 [tokens]
    types: np.ndarray  # uint8 [tokens], 1 in a pair's second sentence
    lengths: np.ndarray  # int64 [n], tokens per example
    labels: np.ndarray  # int64 [n], or float64 [n] for a regression
    idx: np.ndarray  # int64 [n], GLUE's row numbers

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [n], where each example begins."""
        return np.cumsum(self.lengths) - self.lengths


def take(data: Encoded, index: np.ndarray) -> Encoded:
    """The examples of `index`, int64 [k], in its order."""
    lengths = data.lengths[index]
    places = np.repeat(data.starts[index] - np.cumsum(lengths) + lengths, lengths)
    places += np.arange(lengths.sum())
    parts = (data.ids[places], data.types[places], lengths, data.labels[index], data.idx[index])
    return Encoded(*parts)


def encode(
    table: pd.DataFrame, task: glue.Task, tok: Tokenizer, max_length: int, swap: bool = False
) -> Encoded:
    """Tokenises a split; too long pairs lose tokens from the longer sentence first.

    `max_length` counts special tokens too; `swap` also adds every pair with its sentences swapped.
    """
    if swap:
        first, second = task.columns
        table = pd.concat([table, table.rename(columns={first: second, second: first})])
    texts = [table[column].tolist() for column in task.columns]
    cut = {"truncation": "longest_first", "max_length": max_length}
    batch = tok(*texts, **cut, return_token_type_ids=True)
    ids = np.fromiter(chain.from_iterable(batch["input_ids"]), np.int32)
    types = np.fromiter(chain.from_iterable(batch["token_type_ids"]), np.uint8)
    lengths = np.array([len(row) for row in batch["input_ids"]])
    return Encoded(ids, types, lengths, table["label"].to_numpy(), table["idx"].to_numpy())


def batches(
    lengths: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Batches of examples of like length, by number, int64 [at most size]: every example once.

    Where length goes with the label, batches sorted by length would have each its own mix of
    labels. Here a batch's labels are those of a plain shuffle; for a regression so are their
    thirds.
    """
    if labels.dtype.kind == "f":
        labels = np.digitize(labels, np.quantile(labels, [1 / 3, 2 / 3]))
    order, cut = rng.permutation(len(lengths)), []
    for start in range(0, len(order), POOL * size):
        pool = order[start : start + POOL * size]
        # The places that the shuffle gave a label take its examples in order of length.
        for label in np.unique(labels[pool]):
            places = np.flatnonzero(labels[pool] == label)
            examples = pool[places]
            pool[places] = examples[np.argsort(lengths[examples], kind="stable")]
        # A short batch may stand anywhere: last, it would hold the longest examples.
        full, rest = divmod(len(pool), size)
        sizes = rng.permutation([size] * full + [rest] * (rest > 0))
        cut += np.split(pool, np.cumsum(sizes)[:-1])
    for index in rng.permutation(len(cut)):
        yield cut[index]


def collate(
    data: Encoded,
    index: np.ndarray,
    tok: Tokenizer,
    device: torch.device,
    shapes: tuple[int, int] = (1, 0),
) -> dict[str, torch.Tensor]:
    """Pads the examples of `index`, int64 [batch]; int64 tensors [batch, length].

    The length is that of the longest example, rounded up to a multiple of ``shapes[0]`` where that
    is not above ``shapes[1]``.
    """
    lengths = data.lengths[index]
    multiple, largest = shapes
    longest = int(lengths.max())
    columns = np.arange(max(longest, min(-(-longest // multiple) * multiple, largest)))
    # Where a token goes, and where in the split it comes from.
    real = columns < lengths[:, None]
    source = (data.starts[index][:, None] + columns)[real]
    batch = {"input_ids": np.full(real.shape, tok.pad_token_id), "attention_mask": real.astype(int)}
    batch["input_ids"][real] = data.ids[source]
    if "token_type_ids" in tok.model_input_names:
        batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
        batch["token_type_ids"][real] = data.types[source]
    return {name: loop.send(torch.from_numpy(array), device) for name, array in batch.items()}
