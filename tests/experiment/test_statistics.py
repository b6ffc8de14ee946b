import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import normal_power, tt_ind_solve_power
from statsmodels.stats.proportion import proportions_chisquare
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from ragtune_mcp.core.experiment.counts import Ratio
from ragtune_mcp.core.experiment.statistics import (
    EMPTY,
    JointMoments,
    Moments,
    fisher_exact,
    hedges_g,
    holm,
    non_inferiority_bound,
    one_sample,
    srm_chi_square_p,
    srm_log_e,
    stratified,
    superiority,
    welch,
)
from ragtune_mcp.core.experiment.traffic import minimum_detectable_effect, units_needed

A = [5, 4, 4, 3, 5, 2, 4, 5, 3, 4, 4, 1, 5, 4, 3, 4, 4, 5, 2, 4]
B = [5, 5, 4, 4, 5, 3, 4, 5, 5, 4, 4, 5, 2, 5, 4, 4, 5, 5, 3, 5]


def random_arms(rng, low=2, high=60):
    """Two samples of ratings, of continuous values or of shares."""
    n1, n0 = rng.integers(low, high, 2)
    kind = rng.integers(3)
    if kind == 0:
        return rng.integers(1, 6, n1).astype(float), rng.integers(1, 6, n0).astype(float)
    if kind == 1:
        return rng.normal(3, 2, n1), rng.normal(3.3, 0.5, n0)
    return rng.beta(2, 1, n1), rng.beta(1, 1, n0)


def test_welch_reproduces_the_published_vector():
    found = welch(Moments.of(B), Moments.of(A))
    assert found.difference == pytest.approx(0.55)
    assert found.p == pytest.approx(0.09039486, abs=5e-9)
    assert (found.low, found.high) == pytest.approx((-0.091081, 1.191081), abs=5e-7)
    assert found.df == pytest.approx(35.7369, abs=5e-5)
    assert found.difference / found.se == pytest.approx(1.740398, abs=5e-7)


def test_welch_from_sums_reproduces_the_growthbook_vector():
    found = welch(Moments(3461, 2422.7, 134698.29), Moments(3407, 1396.87, 52377.9767))
    assert found.difference == pytest.approx(0.29, abs=5e-3)
    assert (found.low, found.high) == pytest.approx((0.04538, 0.53462), abs=5e-6)
    assert found.p == pytest.approx(0.02016, abs=5e-6)


def test_superiority_and_non_inferiority_reproduce_the_published_vectors():
    assert superiority(B, A) * 400 == 259.5
    found = welch(Moments.of(B), Moments.of(A))
    margin = 0.05 * np.mean(A)
    assert margin == pytest.approx(0.1875)
    assert non_inferiority_bound(found, 1 - 0.012677) == pytest.approx(-margin, abs=1e-4)
    assert non_inferiority_bound(found, 0.95) > -margin


def test_sample_ratio_reproduces_the_published_vectors():
    assert srm_chi_square_p(600, 400, 0.5) == pytest.approx(2.5396e-10, rel=1e-4)
    assert srm_chi_square_p(110, 90, 0.5) == pytest.approx(0.157299, abs=5e-7)
    assert srm_chi_square_p(502, 498, 0.5) == pytest.approx(0.899, abs=5e-4)
    assert srm_log_e(60, 40, 0.5) == pytest.approx(0.658892, abs=5e-7)


def test_units_needed_reproduce_the_published_vector():
    assert units_needed(0.4, 1.0) == (99, 99)
    assert math.ceil(tt_ind_solve_power(0.4, alpha=0.05, power=0.8)) == 100


def test_sign_test_vectors_hold_in_the_oracle_the_gate_uses():
    assert stats.binomtest(29, 50).pvalue == pytest.approx(0.3222, abs=5e-5)
    assert stats.binomtest(25, 43).pvalue == pytest.approx(0.3604, abs=5e-5)


def test_1000_random_comparisons_equal_scipy_and_statsmodels():
    rng = np.random.default_rng(20260105)
    for _ in range(1000):
        test, base = random_arms(rng)
        ours = welch(Moments.of(test), Moments.of(base))
        if ours.p is None or ours.se == 0:
            assert np.ptp(test) == np.ptp(base) == 0
            continue
        scipy = stats.ttest_ind(test, base, equal_var=False)
        interval = scipy.confidence_interval()
        assert ours.p == pytest.approx(scipy.pvalue, rel=1e-7, abs=1e-14)
        assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-9)
        means = CompareMeans(DescrStatsW(test), DescrStatsW(base))
        one_sided = means.tconfint_diff(alpha=0.1, usevar="unequal")[0]
        assert non_inferiority_bound(ours) == pytest.approx(one_sided, rel=1e-7, abs=1e-9)
        u = stats.mannwhitneyu(test, base).statistic / (len(test) * len(base))
        assert superiority(test, base) == pytest.approx(u, rel=1e-12)
        paired = one_sample(Moments.of(test - test.mean() + 0.1))
        if paired.p is not None and paired.se:
            expected = stats.ttest_1samp(test - test.mean() + 0.1, 0.0).pvalue
            assert paired.p == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_1000_random_tables_equal_scipy_and_statsmodels():
    rng = np.random.default_rng(7)
    for _ in range(1000):
        n_a, n_b = (int(n) for n in rng.integers(1, 400, 2))
        a, b = int(rng.integers(0, n_a + 1)), int(rng.integers(0, n_b + 1))
        expected = stats.fisher_exact([[a, n_a - a], [b, n_b - b]]).pvalue
        assert fisher_exact(a, n_a, b, n_b) == pytest.approx(expected, rel=1e-6, abs=1e-12)
        split = rng.uniform(0.1, 0.9)
        chi = stats.chisquare([a + 1, b + 1], [split * (a + b + 2), (1 - split) * (a + b + 2)]).pvalue
        assert srm_chi_square_p(a + 1, b + 1, split) == pytest.approx(chi, rel=1e-9, abs=1e-300)
    counts = proportions_chisquare([600, 400], [1000, 1000])
    assert counts[1] < 1e-10


def test_1000_random_corrections_equal_statsmodels(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage at every call: 50 ms each
    rng = np.random.default_rng(9)
    for _ in range(1000):
        p = rng.uniform(0, 0.2, int(rng.integers(1, 6)))
        ours = holm({str(i): v for i, v in enumerate(p)})
        assert [ours[str(i)] for i in range(len(p))] == pytest.approx(multipletests(p, method="holm")[1])


def test_1000_random_plans_have_the_power_that_statsmodels_computes():
    rng = np.random.default_rng(10)
    n, ratio, sd = rng.uniform(20, 400, 1000), rng.uniform(0.3, 3, 1000), rng.uniform(0.2, 3, 1000)
    alpha = rng.choice([0.01, 0.05, 0.1], 1000)
    plans = list(zip(n, n * ratio, sd, alpha, strict=True))
    effects = np.array([minimum_detectable_effect(*plan) for plan in plans])
    # statsmodels also counts the rejections on the wrong side, at most a few in 100,000.
    effective = 1 / (1 / n + 1 / (n * ratio))
    assert normal_power(effects / sd, effective, alpha) == pytest.approx(0.8, abs=1e-4)
    split = ratio / (1 + ratio)
    wanted = [units_needed(e, s, p, a) for e, s, p, a in zip(effects, sd, split, alpha, strict=True)]
    exact = np.stack([n, n * ratio], axis=1)
    assert np.all((exact - 1e-6 <= wanted) & (wanted < exact + 1 + 1e-6))


def test_1000_random_stratified_comparisons_equal_a_regression_and_the_cells_own_variances():
    """The size weights are those of least squares with an intercept for each phase."""
    rng = np.random.default_rng(11)
    expected, found = [], []
    for _ in range(1000):
        phases = [
            (rng.normal(level, rng.uniform(0.3, 2), n1), rng.normal(level, rng.uniform(0.3, 2), n0))
            for level, n1, n0 in zip(rng.normal(3, 1, 3), *rng.integers(2, 40, (2, 3)), strict=True)
        ]
        found.append(stratified([(Moments.of(test), Moments.of(base)) for test, base in phases]))
        values = np.concatenate([arm for arms in phases for arm in arms])
        cells = np.repeat(np.arange(6), [len(arm) for arms in phases for arm in arms])
        design = np.column_stack([cells % 2 == 0, *(cells // 2 == phase for phase in range(3))]).astype(float)
        weights = np.linalg.pinv(design)[0]
        parts = [np.sum(weights[cells == c] ** 2) * np.var(values[cells == c], ddof=1) for c in range(6)]
        sizes = np.bincount(cells)
        df = sum(parts) ** 2 / np.sum(np.square(parts) / (sizes - 1))
        expected.append((weights @ values, math.sqrt(sum(parts)), df))
    difference, se, df = np.array(expected).T
    half = stats.t.ppf(0.975, df) * se
    assert [f.difference for f in found] == pytest.approx(difference, rel=1e-7, abs=1e-9)
    assert [f.p for f in found] == pytest.approx(
        2 * stats.t.sf(abs(difference) / se, df), rel=1e-6, abs=1e-12
    )
    assert [f.low for f in found] == pytest.approx(difference - half, rel=1e-6, abs=1e-8)
    assert [f.high for f in found] == pytest.approx(difference + half, rel=1e-6, abs=1e-8)


def test_1000_random_effect_sizes_equal_statsmodels():
    rng = np.random.default_rng(12)
    arms = [random_arms(rng) for _ in range(1000)]
    ours = [hedges_g(Moments.of(test), Moments.of(base)) for test, base in arms]
    summary = [(np.mean(a), np.std(a, ddof=1), len(a)) for pair in arms for a in pair]
    test, base = np.array(summary[::2]).T, np.array(summary[1::2]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        expected, _ = effectsize_smd(*test, *base)
    varies = (test[1] > 0) | (base[1] > 0)
    assert [g is None for g in ours] == list(~varies)
    assert [g for g in ours if g is not None] == pytest.approx(expected[varies], rel=1e-7, abs=1e-12)


def test_hedges_g_corrects_cohens_d_for_small_samples():
    pooled = math.sqrt((19 * np.var(A, ddof=1) + 19 * np.var(B, ddof=1)) / 38)
    expected = (np.mean(B) - np.mean(A)) / pooled * (1 - 3 / (4 * 40 - 9))
    assert hedges_g(Moments.of(B), Moments.of(A)) == pytest.approx(expected)


def test_fewer_than_two_units_give_no_p_but_a_reason():
    assert welch(EMPTY, EMPTY).difference is None
    assert welch(Moments.of([5]), EMPTY).p is None
    single = welch(Moments.of([5]), Moments.of([4, 3]))
    assert (single.difference, single.p) == (1.5, None)
    assert "fewer than 2" in single.reason
    assert hedges_g(Moments.of([5]), Moments.of([4, 3])) is None


def test_no_variance_is_p_one_for_equal_arms_and_no_p_with_a_reason_for_different_ones():
    assert welch(Moments.of([4, 4, 4]), Moments.of([4, 4])).p == 1.0
    different = welch(Moments.of([5, 5, 5]), Moments.of([4, 4]))
    assert different.p is None
    assert "no variance" in different.reason


def test_sums_of_equal_fractions_have_no_variance_despite_rounding():
    thirds = Moments.of([1 / 3] * 7)
    assert thirds.variance == 0.0


def test_fisher_is_one_for_an_empty_arm_and_for_all_or_none():
    assert fisher_exact(0, 0, 3, 5) == fisher_exact(5, 5, 3, 3) == fisher_exact(0, 5, 0, 3) == 1.0


def test_one_phase_is_welch_and_phases_never_pool_what_the_split_confounds():
    only = stratified([(Moments.of(B), Moments.of(A))])
    assert only == welch(Moments.of(B), Moments.of(A))
    low, high = [1.0, 2.0, 1.0, 2.0], [4.0, 5.0, 4.0, 5.0]
    confounded = stratified(
        [(Moments.of(low), Moments.of(low * 9)), (Moments.of(high * 9), Moments.of(high))]
    )
    assert confounded.difference == pytest.approx(0.0)
    assert confounded.p == pytest.approx(1.0)


def test_a_phase_with_a_single_unit_in_an_arm_is_left_out():
    found = stratified([(Moments.of([5.0]), Moments.of([1.0, 2.0])), (Moments.of(B), Moments.of(A))])
    assert found.difference == pytest.approx(0.55)
    nothing = stratified([(Moments.of([5.0]), Moments.of([1.0])), (Moments.of([5.0]), Moments.of([1.0]))])
    assert nothing.p is None
    assert "no phase" in nothing.reason


def test_phases_without_any_variance_compare_only_when_equal():
    flat = (Moments.of([4.0, 4.0]), Moments.of([4.0, 4.0]))
    assert stratified([flat, flat]).p == 1.0
    assert stratified([flat, (Moments.of([5.0, 5.0]), Moments.of([4.0, 4.0]))]).p is None


def test_small_phases_do_not_inflate_false_positives():
    """Six phases of 15 skewed ratings: inverse-variance weights reject .20 here, size weights about .05."""
    rng = np.random.default_rng(3)
    skewed = [0.02, 0.02, 0.05, 0.16, 0.75]
    rejected = 0
    for _ in range(2000):
        phases = []
        for split in (0.2, 0.3, 0.4, 0.5, 0.4, 0.3):
            arms, values = rng.random(15) < split, rng.choice(5, 15, p=skewed) + 1.0
            phases.append((Moments.of(values[arms]), Moments.of(values[~arms])))
        p = stratified(phases).p
        rejected += p is not None and p <= 0.05
    assert rejected / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_adjusting_for_a_covariate_removes_what_it_explains():
    rng = np.random.default_rng(6)
    z = rng.normal(size=400)
    values = 2.0 * z + rng.normal(size=400)
    joint = JointMoments()
    for v, c in zip(values, z, strict=True):
        joint = joint.add(v, c)
    assert joint.slope == pytest.approx(stats.linregress(z, values).slope, rel=1e-6)
    assert joint.adjusted(joint.slope).variance == pytest.approx(np.var(values - joint.slope * z, ddof=1))
    assert joint.raw.variance == pytest.approx(np.var(values, ddof=1))
    assert joint.add(3.0, 1.0).add(3.0, 1.0, -1) == pytest.approx(joint)


def test_an_absent_covariate_changes_nothing():
    joint = JointMoments().add(4.0, 0.0).add(5.0, 0.0)
    assert joint.slope == 0.0
    assert joint.adjusted(joint.slope) == joint.raw == Moments.of([4.0, 5.0])


@given(st.lists(st.booleans(), max_size=200), st.floats(0.05, 0.95))
def test_the_running_sample_ratio_equals_the_closed_form(arms, split):
    ratio = Ratio(split)
    largest = 0.0
    for in_test in arms:
        ratio.add(in_test=in_test)
        largest = max(largest, srm_log_e(ratio.test, ratio.baseline, split))
    assert ratio.log_e == pytest.approx(srm_log_e(sum(arms), len(arms) - sum(arms), split), abs=1e-9)
    assert ratio.sup == pytest.approx(largest, abs=1e-9)
