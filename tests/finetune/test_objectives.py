import numpy as np
import pytest
import torch
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.errors import NotEnoughData
from ragtune_mcp.core.finetune.examples import RankingExample
from ragtune_mcp.core.finetune.objectives import LibraryLoss, Ranking, columns_for, objective_for, tasks_for


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


def test_the_symmetric_loss_does_not_play_two_queries_of_one_document_against_each_other():
    same = RankingExample("q9", "p0", (), frozenset({"p0"}), 1.0)
    objective = Ranking([example(0), same], symmetric=True)
    batch = objective.batch([0, 1])
    assert objective.loss(vectors_of(batch.texts), batch.layout).item() == pytest.approx(0.0, abs=1e-6)


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


def test_several_losses_at_once_are_the_mean_of_each_alone():
    pairs = make_dataset(make_corpus()).pairs
    names = ["MultipleNegativesRankingLoss", "CosineSimilarityLoss"]
    tasks = tasks_for("+".join(names), pairs, seed=0)
    alone = [objective_for({name: tasks[name]}) for name in names]
    both = objective_for(tasks)
    assert len(both) == max(len(objective) for objective in alone) > min(len(each) for each in alone)
    indices = [0, 1, 2, len(both) - 1]
    batch = both.batch(indices)
    assert len(set(batch.texts)) == len(batch.texts)
    vectors = {text: torch.randn(8) for text in batch.texts}
    expected = []
    for objective in alone:
        own = objective.batch([index % len(objective) for index in indices])
        expected.append(objective.loss(torch.stack([vectors[text] for text in own.texts]), own.layout))
    found = both.loss(torch.stack([vectors[text] for text in batch.texts]), batch.layout)
    assert found.item() == pytest.approx(sum(each.item() for each in expected) / 2, rel=1e-5)
