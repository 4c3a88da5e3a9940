"""From several people's labels to one, and whether a round's labels can be taken."""

from collections import Counter
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefuse_ray.annotation.request import Answers
from prunefuse_ray.annotation.votes import Refuse, Take, Wait, decide, majority, named
from prunefuse_ray.schemas import annotations_schema

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def given_labels(*labels: tuple[str, int, str]) -> pa.Table:
    rows = [{"id": i, "label": n, "annotator": a, "source": "files", "time": NOW} for i, n, a in labels]
    return pa.Table.from_pylist(rows, annotations_schema(pa.string()))


def test_the_majority_wins_and_the_agreement_is_recorded():
    votes = majority(given_labels(("b", 2, "x"), ("a", 1, "x"), ("b", 0, "y"), ("b", 2, "z")))
    assert votes.to_pylist() == [
        {"id": "a", "label": 1, "annotators": 1, "agreement": 1.0, "tie": False},
        {"id": "b", "label": 2, "annotators": 3, "agreement": pytest.approx(2 / 3), "tie": False},
    ]


def test_a_tie_goes_to_the_class_that_comes_first_and_is_said():
    (vote,) = majority(
        given_labels(("a", 7, "x"), ("a", 3, "y"), ("a", 3, "z"), ("a", 7, "w"), ("a", 1, "v"))
    ).to_pylist()
    assert (vote["label"], vote["tie"], vote["annotators"]) == (3, True, 5)
    assert vote["agreement"] == pytest.approx(0.4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1), st.randoms())
def test_the_order_of_the_labels_does_not_matter_and_nobody_had_more_votes(labels, random):
    rows = [(i, n, str(k)) for k, (i, n) in enumerate(labels)]
    shuffled = random.sample(rows, len(rows))
    votes = majority(given_labels(*rows))
    assert votes.equals(majority(given_labels(*shuffled)))
    for vote in votes.to_pylist():
        counts = Counter(n for i, n in labels if i == vote["id"])
        assert counts[vote["label"]] == max(counts.values())


def decided(answers, *, each=1, partial=False):
    return decide(["a", "b", "c"], answers, labels_per_sample=each, accept_partial=partial)


def test_missing_labels_are_waited_for_unless_partial_ones_are_accepted():
    answers = Answers(annotations=given_labels(("b", 1, "")))
    assert decided(answers) == Wait(missing=("a", "c"))
    assert decided(answers, partial=True) == Take(annotations=answers.annotations, missing=2)
    nothing = Answers(annotations=given_labels())
    assert decided(nothing, partial=True) == Wait(missing=("a", "b", "c")), "a round without any label helps nobody"


def test_a_sample_is_done_when_it_has_as_many_labels_as_were_asked():
    answers = Answers(
        annotations=given_labels(("a", 1, "x"), ("a", 1, "y"), ("b", 0, "x"), ("c", 0, "x"), ("c", 1, "y"))
    )
    assert decided(answers, each=2) == Wait(missing=("b",))
    taken = decided(answers, each=2, partial=True)
    assert isinstance(taken, Take)
    assert taken.missing == 0, "b keeps the one label that it has"


def test_a_round_that_nobody_can_tell_anything_about_says_so():
    answers = Answers(annotations=given_labels(), unsure={(id_, "x"): NOW for id_ in "abc"})
    wait = decided(answers)
    assert isinstance(wait, Wait)
    assert wait.notes == ("every sample is marked as unsure: at least one needs a label",)


def test_what_nobody_can_tell_is_unknown_and_what_nobody_looked_at_is_missing():
    answers = Answers(annotations=given_labels(("a", 1, "x")), unsure={("a", "y"): NOW, ("b", "y"): NOW})
    assert decided(answers) == Wait(missing=("c",))
    taken = decided(answers, partial=True)
    assert isinstance(taken, Take)
    assert (taken.missing, taken.unknown) == (2, ("b",))
    assert taken.notes == ("nobody could tell the class of 1 sample (b); it is not asked about again",)


@pytest.mark.parametrize("partial", [False, True])
def test_faults_are_never_passed_over(partial):
    refused = decided(Answers(annotations=given_labels(("a", 1, "")), faults=("bad",)), partial=partial)
    assert refused == Refuse(faults=("bad", "2 of 3 samples lack labels: b, c"))


def test_many_ids_are_cut():
    assert named(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
