"""Tokenizers trained on the corpus, and the corpus packed into a file of token rows."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from helpers.base import config, files, progress
from helpers.base.errors import UserError, one_line
from helpers.data import corpus, packing

WORDPIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BPE_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
TRAINER = {"min_frequency": 2, "show_progress": False}
TRAINING_BYTES = 100_000_000  # about; a vocabulary does not gain from more
ALPHABET = 1000  # characters of WordPiece, the most frequent; the rest are unknown
LONGEST = 1000  # characters of a run without a space or a change of kind that training looks at
LONG_RUN = re.compile(rf"(\w{{{LONGEST}}})\w+|([^\w\s]{{{LONGEST}}})[^\w\s]+")
DTYPES = ("uint16", "uint32")  # of the packed corpus, the second for large vocabularies
HELD_OUT_ROWS = 2048  # at most
COUNTED_ROWS = 100_000  # of the corpus, for the frequencies of tokens and of pairs
OPENED = {"backend", "is_local", "local_files_only"}  # of the process that saves a tokenizer


def _wordpiece() -> Tokenizer:
    tok = Tokenizer(models.WordPiece(unk_token=WORDPIECE_SPECIALS[1]))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    return tok


def _train_wordpiece(vocabulary: int, read: Callable[[str], Iterable[str]]) -> Tokenizer:
    """Trains WordPiece so that the same texts give the same ids.

    The trainer numbers continuations (``##a``) as it meets them in a hash map, in another order in
    every process, and breaks ties by these numbers. Declared beforehand, in order, they stay put;
    the vocabulary then goes into a tokenizer that does not take them for special tokens.
    """
    learner, tok = _wordpiece(), _wordpiece()
    counts: Counter[str] = Counter()
    for text in read("characters"):
        counts.update(learner.normalizer.normalize_str(text))
    by_count = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(by_count[:ALPHABET])
    trainer = WordPieceTrainer(
        **TRAINER,
        vocab_size=vocabulary,
        special_tokens=[*WORDPIECE_SPECIALS, *(f"##{c}" for c in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    learner.train_from_iterator(read("words"), trainer)
    tok.model = models.WordPiece(learner.get_vocab(), unk_token=WORDPIECE_SPECIALS[1])
    tok.add_special_tokens(WORDPIECE_SPECIALS)
    return tok


def _train_bpe(vocabulary: int, read: Callable[[str], Iterable[str]]) -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A word is learnt with the space before it; a mask that stands for one takes that space too.
    mask = AddedToken(BPE_SPECIALS[-1], lstrip=True, special=True)
    special = {"special_tokens": [*BPE_SPECIALS[:-1], mask], "initial_alphabet": alphabet}
    trainer = BpeTrainer(**TRAINER, **special, vocab_size=vocabulary)
    tok.train_from_iterator(read("words"), trainer)
    return tok


def train(
    kind: str, vocabulary: int, read: Callable[[], Iterable[str]], documents: int = 0
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer; the same texts, which `read` gives at each call, give the same tokenizer.

    ``wordpiece`` is uncased, by BERT's rules: ``[CLS] a [SEP] b [SEP]``; ``bpe`` cased and
    byte-level, by RoBERTa's: ``<s> a </s></s> b </s>``. A small corpus may give fewer tokens than
    `vocabulary`. The number of `documents` is for a progress bar; 0 shows none.
    """

    def texts(what: str) -> Iterator[str]:
        label = f"learn {kind} from {what}"
        bar = progress.bar(documents, label, "documents") if documents else None
        for text in read():
            # Trainers take time and memory with the square of a word's length.
            yield LONG_RUN.sub(r"\1\2", text)
            if bar:
                bar.update()
        if bar:
            bar.close()

    if kind == "wordpiece":
        tok = _train_wordpiece(vocabulary, texts)
        pad, unknown, first, last, mask = WORDPIECE_SPECIALS
        pair = f"{first} $A {last} $B:1 {last}:1"
        names = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        tok = _train_bpe(vocabulary, texts)
        first, pad, last, unknown, mask = BPE_SPECIALS
        pair = f"{first} $A {last} {last} $B {last}"
        names = ["input_ids", "attention_mask"]
    framing = [(token, tok.token_to_id(token)) for token in (first, last)]
    tok.post_processor = processors.TemplateProcessing(f"{first} $A {last}", pair, framing)
    special = {"pad_token": pad, "unk_token": unknown, "mask_token": mask}
    special |= {"cls_token": first, "sep_token": last, "bos_token": first, "eos_token": last}
    return PreTrainedTokenizerFast(tokenizer_object=tok, model_input_names=names, **special)


def load(folder: Path) -> PreTrainedTokenizerBase:
    """Opens a saved tokenizer with AutoTokenizer, offline."""
    # A tokenizer in Python, which an encoder from elsewhere may have, has no such file.
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(f"{folder}: holds no tokenizer.json; run notebooks/02_tokenizer.ipynb")
    with one_line(f"{folder}: cannot be opened as a tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def save(tok: PreTrainedTokenizerBase, folder: Path, length: int | None) -> None:
    """Writes a tokenizer that transformers 4 and 5 open; it cuts texts to `length` tokens, if any.

    transformers 5 notes a class that 4 does not know, and how it had the tokenizer opened.
    """
    if length:
        tok.model_max_length = min(length, tok.model_max_length)
    tok.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = files.read_json(path) | {"model_input_names": tok.model_input_names}
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    files.write_json(path, {name: values[name] for name in values.keys() - OPENED})


@contextmanager
def saving() -> Iterator[None]:
    """Around ``save_pretrained``: a full disk is an OSError, whatever safetensors raises for it."""
    try:
        yield
    except Exception as error:  # tokenizers has no class of its own
        if type(error) not in (Exception, SafetensorError):
            raise
        raise OSError(" ".join(str(error).split())) from error


def rows(folder: Path, held_out: bool = False) -> np.ndarray:
    """The packed corpus, or its held-out part, as a memory map, uint16 or uint32 [rows, length]."""
    manifest = files.require_manifest(folder, "02_tokenizer")
    count = manifest["held_out"]["rows"] if held_out else manifest["rows"]
    path = folder / ("held_out.bin" if held_out else "tokens.bin")
    return _open(path, manifest["dtype"], count, manifest["length"])


def _open(path: Path, dtype: str, count: int, length: int) -> np.ndarray:
    size = np.dtype(dtype).itemsize * count * length
    there = path.stat().st_size if path.exists() else 0
    if there != size:
        raise UserError(f"{path}: has {there} bytes, its manifest says {size}")
    if not count:
        return np.empty((0, length), dtype=dtype)  # which no memory map can be
    return np.memmap(path, dtype=dtype, mode="r", shape=(count, length))


def specification(parameters: config.Tokenizer, manifest: dict[str, Any]) -> dict[str, Any]:
    """All that the packed tokens follow from, with the corpus' manifest; its digest names them."""
    wanted = {
        "stage": "tokenizer",
        "kind": parameters.tokenizer_kind,
        "vocabulary": parameters.vocabulary,
        "length": usable_length(parameters.tokenizer_kind, parameters.max_length),
        "segments": parameters.segments if parameters.tokenizer_kind == "wordpiece" else 1,
        "corpus": manifest["content"],
    }
    every = -(-manifest["bytes"] // TRAINING_BYTES)
    return wanted | ({"every": every} if every > 1 else {})


def run(parameters: config.Tokenizer) -> dict[str, Any]:
    """Trains one tokenizer and packs the corpus with it; does nothing twice.

    Writes ``tokenizer/<kind>/`` in the run's folder: the tokenizer, ``tokens.bin``, the same of the
    held-out documents in ``held_out.bin`` and, last, ``manifest.json``, which it returns.
    """
    kind, source = parameters.tokenizer_kind, parameters.folder / "data" / "corpus"
    documents = files.require_manifest(source, "01_data")
    wanted, place = specification(parameters, documents), parameters.folder / "tokenizer" / kind
    if done := files.intact_manifest(place, files.digest(wanted)):
        return done
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The vocabulary of a large corpus is learnt from a part: every k-th document.
    step, length = wanted.get("every", 1), wanted["length"]
    count = -(-documents["documents"] // step)
    tok = train(
        kind, wanted["vocabulary"], lambda: islice(corpus.read(source), 0, None, step), count
    )
    with files.building(place) as folder, saving():
        save(tok, folder, length)
        packed = _pack_shards(source, folder, tok, wanted, documents["bytes"])
        if not packed["rows"]:
            raise UserError(
                f"max_length = {parameters.max_length}: the corpus fills no row of {length} tokens"
            )
        held_out = _pack_held_out(source, folder, tok, wanted)
        # What a model without context comes to on the held-out rows, of counts in the others.
        dtype = DTYPES[len(tok) > 2**16]
        seen = _open(folder / "tokens.bin", dtype, packed["rows"], length)[:COUNTED_ROWS]
        unseen = _open(folder / "held_out.bin", dtype, held_out["rows"], length)
        if len(unseen):
            counted = packing.count_entropies(seen, unseen, tok)
            held_out |= {name: value for name, value in counted.items() if math.isfinite(value)}
        manifest = {
            "spec": files.digest(wanted),
            "specification": wanted,
            "source": documents["source"],
            "corpus": documents["name"],
            "kind": kind,
            "vocabulary": len(tok),
            "length": length,
            **packed,
            "tokens": packed["rows"] * length - packed["padding"],
            "words": documents["words"],
            "dtype": dtype,
            "held_out": held_out,
        }
        names = ["tokenizer.json", "tokenizer_config.json", "tokens.bin", "held_out.bin"]
        return files.write_manifest(folder, manifest, names)


def finished(parameters: config.Tokenizer) -> dict[str, Any] | None:
    """What :func:`run` gives where that is done, of the corpus that is there; else None."""
    documents = files.find_manifest(parameters.folder / "data" / "corpus")
    if not documents:
        return None
    folder = parameters.folder / "tokenizer" / parameters.tokenizer_kind
    return files.find_manifest(folder, files.digest(specification(parameters, documents)))


def _pack_shards(
    source: Path, folder: Path, tok: PreTrainedTokenizerBase, wanted: dict[str, Any], total: int
) -> dict[str, int]:
    """Packs the corpus shard by shard into ``tokens.bin``; its rows, unknown tokens and padding."""
    found, rest, dtype = Counter(rows=0, unknown=0, padding=0), [], DTYPES[len(tok) > 2**16]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # encoding runs on every core
    bar = progress.bar(total, f"tokenize {wanted['kind']}", "B")
    with (folder / "tokens.bin").open("wb") as file:
        for path in corpus.parquet_files(source):
            for texts in corpus.portions(corpus.read_file(path), *packing.ENCODING):
                block, rest = packing.pack_batch(
                    texts, tok, wanted["length"], rest, wanted["segments"], found["rows"]
                )
                file.write(block.astype(dtype).tobytes())
                found["rows"] += len(block)
                found["unknown"] += int((block == tok.unk_token_id).sum())
                found["padding"] += int((block == tok.pad_token_id).sum())
                bar.update(sum(len(text.encode("utf-8", "replace")) for text in texts))
    bar.close()
    return dict(found)


def _pack_held_out(
    source: Path, folder: Path, tok: PreTrainedTokenizerBase, wanted: dict[str, Any]
) -> dict[str, Any]:
    """Packs the held-out documents into ``held_out.bin``; their bytes, tokens and rows."""
    length, segments, blocks = wanted["length"], wanted["segments"], []
    found = {"bytes": 0, "tokens": 0}
    for texts in corpus.portions(corpus.read(source / corpus.HELD_OUT), *packing.ENCODING):
        blocks.append(packing.pack_batch(texts, tok, length, [], segments, 0)[0])
        found["bytes"] += sum(len(text.encode("utf-8", "replace")) for text in texts)
        encoded = tok.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        found["tokens"] += sum(map(len, encoded))
    packed = np.concatenate([np.empty((0, length)), *blocks])[:HELD_OUT_ROWS]
    with files.replacing(folder / "held_out.bin") as temporary:
        temporary.write_bytes(packed.astype(DTYPES[len(tok) > 2**16]).tobytes())
    return found | {"rows": len(packed)}


def usable_length(tokenizer: str, max_length: int) -> int:
    """Tokens of a row that a model with `max_length` positions can read.

    RoBERTa counts positions from padding_idx + 1 = 2, so its released table of 128 rows holds 126.
    """
    return max_length - 2 if tokenizer == "bpe" else max_length
