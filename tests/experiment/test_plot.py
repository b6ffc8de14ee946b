from xml.etree import ElementTree

import pytest

from ragtune_mcp.core.experiment.plot import effect_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(world):
    trial = world.trials.latest()
    return ElementTree.fromstring(effect_svg(trial, world.report.evidence(trial.test_id)))


def words(tree):
    return " ".join(node.text or "" for node in tree.iter(f"{SVG}text"))


def test_a_test_without_ratings_says_so(world):
    world.start()
    assert "No rated units" in words(drawn(world))


def test_the_effect_its_band_and_both_means_are_drawn(world):
    world.start()
    world.rate_by_arm(80, 3, 4)
    tree = drawn(world)
    assert len(list(tree.iter(f"{SVG}polygon"))) == 1
    assert len(list(tree.iter(f"{SVG}polyline"))) == 3
    reading = world.report.results()
    low, high = reading.effect.ci95_anytime
    assert (
        f"effect {reading.effect.difference:+.2f}, always valid 95 %: {low:+.2f} to {high:+.2f}, n = 80"
        in words(tree)
    )
    assert f"test {reading.test_metrics['avg_response_quality']:.2f}" in words(tree)


def test_the_picture_ends_where_the_results_stand(world):
    world.start()
    world.rate_by_arm(83, 3, 4)  # between two points of the trajectory
    assert "n = 83" in words(drawn(world))


def test_the_axes_carry_round_numbers(world):
    world.start()
    world.rate_by_arm(80, 3, 4)
    said = words(drawn(world)).split()
    assert {"1", "2", "3", "4", "5", "20", "40", "60", "80"} <= set(said)


def test_every_point_lies_inside_the_picture(world):
    world.start()
    world.rate_by_arm(60, 1, 5)
    tree = drawn(world)
    width, height = float(tree.get("width")), float(tree.get("height"))
    for node in (*tree.iter(f"{SVG}polyline"), *tree.iter(f"{SVG}polygon")):
        for point in node.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_an_interleaved_test_draws_its_credit(world):
    world.rankings = {"base": list("abc"), "tuned": list("cba")}
    world.start(mode="interleave")
    for i in range(30):
        served = world.service.search(f"q {i}", k=3)
        world.outcomes.record(
            served.query_id, document_ratings={h.id: 5 if h.id == "c" else 2 for h in served.hits}
        )
    tree = drawn(world)
    assert len(list(tree.iter(f"{SVG}polyline"))) == 1
    assert "n = 30" in words(tree)


@pytest.mark.parametrize("n", [300])
def test_the_picture_stays_small(world, n):
    trial = world.start()
    world.rate_by_arm(n, 3, 4)
    assert len(effect_svg(trial, world.report.evidence(trial.test_id))) < 10_000
