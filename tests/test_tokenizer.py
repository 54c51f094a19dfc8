"""Tokenizers: the same texts give the same bytes, and packed rows never mix documents unmarked."""

import numpy as np
import pytest
from makers import command, small_profile
from scipy import stats

from helpers.base import config
from helpers.data import corpus, packing, tokenizer

CODE = """
import hashlib
from helpers.data import synthetic, tokenizer
for kind in ("wordpiece", "bpe"):
    tok = tokenizer.train(kind, 700, lambda: synthetic.documents(150, 300, 0))
    print(hashlib.sha256(tok.backend_tokenizer.to_str().encode()).hexdigest())
"""


def test_another_process_trains_the_same_tokenizers(capsys):
    exec(CODE, {})
    here = capsys.readouterr().out
    assert len(here.split()) == 2
    assert command("-c", CODE).stdout == here


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


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_mask_stands_for_a_word_as_in_training(kind, tmp_path):
    words = "the cats purr loudly"
    made = tokenizer.train(kind, 400, lambda: [words] * 20)
    tokenizer.save(made, tmp_path, 32)
    for tok in (made, tokenizer.load(tmp_path)):
        ids = tok(words)["input_ids"]
        assert len(ids) == 6  # a token a word
        for place, word in enumerate(words.split(), start=1):
            masked = [*ids[:place], tok.mask_token_id, *ids[place + 1 :]]
            assert tok(words.replace(word, tok.mask_token))["input_ids"] == masked


def test_a_large_corpus_is_sampled_for_the_vocabulary_and_packed_whole(
    tmp_path, monkeypatch, capsys
):
    profile = small_profile(tmp_path)
    made = corpus.run(config.Data(**profile.stage(config.Data)))
    monkeypatch.setattr(tokenizer, "TRAINING_BYTES", -(-made["bytes"] // 3))
    stage = config.Tokenizer(**profile.stage(config.Tokenizer))
    manifest = tokenizer.run(stage)
    said = capsys.readouterr().out
    texts = list(corpus.read(profile.folder / "data" / "corpus"))
    thirds = tokenizer.train("wordpiece", stage.vocabulary, lambda: texts[::3])
    found = tokenizer.load(profile.folder / "tokenizer" / "wordpiece")
    assert found.get_vocab() == thirds.get_vocab()
    assert manifest["rows"] == sum(map(len, packing.pack(texts, found, manifest["length"], 2)))
    count = len(texts[::3])
    for what in ("characters", "words"):
        assert f"learn wordpiece from {what}: 100 %, {count}/{count} documents, " in said


@pytest.fixture(scope="module")
def pairs():
    """Documents of 1 to 60 sentences, and their rows of two segments."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bdfgk" for b in ("ab", "ek", "il", "op", "un")]
    texts = [
        " ".join(" ".join(rng.choice(words, rng.integers(3, 15))) + "." for _ in range(sentences))
        for sentences in rng.integers(1, 60, 1500)
    ]
    tok = tokenizer.train("wordpiece", 200, lambda: texts)
    return texts, tok, np.concatenate(list(packing.pack(texts, tok, 64, 2)))


def test_rows_of_two_segments_are_electras(pairs):
    """Shares and order against what google-research/electra's build_pretraining_dataset makes."""
    texts, tok, rows = pairs
    separators = (rows == tok.sep_token_id).sum(1)
    lengths = (rows != tok.pad_token_id).sum(1)
    full = lengths >= 63
    assert (rows[:, 0] == tok.cls_token_id).all()
    assert (rows[np.arange(len(rows)), lengths - 1] == tok.sep_token_id).all()
    # Shorter are the last row of a document and a twentieth of the others.
    assert 0.03 < ((~full).sum() - len(texts)) / len(rows) < 0.06
    assert stats.binomtest(int((separators[full] == 2).sum()), int(full.sum()), 0.9).pvalue > 1e-4
    # A is about half of a row, to the sentence.
    first = (rows == tok.sep_token_id).argmax(1)[full & (separators == 2)]
    assert abs(first.mean() - 32) < 3
    assert first.std() > 2


def test_rows_of_two_segments_are_consecutive_and_lose_nothing(pairs):
    texts, tok, rows = pairs
    special = [tok.cls_token_id, tok.sep_token_id, tok.pad_token_id]
    documents = [" ".join(map(str, ids)) for ids in tok(texts, add_special_tokens=False).input_ids]
    number, seen = 0, 0
    for row in rows:
        body = row[~np.isin(row, special)]
        text = " ".join(map(str, body))
        if text not in documents[number] or seen == len(documents[number]):
            assert seen == len(documents[number])  # the document before came to its end
            number, seen = number + 1, 0
        place = documents[number].rindex(text, 0, seen + len(text) + 1)
        assert place <= seen + 1  # nothing between two rows is left out
        seen = place + len(text)
    assert number == len(documents) - 1


def test_text_without_sentences_is_packed_whole(pairs):
    _, tok, _ = pairs
    text = " ".join(["bab"] * 1000)
    (rows,) = packing.pack([text, ""], tok, 64, 2)
    words = int((rows == tok.convert_tokens_to_ids("bab")).sum())
    assert 1000 <= words < 2000
    assert not len(np.concatenate(list(packing.pack(["", " "], tok, 64, 2))))
