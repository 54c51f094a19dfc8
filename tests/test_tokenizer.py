"""Tokenizers: the same texts give the same bytes, and packed rows never mix documents unmarked."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from helpers import tokenizer

CODE = """
import hashlib, sys
from helpers import synthetic, tokenizer
tok = tokenizer.train(sys.argv[1], 700, lambda: synthetic.documents(150, 300, 0))
print(hashlib.sha256(tok.backend_tokenizer.to_str().encode()).hexdigest())
"""


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_another_process_trains_the_same_tokenizer(kind):
    found = {
        subprocess.run(
            [sys.executable, "-c", CODE, kind], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert len(found) == 1


@pytest.fixture(scope="module")
def wordpiece():
    texts = ["Cats purr. Dogs bark.", "Birds sing loudly at dawn."] * 20
    return tokenizer.train("wordpiece", 200, lambda: texts)


def test_wordpiece_is_uncased_and_keeps_its_specials_apart(wordpiece):
    assert wordpiece.tokenize("CATS purr") == wordpiece.tokenize("cats PURR")
    assert wordpiece.convert_tokens_to_ids(tokenizer.WORDPIECE_SPECIALS) == [0, 1, 2, 3, 4]
    assert set(wordpiece.all_special_tokens) == set(tokenizer.WORDPIECE_SPECIALS)
    # A continuation in plain text is text.
    assert wordpiece.unk_token_id in wordpiece("##s", add_special_tokens=False)["input_ids"]
    assert wordpiece.decode(wordpiece("dogs bark")["input_ids"]) == "[CLS] dogs bark [SEP]"


def test_packing_puts_a_separator_between_documents(wordpiece):
    texts = ["cats purr", "dogs bark", "birds sing loudly"] * 10
    (rows,) = tokenizer.pack(texts, wordpiece, 16)
    assert rows.shape[1] == 16
    assert (rows[:, 0] == wordpiece.cls_token_id).all()
    assert (rows[:, -1] == wordpiece.sep_token_id).all()
    wanted = []
    for text in texts:
        wanted += [*wordpiece(text, add_special_tokens=False)["input_ids"], wordpiece.sep_token_id]
    assert np.array_equal(rows[:, 1:-1].ravel(), wanted[: rows[:, 1:-1].size])
    assert len(wanted) - rows[:, 1:-1].size < 14
