"""From evidence to a recommendation with reasons; pure, first matching rule wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

MIN_RATED_PER_ARM = 30
MIN_TO_STOP_PER_ARM = 10
MIN_ELAPSED_S = 24 * 3600.0
MAX_MIXED_SHARE = 0.01
# Looked at after every rating, so far below the level of a single look.
FEEDBACK_RATE_ALARM = 0.001


class Recommendation(StrEnum):
    """What to do with the test version."""

    DEPLOY = "deploy_test_model"
    KEEP = "keep_baseline"
    CONTINUE = "continue"
    INCONCLUSIVE = "inconclusive"
    INVESTIGATE = "stop_investigate"


class Guard(StrEnum):
    """State of a guardrail: `UNCLEAR` blocks a deployment once the test is over, `FAILED` any, `HARMED` stops."""

    OK = "ok"
    UNCLEAR = "unclear"
    FAILED = "failed"
    HARMED = "harmed"
    NO_DATA = "no_data"


@dataclass(frozen=True, slots=True)
class Decision:
    """A recommendation with its reasons, the deciding one first; a final one is latched."""

    recommendation: Recommendation
    reasons: tuple[str, ...]
    is_final: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a decision rests on.

    Attributes:
        is_over: no further search is assigned.
        ended_as_planned: it ran to its planned end, so the one fixed-horizon look is valid.
        elapsed_s: seconds since the start.
        duration_s: planned length.
        rated: rated units of (baseline, test); interleaved: rated queries, twice the same.
        difference: test - baseline of the primary metric, None while an arm is empty.
        interval: fixed-horizon 95 % interval of it.
        p_anytime: always valid.
        p_fixed: Welch; to be used at the planned end only.
        is_harmed: harm e-value of the primary metric ever reached 20.
        guardrails: state by name.
        srm_e_value: evidence that assignment is broken.
        mixed_share: share of units seen in both arms.
        feedback_rate_p: Fisher's, of the difference between the shares of units rated.
        salt_reused: an earlier test has the same salt.
        early_alpha: level of p_anytime.
        final_alpha: level of p_fixed.
        margin: half-width of "equivalent".
        remaining: text for "continue": time and ratings left.
    """

    is_over: bool
    ended_as_planned: bool
    elapsed_s: float
    duration_s: float
    rated: tuple[int, int]
    difference: float | None
    interval: tuple[float, float] | None
    p_anytime: float
    p_fixed: float | None
    is_harmed: bool
    guardrails: Mapping[str, Guard]
    srm_e_value: float
    mixed_share: float
    feedback_rate_p: float
    salt_reused: bool
    early_alpha: float
    final_alpha: float
    margin: float
    remaining: str

    @property
    def is_evident_early(self) -> bool:
        """The always-valid p reached its level; never where the rule has no early looks (p may underflow)."""
        return 0.0 < self.early_alpha >= self.p_anytime

    @property
    def has_enough(self) -> bool:
        """30 rated units in each arm."""
        return min(self.rated) >= MIN_RATED_PER_ARM

    def guards_in(self, *states: Guard) -> list[str]:
        """Names of the guardrails in any of the states."""
        return [name for name, guard in self.guardrails.items() if guard in states]

    @property
    def obstacles(self) -> list[str]:
        """What forbids a deployment now; an unclear guardrail only once no rating can clear it any more."""
        found = []
        blocking = (Guard.FAILED, Guard.UNCLEAR) if self.is_over else (Guard.FAILED,)
        if unproven := self.guards_in(*blocking):
            found.append(f"not shown to be no worse on: {', '.join(unproven)}")
        if self.feedback_rate_p < FEEDBACK_RATE_ALARM:
            found.append(
                f"the arms are rated unequally often (Fisher p {self.feedback_rate_p:.2g}), which neither p allows for"
            )
        return found


def decide(facts: Facts) -> Decision:
    """The recommendation table of the method, rows in order."""
    broken = _broken(facts)
    if broken:
        return Decision(Recommendation.INVESTIGATE, tuple(broken), is_final=facts.is_over)
    harm = _harm(facts)
    if harm:
        return Decision(Recommendation.KEEP, tuple(harm), is_final=True)
    if _is_better_early(facts):
        found = f"p_anytime {facts.p_anytime:.2g} <= {facts.early_alpha:.2g}"
        if facts.is_over or not facts.obstacles:
            return _deploy(facts, found)
        return Decision(
            Recommendation.CONTINUE, (_but(found, facts.obstacles), facts.remaining), is_final=False
        )
    if not facts.is_over:
        return Decision(Recommendation.CONTINUE, (facts.remaining,), is_final=False)
    return _at_the_end(facts)


def _deploy(facts: Facts, found: str) -> Decision:
    """What a better primary metric leads to, unless something stands against it."""
    if facts.obstacles:
        return Decision(Recommendation.INCONCLUSIVE, (_but(found, facts.obstacles),), is_final=True)
    return Decision(
        Recommendation.DEPLOY, (f"{found}: the test model is better", *_caveats(facts)), is_final=True
    )


def _but(found: str, obstacles: Sequence[str]) -> str:
    return f"{found}, but {'; '.join(obstacles)}"


def _broken(facts: Facts) -> list[str]:
    reasons = []
    if facts.srm_e_value > 1000.0:
        reasons.append(
            f"sample ratio mismatch: e-value {facts.srm_e_value:.3g} > 1000, assignment or logging is broken"
        )
    if facts.mixed_share > MAX_MIXED_SHARE:
        reasons.append(f"{facts.mixed_share:.1%} of units were seen in both arms")
    if facts.salt_reused:
        reasons.append("another test used the same salt, so their assignments are not independent")
    return reasons


def _harm(facts: Facts) -> list[str]:
    reasons = []
    if facts.is_harmed:
        reasons.append("harm stop: 20 to 1 evidence that the test model is worse")
    reasons += [f"guardrail {name} is harmed" for name in facts.guards_in(Guard.HARMED)]
    if facts.difference is not None and facts.difference < 0 and min(facts.rated) >= MIN_TO_STOP_PER_ARM:
        if facts.is_evident_early:
            reasons.append(
                f"p_anytime {facts.p_anytime:.2g} <= {facts.early_alpha:.2g}: the test model is worse"
            )
    return reasons


def _is_better_early(facts: Facts) -> bool:
    if facts.difference is None or facts.difference <= 0 or not facts.has_enough:
        return False
    # The minimum keeps a test from ending before it saw a day; one that is over has nothing left to wait for.
    waited = facts.is_over or facts.elapsed_s >= min(MIN_ELAPSED_S, facts.duration_s)
    return facts.is_evident_early and waited


def _at_the_end(facts: Facts) -> Decision:
    def final(recommendation: Recommendation, *reasons: str) -> Decision:
        return Decision(recommendation, reasons, is_final=True)

    if not facts.has_enough:
        base, test = facts.rated
        return final(
            Recommendation.INCONCLUSIVE,
            f"insufficient_data: {base} and {test} rated units, {MIN_RATED_PER_ARM} needed in each arm",
        )
    if not facts.ended_as_planned:
        return final(Recommendation.INCONCLUSIVE, "stopped before its planned end: p_value is not valid")
    difference = facts.difference or 0.0
    if facts.p_fixed is not None and facts.p_fixed <= facts.final_alpha:
        found = f"p_value {facts.p_fixed:.2g} <= {facts.final_alpha:.2g} at the planned end"
        if difference < 0:
            return final(Recommendation.KEEP, f"{found}: the test model is worse")
        return _deploy(facts, found)
    if facts.interval and -facts.margin < facts.interval[0] and facts.interval[1] < facts.margin:
        return final(Recommendation.KEEP, f"equivalent: the 95 % interval lies inside +-{facts.margin:g}")
    p = "not available" if facts.p_fixed is None else f"{facts.p_fixed:.2g} > {facts.final_alpha:.2g}"
    return final(Recommendation.INCONCLUSIVE, f"no difference shown: p_value {p} at the planned end")


def _caveats(facts: Facts) -> list[str]:
    missing = facts.guards_in(Guard.NO_DATA)
    return [f"not checked for lack of ratings: {', '.join(missing)}"] if missing else []
