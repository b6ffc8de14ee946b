"""Simulations behind the choices that differ from, or were left open by, the textbook method.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ab_design_choices.py [phases ramp relevance covariate]

phases     weights of the phases of a test whose split was changed
ramp       harm process started afresh with the ramp, or going on from the test
relevance  what relevance_score should measure on a list that is judged only as far as it was shown
covariate  a unit's earlier ratings as a covariate, by how many units have any
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.experiment.support import PMF38, RATINGS, tilted

from ragtune_mcp.core.experiment.eprocess import ArmProcess, Predictor, Units
from ragtune_mcp.core.experiment.metrics import relevance_score
from ragtune_mcp.core.experiment.statistics import JointMoments, Moments, stratified, t_tail, welch

SKEWED = np.array([0.02, 0.02, 0.05, 0.16, 0.75])
ALPHA = 0.05


def share(hits: int, runs: int) -> str:
    """A share with its standard error."""
    p = hits / runs
    return f"{p:.3f} ± {math.sqrt(p * (1 - p) / runs):.3f}"


# phases


def inverse_variance_p(phases: list[tuple[Moments, Moments]]) -> float | None:
    """The reference's rule: weights 1/variance, normal reference."""
    parts = [(c.difference, c.se) for t, b in phases if (c := welch(t, b)).se]
    if not parts:
        return None
    weights = [1 / se**2 for _, se in parts]
    z = sum(w * d for w, (d, _) in zip(weights, parts, strict=True)) / math.sqrt(sum(weights))
    return 2 * t_tail(-abs(z), math.inf)


def pooled_p(phases: list[tuple[Moments, Moments]]) -> float | None:
    """Welch over all units, as if the split had never changed."""
    test, base = Moments(0, 0.0, 0.0), Moments(0, 0.0, 0.0)
    for t, b in phases:
        test, base = test.plus(t), base.plus(b)
    return welch(test, base).p


def phases(runs: int = 20_000) -> None:
    rules: dict[str, Callable[[list[tuple[Moments, Moments]]], float | None]] = {
        "size weights (used)": lambda p: stratified(p).p,
        "inverse variance": inverse_variance_p,
        "pooled": pooled_p,
    }
    plans = {
        "100 at .1, 200 at .5, trend +.5": ([100, 200], [0.1, 0.5], [0.0, 0.5], PMF38),
        "30 at .1, 270 at .5": ([30, 270], [0.1, 0.5], [0.0, 0.0], PMF38),
        "10 at .5, 290 at .5": ([10, 290], [0.5, 0.5], [0.0, 0.0], PMF38),
        "4 x 20": ([20] * 4, [0.2, 0.3, 0.4, 0.5], [0.0] * 4, PMF38),
        "6 x 15, skewed": ([15] * 6, [0.2, 0.3, 0.4, 0.5, 0.4, 0.3], [0.0] * 6, SKEWED),
    }
    print(f"\nFalse positives at .05 by the weights of the phases, {runs} runs\n")
    print(
        "| units and split of the phases | " + " | ".join(rules) + " |\n|---" * 1 + "|---" * len(rules) + "|"
    )
    for name, (sizes, splits, trend, pmf) in plans.items():
        rng = np.random.default_rng(1)
        hits = dict.fromkeys(rules, 0)
        for _ in range(runs):
            drawn = []
            for n, split, shift in zip(sizes, splits, trend, strict=True):
                arms, values = rng.random(n) < split, rng.choice(RATINGS, n, p=pmf) + shift
                drawn.append((Moments.of(values[arms].tolist()), Moments.of(values[~arms].tolist())))
            for rule, p_of in rules.items():
                p = p_of(drawn)
                hits[rule] += p is not None and p <= ALPHA
        print(f"| {name} | " + " | ".join(share(hits[rule], runs) for rule in rules) + " |", flush=True)


# ramp


def ramp_units(rng: np.random.Generator, n: int, effect: float, split: float, predictor: Predictor) -> Units:
    arms = rng.random(n) < split
    base, test = rng.choice(RATINGS, n, p=PMF38), rng.choice(RATINGS, n, p=tilted(effect))
    values = np.where(arms, test, base).astype(float)
    return Units.of(values, arms, [split] * n, [0.0] * n, (1.0, 5.0), predictor)


def alarm_at(process: ArmProcess, units: Units) -> int | None:
    """Number of units until the harm e-value reaches 20."""
    for i in range(len(units.y)):
        process.sup_harm = 0.0
        process.extend(units.part(i, i + 1))
        if process.is_harmed:
            return i + 1
    return None


def ramp(runs: int = 1000, length: int = 600) -> None:
    print(f"\nHarm alarm in a ramp at .8 after a test at +.4 with 250 units, {runs} runs of {length} units\n")
    print("| effect in the ramp | process | alarm | median units to the alarm |\n|---|---|---|---|")
    for effect in (0.0, -0.2, -0.4, -0.8):
        for name in ("fresh (used)", "going on"):
            rng = np.random.default_rng(2)
            alarms = []
            for _ in range(runs):
                predictor, process = Predictor(), ArmProcess()
                process.extend(ramp_units(rng, 250, 0.4, 0.5, predictor))
                if name.startswith("fresh"):
                    predictor, process = Predictor(), ArmProcess()
                alarms.append(alarm_at(process, ramp_units(rng, length, effect, 0.8, predictor)))
            found = [a for a in alarms if a]
            median = f"{np.median(found):.0f}" if found else "-"
            print(f"| {effect:+.1f} | {name} | {share(len(found), runs)} | {median} |", flush=True)


# relevance


def shown_lists(
    rng: np.random.Generator, noise: float, judged: float, k: int = 5
) -> Iterator[tuple[float, list[tuple[int, float]]]]:
    """(true nDCG@k, [(rank, rating)] of the judged documents) of endless queries at one ranking noise."""
    discounts = 1 / np.log2(np.arange(2, k + 2))
    while True:
        grades = rng.choice(RATINGS, 50, p=[0.55, 0.2, 0.12, 0.08, 0.05])
        order = np.argsort(-(grades + rng.normal(0, noise, 50)))[:k]
        gains, ideal = (grades[order] - 1) / 4, np.sort((grades - 1) / 4)[::-1][:k]
        ratings = np.clip(grades[order] + rng.integers(-1, 2, k), 1, 5)
        seen = rng.random(k) < judged
        rated = [(rank, float(r)) for rank, (r, s) in enumerate(zip(ratings, seen, strict=True), 1) if s]
        if rated:
            yield float(gains @ discounts / (ideal @ discounts)), rated


def own_ideal(rated: list[tuple[int, float]]) -> float:
    """nDCG of the judged list against its own best order; 0 for an all-bad list."""
    gains = [(rating - 1) / 4 for _, rating in rated]
    discounts = [1 / math.log2(i + 2) for i in range(len(gains))]
    best = sum(g * d for g, d in zip(sorted(gains, reverse=True), discounts, strict=True))
    return sum(g * d for g, d in zip(gains, discounts, strict=True)) / best if best else 0.0


def relevance(runs: int = 500, n: int = 300) -> None:
    measures: dict[str, Callable[[list[tuple[int, float]]], float]] = {
        "against an all-5 list (used)": relevance_score,
        "against its own best order": own_ideal,
        "share rated >= 4": lambda rated: sum(r >= 4 for _, r in rated) / len(rated),
    }
    print(f"\nPower of the relevance score at .05, {n} rated queries an arm, {runs} runs, k = 5\n")
    print("| ranking noise | judged | true nDCG@5 | " + " | ".join(measures) + " |")
    print("|---|---|---|" + "---|" * len(measures))
    for noise, judged in ((1.2, 1.0), (1.2, 0.4), (1.4, 1.0), (1.3, 1.0)):
        rng = np.random.default_rng(3)
        base, test = shown_lists(rng, 1.3, judged), shown_lists(rng, noise, judged)
        hits, truth = dict.fromkeys(measures, 0), []
        for _ in range(runs):
            arms = [[next(lists) for _ in range(n)] for lists in (base, test)]
            truth.append(np.mean([t for t, _ in arms[1]]) - np.mean([t for t, _ in arms[0]]))
            for name, measure in measures.items():
                b, t = (Moments.of([measure(rated) for _, rated in arm]) for arm in arms)
                found = welch(t, b)
                right = np.sign(found.difference or 0) == np.sign(1.3 - noise) or noise == 1.3
                hits[name] += bool(found.p is not None and found.p <= ALPHA and right)
        cells = " | ".join(share(hits[name], runs) for name in measures)
        print(f"| 1.3 -> {noise} | {judged:.0%} | {np.mean(truth):+.3f} | {cells} |", flush=True)


# covariate


def covariate(runs: int = 1000, n: int = 300) -> None:
    print(f"\nA unit's earlier ratings as covariate: +.4, N = {n}, {runs} runs; unit and rating sd .7\n")
    print("| units with earlier ratings | e-process p <= .05: without | with | Welch at N: without | with |")
    print("|---|---|---|---|---|")
    for known, effect in ((0.0, 0.4), (0.3, 0.4), (0.7, 0.4), (1.0, 0.4), (1.0, 0.0)):
        rng = np.random.default_rng(4)
        hits = np.zeros(4)
        for _ in range(runs):
            level = rng.normal(3.8, 0.7, n)
            past = np.clip(np.round(level + rng.normal(0, 0.7, n)), 1, 5)
            z = np.where(rng.random(n) < known, (past - 3.0) / 2, 0.0)
            arms = rng.random(n) < 0.5
            values = np.clip(np.round(level + rng.normal(0, 0.7, n) + effect * arms), 1, 5)
            for column, zs in ((0, np.zeros(n)), (1, z)):
                process = ArmProcess()
                process.extend(Units.of(values, arms, [0.5] * n, zs, (1.0, 5.0), Predictor()))
                hits[column] += process.p_anytime <= ALPHA
            sums = [JointMoments(), JointMoments()]
            for value, arm, c in zip(values, arms, z, strict=True):
                sums[int(arm)] = sums[int(arm)].add(value, c)
            slope = sums[0].plus(sums[1]).slope
            hits[2] += (welch(sums[1].raw, sums[0].raw).p or 1) <= ALPHA
            hits[3] += (welch(sums[1].adjusted(slope), sums[0].adjusted(slope)).p or 1) <= ALPHA
        name = f"{known:.0%}" + (" (no effect)" if not effect else "")
        print(f"| {name} | " + " | ".join(share(int(h), runs) for h in hits) + " |", flush=True)


PARTS = {"phases": phases, "ramp": ramp, "relevance": relevance, "covariate": covariate}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
