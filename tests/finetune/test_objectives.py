import numpy as np
import pytest
import torch
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.errors import NotEnoughData
from ragtune_mcp.core.finetune.examples import RankingExample
from ragtune_mcp.core.finetune.objectives import Background, LibraryLoss, Ranking, columns_for


def example(index, negatives=(), answers=(), weight=1.0):
    positive = f"p{index}"
    return RankingExample(f"q{index}", positive, tuple(negatives), frozenset({positive, *answers}), weight)


def vectors_of(texts, seed=0):
    rng = np.random.default_rng(seed)
    table = {text: rng.normal(size=8) for text in sorted(set(texts))}
    return torch.tensor(np.stack([table[text] for text in texts]), dtype=torch.float32, requires_grad=True)


def test_each_distinct_text_of_a_batch_is_encoded_once():
    objective = Ranking([example(0, ["n"]), example(1, ["n", "p0"]), example(0, ["n"])])
    batch = objective.batch([0, 1, 2])
    assert sorted(batch.texts) == ["n", "p0", "p1", "q0", "q1"]


def test_without_shared_documents_and_weights_it_is_the_librarys_ranking_loss():
    examples = [example(i, [f"n{i}"]) for i in range(5)]
    ours = Ranking(examples)
    batch = ours.batch(range(5))
    theirs = LibraryLoss(
        "MultipleNegativesRankingLoss", [(e.query, e.positive, *e.negatives) for e in examples], None
    )
    other = theirs.batch(range(5))
    found = ours.loss(vectors_of(batch.texts), batch.layout)
    expected = theirs.loss(vectors_of(other.texts), other.layout)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_known_answer_in_the_batch_is_not_pushed_away():
    blocked = Ranking([example(0, answers=["p1"]), example(1)])
    batch = blocked.batch([0, 1])
    vectors = vectors_of(batch.texts)
    objective_for_first_only = batch.layout._replace(weights=np.array([1.0, 0.0], dtype=np.float32))
    blocked.loss(vectors, objective_for_first_only).backward()
    assert vectors.grad[batch.texts.index("p1")].abs().max() == 0

    free = Ranking([example(0), example(1)])
    vectors = vectors_of(batch.texts)
    free.loss(
        vectors, free.batch([0, 1]).layout._replace(weights=np.array([1.0, 0.0], dtype=np.float32))
    ).backward()
    assert vectors.grad[batch.texts.index("p1")].abs().max() > 0


def test_the_loss_is_the_weighted_mean_of_the_examples():
    def single(index):
        objective = Ranking([example(0, ["n"]), example(1, ["n"])])
        batch = objective.batch([0, 1])
        weights = np.eye(2, dtype=np.float32)[index]
        return objective.loss(vectors_of(batch.texts), batch.layout._replace(weights=weights)).item()

    weighted = Ranking([example(0, ["n"], weight=0.9), example(1, ["n"], weight=0.3)])
    batch = weighted.batch([0, 1])
    found = weighted.loss(vectors_of(batch.texts), batch.layout).item()
    assert found == pytest.approx((0.9 * single(0) + 0.3 * single(1)) / 1.2, rel=1e-5)


def with_background(examples, texts, **angles):
    """Unit vectors in the plane for queries (q..), positives (p..) and the texts of a corpus."""
    place = {text: [np.cos(angle), np.sin(angle)] for text, angle in angles.items()}
    take = lambda found: np.array([place[text] for text in found], dtype=np.float32)  # noqa: E731
    queries, positives = take([e.query for e in examples]), take([e.positive for e in examples])
    return Ranking(examples, background=Background(texts, take(texts), queries, positives, margin=0.05))


def test_the_whole_corpus_serves_as_negatives_except_likely_and_known_answers():
    texts = ["near", "p0", "known", "far", "q0", "far"]
    objective = with_background(
        [example(0, answers=["known"])], texts, q0=0.0, p0=0.5, near=0.4, known=0.9, far=1.2
    )
    blocked = objective.batch([0]).layout.outside
    assert blocked.tolist() == [[True, True, True, False, True, False]]


def test_a_background_document_adds_to_the_loss_and_its_own_vector_gets_no_gradient():
    alone, before = Ranking([example(0), example(1)]), ["p0", "p1"]
    objective = with_background(
        [example(0), example(1)], [*before, "far"], q0=0.0, q1=0.1, p0=0.2, p1=0.3, far=2.0
    )
    batch = objective.batch([0, 1])
    vectors = torch.randn(len(batch.texts), 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = objective.loss(vectors, batch.layout)
    loss.backward()
    assert loss > alone.loss(vectors, alone.batch([0, 1]).layout)
    assert set(batch.texts) == {"q0", "q1", "p0", "p1"}
    assert vectors.grad[batch.texts.index("q0")].abs().max() > 0


def test_background_scores_equal_those_of_encoding_the_documents():
    texts = ["a", "b", "c"]
    angles = {"q0": 0.0, "p0": 0.2, "a": 1.0, "b": 1.5, "c": 2.5}
    objective = with_background([example(0)], texts, **angles)
    batch = objective.batch([0])
    unit = {
        text: torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)
        for text, angle in angles.items()
    }
    found = objective.loss(torch.stack([unit[text] for text in batch.texts]), batch.layout)
    scores = torch.tensor([20 * float(unit["q0"] @ unit[text]) for text in ("p0", "a", "b", "c")])
    assert found.item() == pytest.approx(-torch.log_softmax(scores, 0)[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "columns", "labelled"),
    [
        ("CosineSimilarityLoss", 2, True),
        ("CoSENTLoss", 2, True),
        ("TripletLoss", 3, False),
        ("MultipleNegativesRankingLoss", 3, False),
    ],
)
def test_named_losses_get_the_columns_they_document(name, columns, labelled):
    pairs = make_dataset(make_corpus()).pairs
    rows, labels = columns_for(name, pairs, seed=0)
    assert {len(row) for row in rows} == {columns}
    assert (labels is not None) is labelled
    objective = LibraryLoss(name, rows, labels)
    batch = objective.batch(range(8))
    loss = objective.loss(vectors_of(batch.texts), batch.layout)
    loss.backward()
    assert torch.isfinite(loss)


def test_a_loss_without_a_single_example_says_so():
    pairs = [pair for pair in make_dataset(make_corpus()).pairs if pair.kind == "negative"]
    with pytest.raises(NotEnoughData, match="TripletLoss"):
        columns_for("TripletLoss", pairs, seed=0)
