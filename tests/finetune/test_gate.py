import json

import numpy as np
import pytest

from ragtune_mcp.core.finetune.gate import (
    MIN_QUERIES,
    Forgetting,
    judge,
    neighbour_agreement,
    probe_correlation,
)
from ragtune_mcp.core.finetune.probes import PROBES

FINE = Forgetting(base_probe=0.95, tuned_probe=0.95, agreement=0.8)


def decide(differences, forgetting=FINE, alpha=1.0):
    return judge(np.asarray(differences, dtype=float), forgetting, chosen_alpha=alpha)


def noise(mean, n=60, seed=0):
    values = np.random.default_rng(seed).normal(0, 0.2, n)
    return values - values.mean() + mean


@pytest.mark.parametrize(
    ("mean", "verdict", "code"),
    [(0.08, "pass", "better"), (0.005, "warn", "undecided"), (-0.08, "block", "worse")],
)
def test_the_verdict_follows_the_held_out_feedback(mean, verdict, code):
    found = decide(noise(mean))
    assert found.verdict == verdict
    assert found.details["codes"] == [code]
    assert f"{mean:+.3f} on 60 held-out queries" in found.reasons[0]


def test_fewer_than_fifteen_queries_block_with_their_own_reason():
    found = decide([0.5] * (MIN_QUERIES - 1))
    assert found.verdict == "block"
    assert found.details["codes"] == ["not_enough_feedback"]
    assert found.details["p_better"] is None
    assert "here is what would help" in found.reasons[-1]
    assert decide([0.5] * MIN_QUERIES).verdict == "pass"


def test_a_block_says_that_the_base_model_is_better_for_now():
    assert (
        decide(noise(-0.1))
        .reasons[-1]
        .startswith("The base model is better for now; here is what would help:")
    )


def test_a_model_that_only_forgot_is_not_called_worse():
    reasons = decide(noise(0.1), forgetting=Forgetting(0.95, 0.90, 0.8)).reasons
    assert "better than the base model" in reasons[1]
    assert "lower learning_rate" in reasons[-1]
    assert not any("base model is better" in reason or "ratings" in reason for reason in reasons)


def test_with_too_few_queries_nothing_is_said_about_which_model_is_better():
    found = decide([0.5] * (MIN_QUERIES - 1), alpha=0.0)
    assert found.reasons[-1].startswith("Whether the tuned model is better cannot be said yet")


def test_when_validation_preferred_the_base_model_the_version_is_blocked():
    found = decide(noise(0.08), alpha=0.0)
    assert found.verdict == "block"
    assert "base_preferred" in found.details["codes"]


@pytest.mark.parametrize(
    ("forgetting", "verdict", "code"),
    [
        (Forgetting(0.95, 0.93, 0.8), "warn", "forgot_probes"),
        (Forgetting(0.95, 0.80, 0.8), "block", "forgot_probes"),
        (Forgetting(0.95, 0.96, 0.35), "warn", "moved_neighbours"),
        (Forgetting(0.95, 0.95, 0.1), "block", "moved_neighbours"),
        (Forgetting(0.95, 0.95, None), "pass", "better"),
    ],
)
def test_forgetting_holds_back_a_model_that_retrieves_better(forgetting, verdict, code):
    found = decide(noise(0.08), forgetting)
    assert found.verdict == verdict
    assert code in found.details["codes"]


def test_a_verdict_is_json_without_nan():
    for found in (decide(noise(0.1)), decide([]), decide(np.zeros(30))):
        json.dumps(found.to_dict(), allow_nan=False)


def test_a_truly_worse_model_seldom_passes_and_an_equal_one_passes_at_the_level():
    rng = np.random.default_rng(1)
    verdicts = {
        mean: [decide(rng.normal(mean, 0.2, 50)).verdict for _ in range(150)] for mean in (-0.08, 0.0, 0.08)
    }
    share = {
        mean: {v: np.mean([f == v for f in found]) for v in ("pass", "block")}
        for mean, found in verdicts.items()
    }
    assert share[-0.08]["pass"] == 0
    assert share[-0.08]["block"] > 0.75
    assert share[0.0]["pass"] < 0.19
    assert share[0.0]["block"] < 0.19
    assert share[0.08]["pass"] > 0.75


def test_neighbour_agreement_is_one_for_a_rotation_and_near_chance_for_another_space():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rotation, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    other = rng.normal(size=(200, 16)).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    assert neighbour_agreement(vectors, (vectors @ rotation).astype(np.float32)) == pytest.approx(
        1.0, abs=0.01
    )
    assert neighbour_agreement(vectors, other) < 0.15
    assert neighbour_agreement(vectors[:10], other[:10]) is None


def test_the_probes_are_distinct_and_cover_the_scale():
    assert len({(probe.left, probe.right) for probe in PROBES}) == len(PROBES) >= 100
    assert {probe.grade for probe in PROBES} == {0.0, 1.0, 2.0, 4.0, 5.0}
    assert len({probe.right for probe in PROBES}) == len(PROBES)


def test_probe_correlation_is_one_for_a_model_that_knows_the_grades():
    grade = {probe.right: probe.grade for probe in PROBES}

    def encode(texts):
        cosines = np.array([grade.get(text, 5.0) / 5 for text in texts])
        return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)

    assert probe_correlation(encode) == pytest.approx(1.0)
    assert probe_correlation(lambda texts: np.ones((len(texts), 2)) / np.sqrt(2)) == 0.0


def test_what_is_not_a_number_does_not_pass():
    assert decide(noise(0.08), Forgetting(0.95, float("nan"), 0.8)).verdict == "block"
