from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.finetune.examples import group_of, is_positive
from ragtune_mcp.core.finetune.folds import make_folds


def parts(queries):
    pairs = make_dataset(make_corpus(), queries).pairs
    return [p for p in pairs if p.split == "train"], [p for p in pairs if p.split == "validation"]


@given(st.integers(4, 40), st.integers(2, 6), st.integers(0, 100))
def test_every_pair_is_held_out_once_and_no_group_stands_on_both_sides(queries, count, seed):
    train, validation = parts(queries)
    folds = make_folds(train, validation, count, seed)
    assert 1 < len(folds) <= count
    assert Counter(p for fold in folds for p in fold.held_out) == Counter((*train, *validation))
    for fold in folds:
        assert {group_of(p) for p in fold.train}.isdisjoint(group_of(p) for p in fold.held_out)
        assert Counter((*fold.train, *fold.held_out)) == Counter((*train, *validation))
        assert any(map(is_positive, fold.held_out))
        assert sum(map(is_positive, fold.train)) > 1


def test_one_fold_keeps_the_parts_as_they_are():
    train, validation = parts(20)
    assert make_folds(train, validation, 1, 0) == [(tuple(train), tuple(validation))]


def test_too_few_groups_mean_fewer_folds():
    train, validation = parts(3)
    assert len(make_folds(train, validation, 4, 0)) == 3
    assert len(make_folds(train[:2], [], 4, 0)) == 1


def test_the_seed_decides_the_division():
    train, validation = parts(30)
    assert make_folds(train, validation, 3, 1) == make_folds(train, validation, 3, 1)
    assert make_folds(train, validation, 3, 1) != make_folds(train, validation, 3, 2)
