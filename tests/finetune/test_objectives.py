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


def loss_of(objective, batch):
    """The loss where every text, in the batch or fixed, has the vector that `vectors_of` gives it."""
    vectors = vectors_of([*batch.texts, *objective.fixed])
    objective.fix(torch.nn.functional.normalize(vectors[len(batch.texts) :].detach(), dim=-1))
    return objective.loss(vectors[: len(batch.texts)], batch.layout)


def test_each_distinct_text_of_a_batch_is_encoded_once_and_further_negatives_once_an_epoch():
    examples = [example(0, ["n", "m"]), example(1, ["n", "p0", "m", "k"]), example(0, ["n"])]
    batch = Ranking(examples).batch([0, 1, 2])
    assert sorted(batch.texts) == ["n", "p0", "p1", "q0", "q1"]
    assert Ranking(examples).fixed == ["m", "p0", "k"]
    assert batch.layout.negatives.tolist() == [0, 2]  # the other is in the batch, with a gradient
    assert Ranking(examples, in_batch=0).fixed == ["n", "m", "p0", "k"]


def test_without_shared_documents_and_weights_it_is_the_librarys_ranking_loss():
    examples = [example(i, [f"n{i}", f"m{i}"]) for i in range(5)]
    ours = Ranking(examples)
    batch = ours.batch(range(5))
    theirs = LibraryLoss(
        "MultipleNegativesRankingLoss", [(e.query, e.positive, *e.negatives) for e in examples], None
    )
    other = theirs.batch(range(5))
    found = loss_of(ours, batch)
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
        return loss_of(objective, batch._replace(layout=batch.layout._replace(weights=weights))).item()

    weighted = Ranking([example(0, ["n"], weight=0.9), example(1, ["n"], weight=0.3)])
    batch = weighted.batch([0, 1])
    found = loss_of(weighted, batch).item()
    assert found == pytest.approx((0.9 * single(0) + 0.3 * single(1)) / 1.2, rel=1e-5)


def test_an_answer_is_no_negative_of_its_query_among_the_fixed_texts_either():
    objective = Ranking([example(0, answers=["n"]), example(1, ["n"])], in_batch=0)
    batch = objective.batch([0, 1])
    assert batch.layout.blocked[:, 2].tolist() == [True, False]


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
