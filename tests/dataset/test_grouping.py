from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dataset.samples import question

from ragtune_mcp.core.dataset.grouping import NEAR_DUPLICATE, group_queries, similarity

NEAR = [
    ("What are the symptoms of Covid-19?", "What are the most common symptoms of COVID-19?"),
    ("How do I reset the cache?", "how do i reset the cache"),
    ("How do I reset the cache?", "How do I reset the caches??"),
]
FAR = [
    ("How do I reset the cache?", "How do I index my documents?"),
    ("a", "b"),
    ("??", "!!"),
    ("重置缓存", "删除索引"),
]


@pytest.mark.parametrize(("first", "second"), NEAR)
def test_near_duplicates_share_a_group(first, second):
    groups = group_queries([first, second])
    assert groups[first] == groups[second]
    assert similarity(first, second) >= NEAR_DUPLICATE


@pytest.mark.parametrize(("first", "second"), FAR)
def test_different_questions_do_not(first, second):
    groups = group_queries([first, second])
    assert groups[first] != groups[second]
    assert similarity(first, second) < NEAR_DUPLICATE


def test_groups_are_transitive():
    chain = ["alpha beta gamma delta epsilon", "alpha beta gamma delta zeta", "alpha beta gamma eta zeta"]
    assert similarity(chain[0], chain[2]) < NEAR_DUPLICATE
    assert len(set(group_queries(chain).values())) == 1


def test_nothing_and_one_query_can_be_grouped():
    assert group_queries([]) == {}
    assert len(group_queries(["alone"])) == 1


@settings(max_examples=50)
@given(st.lists(st.text(max_size=30), max_size=30), st.randoms(use_true_random=False))
def test_groups_depend_on_the_set_of_queries_only(queries, rng):
    groups = group_queries(queries)
    shuffled = queries * 2
    rng.shuffle(shuffled)
    assert group_queries(shuffled) == groups
    assert set(groups) == set(queries)


def test_groups_are_the_components_of_the_exact_relation():
    rng = random.Random(0)
    queries = [question(i) for i in range(60)]
    queries += [q.replace(rng.choice(q.split()), rng.choice(q.split()), 1) for q in queries]
    groups = group_queries(queries)
    for i, first in enumerate(queries):
        for second in queries[:i]:
            if similarity(first, second) >= 0.75:
                assert groups[first] == groups[second]
    for group in set(groups.values()):
        members = [q for q in set(queries) if groups[q] == group]
        if len(members) > 1:
            assert all(any(similarity(q, o) >= NEAR_DUPLICATE for o in members if o != q) for q in members)


def test_a_template_does_not_chain_everything_into_one_group():
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(300)]
    queries = [
        f"how do I configure the setting named {name} in the main file of my project" for name in names
    ]

    def largest(groups):
        return Counter(groups.values()).most_common(1)[0][1]

    assert largest(group_queries(queries, (NEAR_DUPLICATE,))) == 300
    assert largest(group_queries(queries)) < 30


def test_most_groups_keep_their_id_when_queries_are_added():
    before = group_queries(question(i) for i in range(200))
    after = group_queries(
        [*before, *(question(i) for i in range(200, 400)), *(f"{q} x" for q in list(before)[:20])]
    )
    assert sum(before[q] == after[q] for q in before) >= 185
