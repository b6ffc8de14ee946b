import itertools

import numpy as np
import pytest

from ragtune_mcp.core.finetune.intervals import paired_interval, sign_flip_p


def test_the_sign_flip_p_value_is_exact_for_few_queries():
    values = np.array([0.3, -0.1, 0.2, 0.05, 0.4, -0.02])
    flips = [abs(values) @ np.array(signs) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean([flip >= values.sum() - 1e-12 for flip in flips])
    assert sign_flip_p(values, "greater") == pytest.approx(expected)


def test_differences_that_are_all_zero_are_no_evidence():
    assert sign_flip_p(np.zeros(40), "greater") == 1.0
    assert sign_flip_p([], "less") == 1.0


def test_the_same_seed_gives_the_same_numbers():
    values = np.random.default_rng(0).normal(0.02, 0.2, 60)
    assert paired_interval(values, 3) == paired_interval(values, 3)
    assert sign_flip_p(values, "greater", 3) == sign_flip_p(values, "greater", 3)


@pytest.mark.parametrize(("values", "bounds"), [([], (None, None, None, 0)), ([0.25], (0.25, None, None, 1))])
def test_an_interval_of_too_few_values_has_no_bounds(values, bounds):
    found = paired_interval(values)
    assert (found.mean, found.low, found.high, found.n) == bounds


def test_under_no_effect_the_one_sided_test_rejects_as_often_as_its_level():
    rng = np.random.default_rng(4)
    rejected = [
        sign_flip_p(rng.choice([0, 0, 0.4, -0.4, 0.15, -0.15], 30), "greater", seed, resamples=999) < 0.10
        for seed in range(400)
    ]
    # Three standard errors around .10; discrete values make the test slightly conservative.
    assert 0.045 < np.mean(rejected) < 0.145


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = []
    for seed in range(300):
        found = paired_interval(rng.normal(0.1, 0.3, 50), seed)
        covered.append(found.low <= 0.1 <= found.high)
    assert 0.90 < np.mean(covered) < 0.98


def test_near_duplicates_widen_the_interval_as_one_observation_each():
    values = np.random.default_rng(1).normal(0.1, 0.3, 40)
    names = [f"g{number}" for number in range(40)]
    once, thrice = (
        paired_interval(values),
        paired_interval(np.repeat(values, 3), groups=[*np.repeat(names, 3)]),
    )
    assert (thrice.mean, thrice.n) == (pytest.approx(once.mean), 120)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.1)
    assert paired_interval([0.1, 0.3], groups=["g", "g"]).low is None
