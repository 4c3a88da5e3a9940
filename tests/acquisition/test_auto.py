"""The rule by which `auto` selects, and that its document is the rule."""

import pytest

from prunefuse_ray.acquisition import STRATEGIES, auto
from prunefuse_ray.acquisition.auto import Facts, decide


@pytest.mark.parametrize(
    ("counts", "agreement", "strategy", "said"),
    [
        ([3] * 10, None, "uncertainty_herding", "few labels (3 labels a class, below 25)"),
        ([24] * 4 + [25] * 6, None, "uncertainty_herding", "few labels (24.6 labels a class, below 25)"),
        ([200, 0], 0.9, "uncertainty_herding", "no label yet of 1 of 2 classes"),  # what margin does not look for
        ([900, 90, 0], None, "uncertainty_herding", "no label yet of 1 of 3 classes"),
        ([900, 900, 0], None, "margin", "many labels (600 labels a class, 500 or more)"),  # it may not be there at all
        ([5000, 10, 0], None, "margin", "imbalanced classes (5,000 labels of one, 10 of another, above 5 to 1)"),
        ([1] * 100 + [0] * 900, None, "uncertainty_herding", "few labels (0.1 labels a class, below 25)"),
        ([200, 2], 0.9, "margin", "imbalanced classes (200 labels of one, 2 of another, above 5 to 1)"),
        ([500, 101], 0.3, "uncertainty_herding", "reaches 30% on pool.validation_path, below 50%"),
        ([100] * 10, 0.9, "uncertainty_herding", "between few and many labels (100 labels a class)"),
        ([100] * 10, None, "uncertainty_herding", "between few and many"),
        ([5000] * 10, 0.9, "margin", "many labels (5,000 labels a class, 500 or more)"),
        ([5000] * 10, None, "margin", "many labels"),
        ([40, 2, 3], 0.9, "uncertainty_herding", "few labels"),  # too few to know the imbalance
        ([], None, "uncertainty_herding", "few labels"),
    ],
)
def test_facts_decide_and_the_reason_names_them(counts, agreement, strategy, said):
    decision = decide(Facts(counts=counts, agreement=agreement))
    assert decision.strategy == strategy
    assert said in decision.reason


def test_a_leap_is_covered_and_not_asked_what_is_uncertain():
    for counts in ([3] * 10, [100] * 10, [200, 2], [200, 0], [5000] * 10):
        leap = decide(Facts(counts=counts, agreement=None, growth=5.0))
        assert leap.strategy == "max_herding"
        assert leap.reason.startswith("5 times as many labels at once, above 3")
        assert decide(Facts(counts=counts, agreement=None, growth=3.0)) == decide(Facts(counts=counts, agreement=None))


def test_what_it_may_answer_is_known_before():
    assert {
        decide(Facts(counts=[n, n // spread], agreement=share, growth=growth)).strategy
        for n in (1, 30, 100, 1000)
        for growth in (2.0, 4.0)
        for spread in (1, 20)
        for share in (None, 0.1, 0.9)
    } == set(auto.STRATEGIES)
    assert set(auto.STRATEGIES) <= set(STRATEGIES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"counts": [25] * 96 + [24] * 4, "agreement": None}, "24.9 labels a class, below 25"),
        ({"counts": [100] * 10, "agreement": 0.4996}, "reaches 49.9% on"),
        ({"counts": [100] * 10, "agreement": None, "growth": 3.004}, "3.01 times as many labels"),
    ],
)
def test_a_reason_stands_on_its_own_side_of_a_limit(given, said):
    assert said in decide(Facts(**given)).reason
