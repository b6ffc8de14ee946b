import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtune_mcp.core.experiment.assignment import Variant
from ragtune_mcp.core.experiment.eprocess import CREDIT_BETS, Mixture
from ragtune_mcp.core.experiment.interleaving import delta_dcg_credit, discount_gap, team_draft


def drafts(baseline, test, k):
    return [team_draft(baseline, test, k, coins) for coins in range(2**k)]


def shown(baseline, test, k):
    return {"".join(pick.document_id for pick in picks) for picks in drafts(baseline, test, k)}


def test_team_draft_reproduces_the_published_lists():
    assert shown("12", "34", 3) == {"132", "134", "312", "314"}
    assert shown("12", "23", 4) == {"123", "213"}
    results = {tuple((p.document_id, p.team) for p in picks) for picks in drafts("123", "231", 3)}
    assert len(results) == 4


@given(
    st.lists(st.integers(0, 12), unique=True, max_size=8),
    st.lists(st.integers(0, 12), unique=True, max_size=8),
    st.integers(1, 8),
    st.integers(0, 2**256 - 1),
)
def test_every_list_is_full_without_repeats_and_balanced(a, b, k, coins):
    a, b = [str(d) for d in a], [str(d) for d in b]
    picks = team_draft(a, b, k, coins)
    ids = [pick.document_id for pick in picks]
    assert len(ids) == len(set(ids)) == min(k, len(set(a) | set(b)))
    if set(a) == set(b):
        teams = [pick.team for pick in picks]
        assert abs(teams.count(Variant.TEST) - teams.count(Variant.BASELINE)) <= 1


def test_equal_rankings_give_their_own_order_and_no_credit():
    assert [p.document_id for p in team_draft("abc", "abc", 3, 5)] == ["a", "b", "c"]
    assert all(discount_gap(d, "abc", "abc", 3) == 0.0 for d in "abc")


def test_the_gap_is_the_difference_of_discounts_within_the_cut():
    assert discount_gap("x", ["a", "x"], ["x"], 5) == pytest.approx(1 - 1 / math.log2(3))
    assert discount_gap("x", ["a", "x"], ["b"], 5) == pytest.approx(-1 / math.log2(3))
    assert discount_gap("x", ["a", "x"], ["b"], 1) == 0.0


def test_credit_is_the_clipped_sum_of_surprise_times_gap():
    assert delta_dcg_credit([(5.0, 0.2)], 3.0) == pytest.approx(0.5 * 0.2 / 0.5)
    assert delta_dcg_credit([(5.0, 1.0), (5.0, 1.0)], 1.0) == 1.0
    assert delta_dcg_credit([(1.0, 1.0)], 5.0) == -1.0
    assert delta_dcg_credit([], 3.0) == 0.0


def test_swapping_the_variants_turns_the_credit_around():
    gaps = [(d, discount_gap(d, "abcd", "dbxa", 4)) for d in "abcdx"]
    swapped = [(d, discount_gap(d, "dbxa", "abcd", 4)) for d in "abcdx"]
    ratings = dict(zip("abcdx", (5.0, 2.0, 4.0, 1.0, 3.0), strict=True))
    credit = delta_dcg_credit([(ratings[d], g) for d, g in gaps], 3.0)
    assert delta_dcg_credit([(ratings[d], g) for d, g in swapped], 3.0) == pytest.approx(-credit)


def test_equally_good_rankings_have_credit_zero_on_average_and_hold_their_level():
    """Two noisy rankings of the same quality, every shown document rated; always-valid p at .05."""
    rng = np.random.default_rng(12)
    all_credits, rejected, streams = [], 0, 200
    for _ in range(streams):
        mixture, total, count = Mixture(CREDIT_BETS), 0.0, 0
        for _ in range(100):
            relevance = rng.integers(1, 6, 12).astype(float)
            a, b = ([str(i) for i in np.argsort(-(relevance + rng.normal(0, 2, 12)))[:5]] for _ in range(2))
            picks = team_draft(a, b, 5, int(rng.integers(2**32)))
            rated = [(relevance[int(p.document_id)], discount_gap(p.document_id, a, b, 5)) for p in picks]
            credit = delta_dcg_credit(rated, total / count if count else 3.0)
            mixture.extend(np.array([credit]))
            total, count = total + sum(r for r, _ in rated), count + len(rated)
            all_credits.append(credit)
        rejected += mixture.p_anytime <= 0.05
    standard_error = np.std(all_credits) / math.sqrt(len(all_credits))
    assert abs(np.mean(all_credits)) < 3 * standard_error
    assert rejected / streams <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / streams)


def test_two_disjoint_rankings_of_four_slots_give_one_list_for_each_pair_of_coins():
    lists = {tuple(pick.document_id for pick in picks) for picks in drafts("abcdef", "ghijkl", 4)}
    assert lists == {(*x, *y) for x in (("a", "g"), ("g", "a")) for y in (("b", "h"), ("h", "b"))}
