"""Texts as n-grams."""

import pytest
import torch

from prunefuse_ray.data.texts import NgramForm
from prunefuse_ray.errors import Rejected


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
