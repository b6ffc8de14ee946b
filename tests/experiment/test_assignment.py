import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from ragtune_mcp.core.experiment.assignment import (
    Variant,
    assign,
    bucket,
    coin_flips,
    normalise_query,
    unit_of,
)


def test_bucket_reproduces_the_published_vectors():
    assert bucket("s3cr3t", "exp1", "q1") == 0.19420970092673095
    assert bucket("s3cr3t", "exp1", "q2") == 0.4918729788796603


def test_buckets_of_100000_units_are_uniform():
    buckets = [bucket("s3cr3t", "exp1", f"q{i}") for i in range(100_000)]
    assert stats.kstest(buckets, "uniform").pvalue > 0.05


def test_two_salts_assign_independently():
    pairs = np.array([[bucket(s, "e", f"u{i}") < 0.5 for s in ("a", "b")] for i in range(20_000)])
    table = [[np.sum((pairs[:, 0] == x) & (pairs[:, 1] == y)) for y in (0, 1)] for x in (0, 1)]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_a_split_of_a_fifth_gets_a_fifth_of_the_units():
    share = np.mean([assign("s", "e", f"u{i}", 0.2) is Variant.TEST for i in range(20_000)])
    assert share == pytest.approx(0.2, abs=0.01)


def test_raising_the_split_moves_nobody_back_to_the_baseline():
    before = {u for u in map(str, range(5000)) if assign("s", "e", u, 0.2) is Variant.TEST}
    after = {u for u in map(str, range(5000)) if assign("s", "e", u, 0.5) is Variant.TEST}
    assert before < after


def test_the_bucket_is_the_same_in_a_process_with_another_hash_seed():
    module = "ragtune_mcp.core.experiment.assignment"
    code = f"from {module} import bucket; print(repr(bucket('s3cr3t', 'exp1', 'q1')))"
    out = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "77"}, capture_output=True, text=True, check=True
    )
    assert float(out.stdout) == 0.19420970092673095


def test_a_query_repeated_in_other_case_and_spacing_is_the_same_unit():
    assert unit_of("  How do\tI  START?") == unit_of("how do i start?")
    assert normalise_query("ﬁle") == "file"


def test_a_callers_unit_never_collides_with_a_query_of_the_same_text():
    assert unit_of("anything", "alice") != unit_of("alice")


def test_coins_are_fair_and_independent_of_the_bucket():
    flips = np.array([coin_flips("s", "e", str(i)) & 1 for i in range(20_000)])
    buckets = np.array([bucket("s", "e", str(i)) for i in range(20_000)])
    assert flips.mean() == pytest.approx(0.5, abs=0.012)
    assert abs(np.corrcoef(flips, buckets)[0, 1]) < 0.025


def test_a_lone_surrogate_in_a_query_has_a_bucket():
    assert 0 <= bucket("s", "e", unit_of("broken \ud800")) < 1
