"""Tasks as token ids, and their batches by length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from helpers.base import files
from helpers.data import glue
from helpers.train import loop

POOL = 32  # batches that are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """A split as token ids, examples end to end.

    Attributes:
        ids: int32 [tokens].
        types: uint8 [tokens], 1 in a pair's second sentence.
        lengths: int64 [n], tokens per example.
        labels: int64 [n], or float64 [n] for a regression.
        idx: int64 [n], GLUE's row numbers.
    """

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    idx: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [n], where each example begins."""
        return np.cumsum(self.lengths) - self.lengths


def encode(
    table: pd.DataFrame,
    task: glue.Task,
    tok: PreTrainedTokenizerBase,
    max_length: int,
    swap: bool = False,
) -> Encoded:
    """Tokenises a split; too long pairs lose tokens from the longer sentence first.

    Args:
        table: As :func:`helpers.glue.load` gives it.
        task: The task.
        tok: Tokenizer.
        max_length: Tokens per example at most, specials included.
        swap: Also add every pair with its sentences swapped.
    """
    if swap:
        first, second = task.columns
        table = pd.concat([table, table.rename(columns={first: second, second: first})])
    texts = [table[column].tolist() for column in task.columns]
    batch = tok(
        *texts, truncation="longest_first", max_length=max_length, return_token_type_ids=True
    )
    ids, types = (
        np.fromiter(chain.from_iterable(batch[name]), kind)
        for name, kind in (("input_ids", np.int32), ("token_type_ids", np.uint8))
    )
    lengths = np.array([len(row) for row in batch["input_ids"]])
    return Encoded(ids, types, lengths, table["label"].to_numpy(), table["idx"].to_numpy())


def encode_once(path: Path, make: Callable[[], Encoded]) -> Encoded:
    """Reads an encoded split from a file named by its content, or makes and writes it.

    Args:
        path: A safetensors file; an unreadable one is made again.
        make: Encodes the split.
    """
    try:
        return Encoded(**load_file(path))
    except (FileNotFoundError, SafetensorError, TypeError):
        found = make()
    arrays = {f.name: np.ascontiguousarray(getattr(found, f.name)) for f in fields(found)}
    with files.replacing(path) as temporary:
        try:
            save_file(arrays, temporary)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return found


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of examples of like length: shuffled, sorted inside pools, shuffled again.

    Args:
        lengths: int64 [n].
        size: Examples per batch.
        rng: Source of the order.

    Yields:
        int64 [at most size]; together every example once.
    """
    order = rng.permutation(len(lengths))
    cut = []
    for start in range(0, len(order), POOL * size):
        pool = order[start : start + POOL * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        cut += [pool[i : i + size] for i in range(0, len(pool), size)]
    for index in rng.permutation(len(cut)):
        yield cut[index]


def collate(
    data: Encoded,
    index: np.ndarray,
    tok: PreTrainedTokenizerBase,
    device: torch.device,
    shapes: tuple[int, int] = (1, 0),
) -> dict[str, torch.Tensor]:
    """Pads a batch; int64 tensors [batch, length].

    Args:
        data: The split.
        index: int64 [batch], its examples.
        tok: Tokenizer.
        device: Where the tensors are wanted.
        shapes: The length is a multiple of the first number, if that is not above the second; else
            it is that of the longest example.
    """
    lengths = data.lengths[index]
    multiple, largest = shapes
    longest = int(lengths.max())
    place = np.arange(max(longest, min(-(-longest // multiple) * multiple, largest)))
    real = place < lengths[:, None]
    source = (data.starts[index][:, None] + place)[real]
    batch = {"input_ids": np.full(real.shape, tok.pad_token_id), "attention_mask": real.astype(int)}
    batch["input_ids"][real] = data.ids[source]
    if "token_type_ids" in tok.model_input_names:
        batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
        batch["token_type_ids"][real] = data.types[source]
    return {name: loop.send(torch.from_numpy(array), device) for name, array in batch.items()}
