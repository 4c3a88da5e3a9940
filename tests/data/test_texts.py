"""Texts as n-grams."""

import pytest
import torch

from prunefuse_ray.data.sample_format import Preprocessing, preprocessing_from_bytes, preprocessing_to_bytes
from prunefuse_ray.data.texts import NgramForm, TokenForm, tokenizer_of
from prunefuse_ray.errors import ConfigError, Rejected
from tests.support.encoders import tokenizer


def ngrams(text, length=16):
    form = NgramForm(length=length)
    pairs = form.inputs(torch.from_numpy(form.decode(text)[None]))[0].tolist()
    return {hash_: count for hash_, count in pairs if count}


def test_words_and_pairs_of_words_are_counted_whatever_their_case():
    once = ngrams("good film")
    assert sorted(once.values()) == [1, 1, 1]
    twice = ngrams("Good film, GOOD film")
    assert once.keys() < twice.keys()
    assert sorted(twice.values()) == [1, 2, 2, 2]
    assert ngrams("film good").keys() & once.keys() == ngrams("good").keys() | ngrams("film").keys()


def test_hashes_are_the_same_everywhere():
    """They stand in saved networks: murmur3 of the UTF-8 bytes, its lower 24 bits."""
    assert ngrams("hello") == {0x248BFA47 & 0xFFFFFF: 1}


def test_scripts_without_spaces_are_read_by_characters():
    assert len(ngrams("好电影")) == 5
    assert ngrams("好电影").keys() & ngrams("电影不好").keys()


def test_long_texts_are_cut_pairs_before_words_and_counts_have_an_end():
    form = NgramForm(length=3)
    records, kinds = form.read("a b c d")
    assert kinds == ("text cut",)
    words = [ngrams(word).popitem()[0] for word in "abc"]
    assert form.inputs(torch.from_numpy(records[None]))[0, :, 0].tolist() == words
    assert max(ngrams("no " * 1000).values()) == 255


@pytest.mark.parametrize(("value", "why"), [(None, "null"), ("  ", "empty"), ("...", "no words"), (7, "int")])
def test_what_has_no_words_is_rejected(value, why):
    with pytest.raises(Rejected, match=why):
        NgramForm(length=8).decode(value)


@pytest.fixture(scope="module")
def tokens():
    pytest.importorskip("tokenizers")
    return TokenForm(length=6, tokenizer=tokenizer(["a fine film", "a poor film"], 60).to_str())


def test_texts_are_framed_tokens_and_zeros_behind_their_end(tokens):
    records, kinds = tokens.read("a film")
    found = tokens.inputs(torch.from_numpy(records[None]))[0].tolist()
    assert kinds == ()
    assert (found[0], found[-2:]) == (2, [0, 0]), "[CLS] is 1, and 0 is nothing"
    assert [n for n in found if n == 3], "[SEP] at the end"
    cut, kinds = tokens.read("a fine film, a poor film, a fine film")
    assert kinds == ("text cut",)
    assert tokens.inputs(torch.from_numpy(cut[None]))[0, -1] == 3
    with pytest.raises(Rejected, match="empty"):
        tokens.decode(" ")
    with pytest.raises(Rejected, match="no tokens"):
        tokens.decode("\u200b\u0000")


def test_the_tokenizer_travels_with_the_form(tokens):
    content = preprocessing_to_bytes(Preprocessing(task="classification", form=tokens, classes=["a", "b"]))
    again = preprocessing_from_bytes(content).form
    assert again == tokens
    assert tokenizer_of(content, "beside a network") == tokens.tokenizer
    assert tokens.tokenizer not in repr(tokens)
    with pytest.raises(ConfigError, match=r"pool\.tokenizer: 'x' is no tokenizer\.json"):
        tokenizer_of(b"{}", "x")


def test_marks_belong_to_their_letters_in_either_unicode_form():
    assert ngrams("अच्छा").keys().isdisjoint(ngrams("अच्छी").keys())
    assert len(ngrams("हिन्दी")) == 1
    assert ngrams("nai\u0308ve cafe\u0301") == ngrams("na\u00efve caf\u00e9")
    assert len(ngrams("ดีมาก")) > 1, "Thai has no blanks"
