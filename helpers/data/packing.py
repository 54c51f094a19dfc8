"""Documents cut into rows of token ids, what a model reads at once in pre-training."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from helpers.base import seeding
from helpers.data import corpus

PIECE = 100_000  # characters; a longer document is encoded in pieces
ENCODING = (256, 4_000_000)  # documents and characters encoded together, at most
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
SENTENCE_ENDS = ".!?。！？।؟۔"
SINGLE, SHORTENED = 0.1, 0.05  # parts of the rows with one segment, and of a random length
SHORTEST = 5  # tokens of a row that is made shorter


def pack(
    documents: Iterable[str], tok: PreTrainedTokenizerBase, length: int, segments: int = 1
) -> Iterator[np.ndarray]:
    """Cuts documents into rows of `length` tokens, int64 [n, length] at a time.

    With one segment a row, documents stand end to end with a separator between, and a row is
    ``[CLS]``, `length` - 2 tokens of that stream, ``[SEP]``; what fills no row at the end is
    dropped. With two, rows are those of :func:`segment_pairs`.
    """
    rest: list[int] = []
    rows = 0
    for texts in corpus.portions(documents, *ENCODING):
        block, rest = pack_batch(texts, tok, length, rest, segments, rows)
        rows += len(block)
        yield block


def pack_batch(
    texts: list[str],
    tok: PreTrainedTokenizerBase,
    length: int,
    rest: list[int],
    segments: int = 1,
    row: int = 0,
) -> tuple[np.ndarray, list[int]]:
    """Rows of a part of the corpus, int64 [n, length], and the tokens that are left for the next.

    `rest` are those that the part before has left, `row` is the number of the first row.
    """
    ids, ends = _encode(texts, tok)
    if segments == 2:
        rng = seeding.numpy_generator("segments", row)
        return segment_pairs(ids, ends, tok, length, rng), []
    # End each document with a separator, and cut the stream into rows.
    ids = np.insert(ids, ends, tok.sep_token_id)
    stream, body = np.concatenate([np.array(rest, dtype=np.int64), ids]), length - 2
    count = len(stream) // body
    rows = np.empty((count, length), dtype=np.int64)
    rows[:, 0], rows[:, -1] = tok.cls_token_id, tok.sep_token_id
    rows[:, 1:-1] = stream[: count * body].reshape(count, body)
    return rows, stream[count * body :].tolist()


def segment_pairs(
    stream: np.ndarray,
    ends: np.ndarray,
    tok: PreTrainedTokenizerBase,
    length: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rows ``[CLS] A [SEP] B [SEP]`` of consecutive sentences, padded, int64 [n, length].

    `stream` holds the tokens of documents, int64 [tokens], `ends` where each ends. A row ends with
    its document. A tenth of the rows has one segment, a twentieth is aimed at a random length; A is
    about half of a row, to the sentence. Where a row is full inside a sentence, the next begins
    with that sentence, so that no text is lost.

    Source: google-research/electra, ``build_pretraining_dataset.py``, which drops the rest of a
    sentence that a row cuts, and takes a line of the text for a sentence.
    """
    tokens = len(stream)
    begins = _sentences(stream, ends, tok, length // 2)
    places = np.arange(tokens + 1)
    sentence = np.maximum.accumulate(np.where(begins, places, 0))  # where each token's begins
    following = np.minimum.accumulate(np.where(begins, places, tokens)[::-1])[::-1]
    limit = ends[np.searchsorted(ends, places[:-1], side="right")]  # where its document ends
    # Draw for every token what a row that begins there is to be.
    single = rng.random(tokens) < SINGLE
    shorter = rng.integers(SHORTEST, length + 1, tokens)
    target = np.where(rng.random(tokens) < SHORTENED, shorter, length)
    full = np.minimum(places[:-1] + target - np.where(single, 2, 3), limit)
    # Choose rows one after the other.
    chosen, place = [], 0
    while place < tokens:
        chosen.append(place)
        stop = full[place]
        place = sentence[stop] if sentence[stop] > place else stop
    first = np.array(chosen, dtype=np.int64)
    last = full[first]
    # Split each: A ends with the sentence that reaches its half, or with the one before.
    half = np.minimum(first + (target[first] - 3) // 2, last)
    split = np.where(rng.random(len(first)) < 0.5, sentence[half], following[half])
    split = np.where(split <= first, following[first + 1], split)
    split = np.where(single[first] | (split >= last), last, split)
    # Write the tokens of a row between its separators.
    rows = np.full((len(first), length), tok.pad_token_id)
    rows[:, 0] = tok.cls_token_id
    sizes, row = last - first, np.arange(len(first))
    which = np.repeat(row, sizes)
    offset = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    source = first[which] + offset
    rows[which, 1 + offset + (source >= split[which])] = stream[source]
    pairs = split < last
    rows[row[pairs], 1 + (split - first)[pairs]] = tok.sep_token_id
    rows[row, 1 + sizes + pairs] = tok.sep_token_id
    return rows


def _sentences(
    stream: np.ndarray, ends: np.ndarray, tok: PreTrainedTokenizerBase, longest: int
) -> np.ndarray:
    """Where sentences begin, bool [tokens + 1]: after a mark that ends one, and with a document.

    One longer than `longest` tokens counts as several, which text without such marks comes to.
    """
    marks = set(tok.convert_tokens_to_ids(list(SENTENCE_ENDS))) - {tok.unk_token_id}
    final = np.isin(stream, list(marks))
    begins = np.zeros(len(stream) + 1, dtype=bool)
    begins[1:] = final & ~np.append(final[1:], False)
    begins[0] = begins[ends] = True
    places = np.arange(len(begins))
    since = places - np.maximum.accumulate(np.where(begins, places, 0))
    return begins | (since % longest == 0)


def _encode(texts: list[str], tok: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of documents, int64 [tokens], and where each ends, int64 [documents]."""
    pieces = [list(_pieces(text)) for text in texts]
    ids = [np.empty(0, dtype=np.int64)]
    for group in corpus.portions(chain(*pieces), *ENCODING):
        found = tok.backend_tokenizer.encode_batch_fast(group, add_special_tokens=False)
        ids += [np.array(encoding.ids, dtype=np.int64) for encoding in found]
    last = np.cumsum([len(parts) for parts in pieces], dtype=np.int64)  # piece of each document
    return np.concatenate(ids), np.cumsum([len(piece) for piece in ids])[last]


def _pieces(text: str) -> Iterator[str]:
    """Cuts a long document where it changes no token: before a single space between two words.

    Where there is none for `PIECE` characters, as in one endless word, the cut is there.
    """
    start = 0
    while len(text) - start > 2 * PIECE:
        space = BETWEEN_WORDS.search(text, start + PIECE, start + 2 * PIECE)
        stop = space.start() if space else start + 2 * PIECE
        yield text[start:stop]
        start = stop
    yield text[start:]


def count_entropies(
    seen: np.ndarray, unseen: np.ndarray, tok: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Cross-entropy of tokens by frequency alone and by their left neighbour, in nats per token.

    ``unigram`` adds one to every count; ``bigram`` interpolates with it after Witten and Bell
    (1991). The counts are of the rows `seen`, the mean is over the ordinary tokens of `unseen`,
    both int [rows, length].
    """
    size, special = len(tok), list(tok.all_special_ids)
    left, right = seen[:, :-1].ravel().astype(np.int64), seen[:, 1:].ravel().astype(np.int64)
    left, right = (side[~np.isin(right, special)] for side in (left, right))
    ordinary = size - len(special)
    once = (np.bincount(right, minlength=size) + 1) / (len(right) + ordinary)
    pairs, counts = np.unique(left * size + right, return_counts=True)
    total = np.bincount(left, minlength=size)
    kinds = np.bincount(pairs // size, minlength=size)  # different tokens after each
    before, token = unseen[:, :-1].ravel().astype(np.int64), unseen[:, 1:].ravel().astype(np.int64)
    before, token = (side[~np.isin(token, special)] for side in (before, token))
    place = np.searchsorted(pairs, before * size + token).clip(max=len(pairs) - 1)
    twice = np.where(pairs[place] == before * size + token, counts[place], 0)
    weight = np.maximum(total[before] + kinds[before], 1)
    mixed = (twice + kinds[before] * once[token]) / weight
    mixed = np.where(total[before] > 0, mixed, once[token])
    return {"unigram": float(-np.log(once[token]).mean()), "bigram": float(-np.log(mixed).mean())}
