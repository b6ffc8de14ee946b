from dataclasses import replace

import pytest

from ragtune_mcp.core.experiment.decision import Facts, Guard, Recommendation, decide

RUNNING = Facts(
    is_over=False,
    ended_as_planned=False,
    elapsed_s=48 * 3600.0,
    duration_s=240 * 3600.0,
    rated=(60, 60),
    difference=0.2,
    interval=(-0.1, 0.5),
    p_anytime=0.3,
    p_fixed=0.2,
    is_harmed=False,
    guardrails={},
    srm_e_value=1.0,
    mixed_share=0.0,
    feedback_rate_p=1.0,
    salt_reused=False,
    early_alpha=0.01,
    final_alpha=0.04,
    margin=0.3,
    remaining="10 h left",
)
ENDED = replace(RUNNING, is_over=True, ended_as_planned=True, elapsed_s=240 * 3600.0)
STOPPED = replace(RUNNING, is_over=True)
DEPLOY, KEEP, CONTINUE, INCONCLUSIVE, INVESTIGATE = Recommendation

CASES = {
    "running without evidence goes on": (RUNNING, CONTINUE, "10 h left"),
    "a broken sample ratio is investigated": (
        replace(RUNNING, srm_e_value=1001.0),
        INVESTIGATE,
        "sample ratio",
    ),
    "units in both arms are investigated": (replace(RUNNING, mixed_share=0.011), INVESTIGATE, "both arms"),
    "a few units in both arms are tolerated": (replace(RUNNING, mixed_share=0.01), CONTINUE, ""),
    "a reused salt is investigated": (replace(RUNNING, salt_reused=True), INVESTIGATE, "salt"),
    "harm stops even a winning mean": (replace(RUNNING, is_harmed=True), KEEP, "harm stop"),
    "a harmed guardrail stops": (
        replace(RUNNING, guardrails={"user_satisfaction": Guard.HARMED}),
        KEEP,
        "user_satisfaction",
    ),
    "a worse model stops early": (
        replace(RUNNING, difference=-0.4, p_anytime=0.01, rated=(10, 10)),
        KEEP,
        "worse",
    ),
    "nine units in an arm are too few to stop": (
        replace(RUNNING, difference=-0.4, p_anytime=0.01, rated=(9, 40)),
        CONTINUE,
        "",
    ),
    "a better model wins early": (replace(RUNNING, p_anytime=0.01), DEPLOY, "better"),
    "29 units in an arm are too few to win": (
        replace(RUNNING, p_anytime=0.001, rated=(29, 99)),
        CONTINUE,
        "",
    ),
    "no win before a day has passed": (replace(RUNNING, p_anytime=0.001, elapsed_s=86_000.0), CONTINUE, ""),
    "a failed guardrail forbids the early win": (
        replace(RUNNING, p_anytime=0.001, guardrails={"latency_p95": Guard.FAILED}),
        CONTINUE,
        "",
    ),
    "p_fixed is not used while the test runs": (replace(RUNNING, p_fixed=0.0001), CONTINUE, ""),
    "p_fixed decides at the planned end": (replace(ENDED, p_fixed=0.04), DEPLOY, "planned end"),
    "just above the level is no difference": (replace(ENDED, p_fixed=0.041), INCONCLUSIVE, "0.041 > 0.04"),
    "a worse mean at the end keeps the baseline": (
        replace(ENDED, p_fixed=0.04, difference=-0.2),
        KEEP,
        "worse",
    ),
    "an unclear guardrail blocks the deployment": (
        replace(ENDED, p_fixed=0.01, guardrails={"relevance_score": Guard.UNCLEAR}),
        INCONCLUSIVE,
        "relevance_score",
    ),
    "an unclear guardrail blocks a win by p_anytime at the planned end": (
        replace(ENDED, p_anytime=0.001, p_fixed=0.2, guardrails={"relevance_score": Guard.UNCLEAR}),
        INCONCLUSIVE,
        "p_anytime 0.001 <= 0.01, but not shown to be no worse on: relevance_score",
    ),
    "an unclear guardrail blocks a win by p_anytime of a stopped test": (
        replace(STOPPED, p_anytime=0.001, guardrails={"relevance_score": Guard.UNCLEAR}),
        INCONCLUSIVE,
        "relevance_score",
    ),
    "a guardrail without ratings does not block a win by p_anytime at the end": (
        replace(ENDED, p_anytime=0.001, guardrails={"relevance_score": Guard.NO_DATA}),
        DEPLOY,
        "better",
    ),
    "a guardrail still unclear does not block an early win": (
        replace(RUNNING, p_anytime=0.001, guardrails={"relevance_score": Guard.UNCLEAR}),
        DEPLOY,
        "better",
    ),
    "arms rated unequally often are not deployed early": (
        replace(RUNNING, p_anytime=0.001, feedback_rate_p=0.0009),
        CONTINUE,
        "unequally often",
    ),
    "arms rated unequally often are not deployed by p_anytime at the end": (
        replace(ENDED, p_anytime=0.001, feedback_rate_p=0.0009),
        INCONCLUSIVE,
        "unequally often",
    ),
    "arms rated unequally often are not deployed by p_fixed": (
        replace(ENDED, p_fixed=0.001, feedback_rate_p=0.0009),
        INCONCLUSIVE,
        "unequally often",
    ),
    "arms rated unequally often are stopped when worse": (
        replace(RUNNING, difference=-0.4, p_anytime=0.001, feedback_rate_p=0.0009),
        KEEP,
        "worse",
    ),
    "feedback rates that may differ by chance block nothing": (
        replace(RUNNING, p_anytime=0.001, feedback_rate_p=0.001),
        DEPLOY,
        "better",
    ),
    "a guardrail without ratings is named": (
        replace(ENDED, p_fixed=0.01, guardrails={"user_satisfaction": Guard.NO_DATA}),
        DEPLOY,
        "better",
    ),
    "a narrow interval around zero is equivalent": (
        replace(ENDED, p_fixed=0.5, interval=(-0.29, 0.29)),
        KEEP,
        "equivalent",
    ),
    "an interval that touches the margin is not": (
        replace(ENDED, p_fixed=0.5, interval=(-0.3, 0.1)),
        INCONCLUSIVE,
        "no difference",
    ),
    "too few ratings at the end": (
        replace(ENDED, rated=(29, 31), p_fixed=0.001),
        INCONCLUSIVE,
        "insufficient_data",
    ),
    "no p-value at the end": (replace(ENDED, p_fixed=None, interval=None), INCONCLUSIVE, "not available"),
    "a stopped test may not use p_fixed": (replace(STOPPED, p_fixed=0.0001), INCONCLUSIVE, "stopped before"),
    "a stopped test may use p_anytime": (replace(STOPPED, p_anytime=0.01, elapsed_s=60.0), DEPLOY, "better"),
    "a rule without early looks ignores even p_anytime 0": (
        replace(RUNNING, p_anytime=0.0, early_alpha=0.0),
        CONTINUE,
        "",
    ),
    "an empty test": (
        replace(RUNNING, rated=(0, 0), difference=None, interval=None, p_fixed=None, p_anytime=1.0),
        CONTINUE,
        "",
    ),
    "an empty test at its end": (
        replace(ENDED, rated=(0, 0), difference=None, interval=None, p_fixed=None, p_anytime=1.0),
        INCONCLUSIVE,
        "insufficient_data: 0 and 0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_recommendation_follows_the_table(case):
    facts, recommendation, words = CASES[case]
    decision = decide(facts)
    assert decision.recommendation is recommendation
    assert words in " ".join(decision.reasons)
    assert decision.is_final == (
        facts.is_over or recommendation not in (Recommendation.CONTINUE, Recommendation.INVESTIGATE)
    )


def test_a_short_test_may_be_won_before_a_day_but_not_before_its_end():
    short = replace(RUNNING, duration_s=7200.0, p_anytime=0.001)
    assert decide(replace(short, elapsed_s=7199.0)).recommendation is Recommendation.CONTINUE
    assert decide(replace(short, elapsed_s=7200.0)).recommendation is Recommendation.DEPLOY


def test_a_win_without_checked_guardrails_says_so():
    decision = decide(replace(RUNNING, p_anytime=0.01, guardrails={"user_satisfaction": Guard.NO_DATA}))
    assert "not checked for lack of ratings: user_satisfaction" in decision.reasons
