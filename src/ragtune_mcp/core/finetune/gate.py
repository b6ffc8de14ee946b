"""The offline gate: may a tuned version be tested on live queries?

Two questions. Does it retrieve better on held-out feedback: paired sign-flip permutation test on per-query
nDCG@10; block when the mean is below 0 and p(worse) < .10, pass when p(better) < .10, otherwise warn. And did
it forget: rank correlation with graded similarity probes, and agreement of neighbours with the base model's
    space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ragtune_mcp.core.finetune.evaluation import rank_vectors
from ragtune_mcp.core.finetune.intervals import paired_interval, sign_flip_p
from ragtune_mcp.core.finetune.probes import PROBES
from ragtune_mcp.core.finetune.similarity import correlations

Verdict = Literal["pass", "warn", "block"]

MIN_QUERIES = 15
_LEVEL = 0.10
_NEIGHBOURS = 10
_NEIGHBOUR_SAMPLE = 500
_PROBE_WARN, _PROBE_BLOCK = 0.01, 0.03
_AGREEMENT_WARN, _AGREEMENT_BLOCK = 0.4, 0.25
_RANK: dict[Verdict, int] = {"pass": 0, "warn": 1, "block": 2}


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What tuning did to the space in general.

    Attributes:
        base_probe, tuned_probe: Spearman correlation with the graded probes.
        agreement: mean share of a document's 10 nearest documents that both models agree on; None below 20
            documents.
    """

    base_probe: float
    tuned_probe: float
    agreement: float | None

    @property
    def probe_drop(self) -> float:
        """Loss of correlation, positive when the tuned model is worse."""
        return self.base_probe - self.tuned_probe


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict, its reasons in words, and the numbers and reason codes behind them."""

    verdict: Verdict
    reasons: list[str]
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {"verdict": self.verdict, "reasons": list(self.reasons), "details": dict(self.details)}


# Verdict, reason code, sentence.
_Finding = tuple[Verdict, str, str]


def probe_correlation(encode: Callable[[Sequence[str]], np.ndarray]) -> float:
    """Spearman correlation of a model's cosines with the graded probes."""
    left = encode([probe.left for probe in PROBES])
    right = encode([probe.right for probe in PROBES])
    _, spearman = correlations(
        np.einsum("nd,nd->n", left, right), np.array([probe.grade for probe in PROBES])
    )
    return 0.0 if spearman is None else spearman


def neighbour_agreement(base: np.ndarray, tuned: np.ndarray, seed: int = 0) -> float | None:
    """Mean overlap of the 10 nearest documents under both models.

    Args:
        base: (m, dim) unit vectors of the corpus by the base model.
        tuned: (m, dim) by the tuned model, same order.
        seed: of the sample of at most 500 documents.

    Returns:
        Share in [0, 1]; None below 20 documents.
    """
    if len(base) < 2 * _NEIGHBOURS:
        return None
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(len(base))[:_NEIGHBOUR_SAMPLE])
    # One more than needed: the nearest document of a document is itself.
    left = rank_vectors(base[sample], base, _NEIGHBOURS + 1)
    right = rank_vectors(tuned[sample], tuned, _NEIGHBOURS + 1)
    shared = [
        len((set(a) & set(b)) - {own}) / _NEIGHBOURS
        for own, a, b in zip(sample.tolist(), left.tolist(), right.tolist(), strict=True)
    ]
    return float(np.mean(np.minimum(shared, 1.0)))


def judge(
    differences: np.ndarray,
    forgetting: Forgetting,
    *,
    chosen_alpha: float,
    seed: int = 0,
    ratings_hint: str = "",
) -> GateVerdict:
    """Decide.

    Args:
        differences: (n,) nDCG@10 of the tuned minus the base model per held-out query, near-duplicates of a
            query averaged to one value: the tests take the values as independent.
        forgetting: what tuning did to the space.
        chosen_alpha: interpolation chosen on validation; 0 means that validation preferred the base model.
        seed: of the permutation test and the interval.
        ratings_hint: what feedback would help, in words, where more of it would.

    Returns:
        The strictest of the findings, all reasons, and the numbers.
    """
    interval = paired_interval(differences, seed)
    better = sign_flip_p(differences, "greater", seed) if len(differences) >= MIN_QUERIES else None
    worse = sign_flip_p(differences, "less", seed) if len(differences) >= MIN_QUERIES else None
    findings = [_retrieval(interval.mean, len(differences), better, worse), *_forgot(forgetting)]
    if chosen_alpha == 0:
        findings.append(
            (
                "block",
                "base_preferred",
                "By the validation feedback no trained candidate is expected to beat the base model.",
            )
        )
    verdict = max((finding[0] for finding in findings), key=_RANK.__getitem__)
    reasons = [sentence for _, _, sentence in sorted(findings, key=lambda finding: -_RANK[finding[0]])]
    if verdict == "block":
        reasons.append(_honest(findings, ratings_hint))
    details = {
        "codes": [code for _, code, _ in findings],
        "metric": "ndcg@10",
        "gain": interval.to_dict(),
        "p_better": better,
        "p_worse": worse,
        "probe_base": round(forgetting.base_probe, 4),
        "probe_tuned": round(forgetting.tuned_probe, 4),
        "neighbour_agreement": None if forgetting.agreement is None else round(forgetting.agreement, 4),
        "alpha": chosen_alpha,
    }
    return GateVerdict(verdict, reasons, details)


def _retrieval(mean: float | None, n: int, better: float | None, worse: float | None) -> _Finding:
    if better is None or worse is None or mean is None:
        return (
            "block",
            "not_enough_feedback",
            f"Not enough held-out feedback: {n} judged queries, {MIN_QUERIES} are needed to judge a model.",
        )
    shown = f"nDCG@10 {mean:+.3f} on {n} held-out queries"
    if mean < 0 and worse < _LEVEL:
        return "block", "worse", f"Retrieval is worse than the base model: {shown}, p(worse) = {worse:.3f}."
    if better < _LEVEL:
        return (
            "pass",
            "better",
            f"Retrieval is better than the base model: {shown}, p(better) = {better:.3f}.",
        )
    return (
        "warn",
        "undecided",
        f"The held-out feedback does not tell the models apart: {shown}, p(better) = {better:.3f}.",
    )


def _forgot(found: Forgetting) -> list[_Finding]:
    findings: list[_Finding] = []
    shown = f"correlation with the similarity probes {found.base_probe:.3f} -> {found.tuned_probe:.3f}"
    # `not <=`: what is not a number is no pass.
    if not found.probe_drop <= _PROBE_BLOCK:
        findings.append(("block", "forgot_probes", f"General similarity was damaged: {shown}."))
    elif not found.probe_drop <= _PROBE_WARN:
        findings.append(("warn", "forgot_probes", f"General similarity suffered a little: {shown}."))
    if found.agreement is None:
        return findings
    shown = f"{found.agreement:.0%} of each document's nearest documents are kept"
    if found.agreement < _AGREEMENT_BLOCK:
        findings.append(("block", "moved_neighbours", f"The space was rebuilt rather than tuned: {shown}."))
    elif found.agreement < _AGREEMENT_WARN:
        findings.append(("warn", "moved_neighbours", f"The space moved a lot: {shown}."))
    return findings


def _honest(findings: Sequence[_Finding], hint: str) -> str:
    codes = {code for verdict, code, _ in findings if verdict == "block"}
    helps = hint or "more ratings, of more different queries"
    if "not_enough_feedback" in codes:
        return f"Whether the tuned model is better cannot be said yet; here is what would help: {helps}."
    if codes & {"worse", "base_preferred"}:
        return f"The base model is better for now; here is what would help: {helps}."
    return (
        "It lost too much of what the base model knew; here is what would help: a lower learning_rate or fewer "
        "epochs."
    )
