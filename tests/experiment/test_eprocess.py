import itertools
import json
import math

import numpy as np
import pytest

from ragtune_mcp.core.experiment.confidence import (
    Candidates,
    add_credits,
    add_units,
    arm_candidates,
    credit_candidates,
)
from ragtune_mcp.core.experiment.eprocess import (
    ARM_BETS,
    CREDIT_BETS,
    ArmProcess,
    Mixture,
    Predictor,
    Units,
    e_value,
)

BOUNDS = (1.0, 5.0)


def units_of(values, arms, p=0.5, bounds=BOUNDS, z=None, predictor=None):
    n = len(values)
    p = [p] * n if isinstance(p, float) else p
    return Units.of(values, arms, p, [0.0] * n if z is None else z, bounds, predictor or Predictor())


def e_values(values, arms, p=0.5, z=None):
    return np.exp(ArmProcess().extend(units_of(values, arms, p, z=z)))


def interval_of(values, arms, step, p=0.5):
    candidates = arm_candidates(*BOUNDS, step)
    add_units(candidates, units_of(values, arms, p), 4.0)
    return candidates.low, candidates.high


def p_anytime(values, arms):
    process = ArmProcess()
    process.extend(units_of(values, arms))
    return process.p_anytime


def direct_e_values(values, in_test, p, lo, hi, bets, delta0=0.0, covariate=None):
    """The method's formulas, one unit at a time, without any shared code."""
    log_wealth = np.zeros(len(bets))
    path = []
    ys, zs = [], []
    d0 = delta0 / (hi - lo)
    for t, (value, w) in enumerate(zip(values, in_test, strict=True), 1):
        y = (value - lo) / (hi - lo)
        m = (1 + sum(ys)) / (t + 1)
        if covariate is not None:
            z, k = covariate[t - 1], t - 1
            if k >= 10:
                sxx = sum(v * v for v in zs) - sum(zs) ** 2 / k
                sxy = sum(a * b for a, b in zip(zs, ys, strict=True)) - sum(zs) * sum(ys) / k
                m = min(0.98, max(0.02, m + sxy / (sxx + 5) * (z - sum(zs) / k)))
            zs.append(z)
        x = (w - p) * (y - m) - p * (1 - p) * d0
        b = max(m, 1 - m) * max(p, 1 - p) + p * (1 - p) * abs(d0)
        log_wealth += np.log1p(np.asarray(bets) * x / b)
        path.append(np.exp(log_wealth).mean())
        ys.append(y)
    return np.array(path)


@pytest.mark.parametrize("values", [[1, 5, 3, 4, 2, 5], [5, 5, 5, 1, 1, 1]])
@pytest.mark.parametrize("p", [0.5, 0.2])
def test_the_e_value_has_mean_one_over_all_assignments(values, p):
    total = 0.0
    for arms in itertools.product((0, 1), repeat=6):
        chance = math.prod(p if w else 1 - p for w in arms)
        total += chance * e_values(values, arms, p)[-1, 0]
    assert total == pytest.approx(1.0, abs=1e-12)


def test_the_first_step_is_neutral_two_sided_and_wins_one_sided():
    two, less, greater = e_values([5], [1])[0]
    assert two == pytest.approx(1.0)
    assert greater == pytest.approx(1.35)
    assert less == pytest.approx(0.65)


def test_alternating_fours_and_fives_reach_the_published_p():
    assert p_anytime([4.0, 5.0] * 30, [0, 1] * 30) == pytest.approx(0.0446, abs=5e-5)


def test_equal_ratings_in_alternating_arms_are_no_evidence():
    assert p_anytime([5.0] * 200, [0, 1] * 100) == pytest.approx(1.0, abs=1e-3)


def test_equal_ratings_in_random_arms_never_look_significant():
    rng = np.random.default_rng(5)
    assert min(p_anytime([4.0] * 100, rng.integers(0, 2, 100)) for _ in range(2000)) > 0.5


def test_no_observation_is_p_one_and_the_full_range():
    assert ArmProcess().p_anytime == 1.0
    assert interval_of([], [], 0.02) == (-4, 4)
    assert ArmProcess().extend(units_of([], [])).shape == (0, 3)


@pytest.mark.parametrize("with_covariate", [False, True])
def test_the_path_equals_the_formulas_written_out(with_covariate):
    rng = np.random.default_rng(11)
    for p in (0.5, 0.2):
        values = rng.integers(1, 6, 80).astype(float)
        arms = (rng.random(80) < p).astype(float)
        z = rng.normal(size=80) if with_covariate else None
        ours = e_values(values, arms, p, z)
        assert ours[:, 0] == pytest.approx(direct_e_values(values, arms, p, 1, 5, ARM_BETS, covariate=z))
        assert ours[:, 1] == pytest.approx(direct_e_values(values, arms, p, 1, 5, ARM_BETS[:6], covariate=z))


def test_one_by_one_equals_all_at_once_also_across_a_checkpoint():
    rng = np.random.default_rng(2)
    values, arms = rng.random(300), rng.integers(0, 2, 300).astype(float)
    z, p = rng.normal(size=300), rng.choice([0.2, 0.5], 300)
    units = units_of(values, arms, p, (0, 1), z)
    whole, stepwise = ArmProcess(), ArmProcess()
    whole_candidates, step_candidates = arm_candidates(0, 1, 0.005), arm_candidates(0, 1, 0.005)
    whole.extend(units)
    add_units(whole_candidates, units, 1.0)
    predictor = Predictor()
    for i in range(300):
        part = slice(i, i + 1)
        one = units_of(values[part], arms[part], p[part], (0, 1), z[part], predictor)
        stepwise.extend(one)
        add_units(step_candidates, one, 1.0)
        if i == 150:
            stepwise = ArmProcess.from_state(json.loads(json.dumps(stepwise.to_state())))
            step_candidates = Candidates.from_state(
                json.loads(json.dumps(step_candidates.to_state())), ARM_BETS
            )
            predictor = Predictor(*json.loads(json.dumps(predictor.to_state())))
    assert stepwise.mixture.log_wealth == pytest.approx(whole.mixture.log_wealth, rel=1e-12)
    assert (stepwise.mixture.sup, stepwise.sup_harm) == pytest.approx((whole.mixture.sup, whole.sup_harm))
    assert stepwise.n_arm == whole.n_arm
    assert (step_candidates.low, step_candidates.high) == (whole_candidates.low, whole_candidates.high)


def test_the_interval_is_the_hull_of_differences_never_rejected():
    rng = np.random.default_rng(3)
    values = rng.integers(1, 6, 60).astype(float)
    arms = rng.integers(0, 2, 60).astype(float)
    grid = np.arange(-40, 41) * 0.1
    kept = [d for d in grid if direct_e_values(values, arms, 0.5, 1, 5, ARM_BETS, delta0=d).max() < 20]
    assert interval_of(values, arms, 0.1) == pytest.approx((min(kept), max(kept)))


def test_the_interval_covers_a_true_effect_at_all_times():
    rng = np.random.default_rng(8)
    base, test = [0.03, 0.07, 0.22, 0.43, 0.25], [0.03, 0.04, 0.13, 0.30, 0.50]
    truth = np.dot(test, range(1, 6)) - np.dot(base, range(1, 6))
    misses = 0
    for _ in range(300):
        arms = rng.integers(0, 2, 200)
        draws = np.where(arms, rng.choice(5, 200, p=test), rng.choice(5, 200, p=base)) + 1.0
        low, high = interval_of(draws, arms, 0.05)
        misses += not low - 1e-9 <= truth <= high + 1e-9
    assert misses / 300 <= 0.05


def test_harm_needs_ten_units_in_each_arm():
    process = ArmProcess()
    bad = units_of([5.0, 1.0] * 20, [0, 1] * 20)
    process.extend(bad.part(0, 18))
    assert process.sup_harm == 0.0
    process.extend(bad.part(18, 40))
    assert process.is_harmed


def test_overwhelming_evidence_stays_a_number():
    assert e_value(5000.0) == pytest.approx(e_value(690.0))
    assert math.isfinite(e_value(5000.0))


def test_credits_of_a_better_ranking_are_found_and_their_mean_is_covered():
    rng = np.random.default_rng(4)
    credits = np.clip(rng.normal(0.15, 0.3, 400), -1, 1)
    mixture, candidates = Mixture(CREDIT_BETS), credit_candidates()
    mixture.extend(credits)
    add_credits(candidates, credits)
    assert mixture.p_anytime < 0.001
    assert 0 < candidates.low < 0.15 < candidates.high < 0.3


def test_all_candidates_rejected_keep_the_last_interval():
    candidates = Candidates.grid(0.0, 0.1, 0.05, CREDIT_BETS)
    for _ in range(60):
        add_credits(candidates, np.array([-1.0, -1.0]))
    assert not len(candidates.values)
    assert candidates.low <= candidates.high


@pytest.mark.slow
def test_false_positives_under_peeking_reproduce_the_reference():
    rng = np.random.default_rng(1)
    base = np.array([0.03, 0.07, 0.22, 0.43, 0.25])
    rejections = sum(
        p_anytime(rng.choice(5, 300, p=base) + 1.0, rng.integers(0, 2, 300)) <= 0.05 for _ in range(4000)
    )
    assert rejections / 4000 == pytest.approx(0.019, abs=0.0075)
