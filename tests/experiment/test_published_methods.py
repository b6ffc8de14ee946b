"""Published vectors of the methods that were considered and not taken: the oracles are set up right."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import simpson
from scipy.optimize import brentq
from scipy.special import gammainc, gammaln
from tests.experiment.test_statistics import A, B

LOOKS = (0.2, 0.4, 0.6, 0.8, 1.0)


def test_rank_tests_reproduce_their_vectors():
    ranks = stats.mannwhitneyu(B, A)
    assert (ranks.statistic, ranks.pvalue) == pytest.approx((259.5, 0.08914647), abs=5e-9)
    assert stats.brunnermunzel(A, B).pvalue == pytest.approx(0.08042502, abs=5e-9)


def test_the_normal_test_and_its_non_inferiority_reproduce_their_vectors():
    difference = np.mean(B) - np.mean(A)
    se = math.sqrt(np.var(A, ddof=1) / 20 + np.var(B, ddof=1) / 20)
    assert 2 * stats.norm.sf(difference / se) == pytest.approx(0.081789, abs=5e-7)
    t = (difference + 0.05 * np.mean(A)) / se
    assert stats.norm.sf(t) == pytest.approx(0.009805, abs=5e-7)
    assert stats.t.sf(t, 35.7369) == pytest.approx(0.012677, abs=5e-7)


def group_sequential_bounds(spent_by):
    """|z| bounds of a two-sided .05 test; `spent_by` gives the level one side has spent at each information share."""
    grid = np.linspace(-1.0, 1.0, 2001)
    bounds = []
    for number, look in enumerate(LOOKS):
        if number == 0:
            bound = stats.norm.isf(spent_by(look)) * math.sqrt(look)
            points = grid * bound
            density = stats.norm.pdf(points, scale=math.sqrt(look))
        else:
            before = LOOKS[number - 1]
            spread = math.sqrt(look - before)
            spend = spent_by(look) - spent_by(before)

            def surplus(b, points=points, density=density, spread=spread, spend=spend):
                return simpson(density * stats.norm.sf((b - points) / spread), x=points) - spend

            bound = brentq(surplus, 0.1, 8.0)
            new = grid * bound
            steps = stats.norm.pdf((new[:, None] - points) / spread) / spread
            points, density = new, simpson(density * steps, x=points, axis=1)
        bounds.append(bound / math.sqrt(look))
    return bounds


@pytest.mark.parametrize(
    ("spent_by", "bounds"),
    [
        (
            lambda t: 2 * stats.norm.sf(stats.norm.isf(0.0125) / math.sqrt(t)),
            (4.8769, 3.3569, 2.6803, 2.2898, 2.0310),
        ),
        (lambda t: 0.025 * math.log(1 + (math.e - 1) * t), (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
        (lambda t: 0.025 * t**2, (3.0902, 2.7141, 2.4727, 2.2798, 2.1140)),
        (lambda t: 0.025 * t**3, (3.5401, 2.9743, 2.6045, 2.3063, 2.0454)),
        (lambda t: 0.025 * t, (2.5758, 2.4919, 2.4108, 2.3391, 2.2754)),
    ],
    ids=["O'Brien-Fleming", "Pocock", "t^2", "t^3", "t"],
)
def test_group_sequential_bounds_reproduce_their_vectors(spent_by, bounds):
    found = group_sequential_bounds(spent_by)
    assert found == pytest.approx(bounds, abs=2e-4)
    assert all(later < earlier for earlier, later in pairwise(found))


def best_rho(v, alpha):
    return v / (2 * math.log(1 / alpha) + math.log(1 + 2 * math.log(1 / alpha)))


def normal_log_mixture(s, v, rho):
    return 0.5 * math.log(rho / (v + rho)) + s * s / (2 * (v + rho))


def gamma_exponential_log_mixture(s, v, rho, c):
    a, b, x = rho / c**2, (v + rho) / c**2, (c * s + v) / c**2
    constant = a * math.log(a) - gammaln(a) - math.log(gammainc(a, a))
    return constant + gammaln(b) + math.log(gammainc(b, x + a)) - b * math.log(x + a) + x


def test_mixture_boundaries_reproduce_their_vectors():
    rho = best_rho(100, 0.05)
    assert rho == pytest.approx(12.60056, abs=5e-6)
    assert normal_log_mixture(10, 100, rho) == pytest.approx(-0.6510052, abs=5e-8)
    bound = brentq(lambda s: normal_log_mixture(s, 100, rho) - math.log(20), 0, 200)
    assert bound == pytest.approx(30.35209, abs=5e-6)
    rho = best_rho(100, 0.1)
    assert gamma_exponential_log_mixture(10, 100, rho, 2) == pytest.approx(-0.2490165, abs=5e-8)
    bound = brentq(lambda s: gamma_exponential_log_mixture(s, 100, rho, 2) - math.log(20), 0, 200)
    assert bound == pytest.approx(33.02017, abs=5e-6)
