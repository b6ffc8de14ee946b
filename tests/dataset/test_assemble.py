from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.dataset.samples import BagCorpus, pair, question
from tests.feedback.samples import entry, rated

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.dataset.assemble import Sources, assemble
from ragtune_mcp.core.dataset.export import export_pairs, load_dataset
from ragtune_mcp.core.dataset.options import DatasetOptions
from ragtune_mcp.core.dataset.pairs import NEGATIVE_KINDS
from ragtune_mcp.core.dataset.split import SliceLedger
from ragtune_mcp.core.dataset.validate import validate
from ragtune_mcp.core.errors import InvalidInput, NotEnoughData
from ragtune_mcp.core.feedback.records import FeedbackBatch, RatedDocument, Rejected
from ragtune_mcp.core.feedback.text import query_key
from ragtune_mcp.core.settings import Settings

OPEN = DatasetOptions(min_positive_samples=0, min_negative_samples=0, min_ratings=0)


def made(records, options=OPEN, sources=None, rejected=(), **fields):
    return assemble(
        FeedbackBatch(tuple(records), tuple(rejected)),
        options,
        sources or Sources(),
        lambda s, m: None,
        **fields,
    )


def skipped(result):
    return result.statistics()["skipped"]


def corpus(count=40):
    return BagCorpus({f"d{i}": f"{question(i)} {question(i + 1)} answer" for i in range(count)})


def ratings(count, *, per_query=2, low=True):
    """One entry a query: a good document, and a bad one where `low`."""
    found = []
    for i in range(count):
        documents = {f"d{i}": 5, **({f"d{(i + 7) % count}": 1} if low else {})}
        found.append(rated(f"f{i}", documents, question(i), days=-i / 100))
    return found


def test_every_entry_is_accounted_for_exactly_once():
    records = [
        *ratings(30),
        rated("neutral", {"n": 3}, question(100)),
        rated("one side", {"c": 5}, question(101), rater="x"),
        rated("other side", {"c": 1}, question(101), rater="y"),
        rated("unknown text", {"u": 5}, question(102), texts=False),
        entry("no documents", question(103), rating=5, response="Nothing quoted."),
        entry("empty", "?", rating=5),
        *(rated(f"heavy{i}", {f"h{i}": 5}, question(104)) for i in range(12)),
    ]
    result = made(records, rejected=[Rejected("old", "too_old", "x")])
    assert skipped(result) == {
        "contradictory": 2, "document_unknown": 1, "empty_query": 1, "neutral_rating": 1, "no_documents": 1,
        "query_cap": 2, "too_old": 1,
    }  # fmt: skip
    statistics = result.statistics()
    assert (
        statistics["feedback_read"] == 49 == statistics["feedback_used"] + sum(statistics["skipped"].values())
    )
    assert len({r.feedback_id for r in result.rejected}) == len(result.rejected)
    assert {i for p in result.pairs for i in p.feedback_ids} == set(result.entries)


def test_statistics_keep_the_arithmetic_of_the_contract():
    result = made(ratings(40), sources=Sources(corpus=corpus()))
    s = result.statistics()
    kinds = Counter(p.kind for p in result.pairs)
    assert s["total_pairs"] == s["positive_pairs"] + s["negative_pairs"] == len(result.pairs)
    assert s["hard_negative_pairs"] == kinds["hard_negative"] > 0
    assert s["negative_pairs"] == kinds["negative"] + kinds["hard_negative"]
    assert s["train_pairs"] + s["validation_pairs"] + s["test_pairs"] == s["total_pairs"]
    assert s["queries"] == 40


def test_hard_negatives_can_be_switched_off():
    result = made(
        ratings(40), DatasetOptions(0, 0, 0, include_hard_negatives=False), Sources(corpus=corpus())
    )
    assert result.statistics()["hard_negative_pairs"] == 0
    assert result.mined is None


def test_no_hard_negative_is_mined_for_a_test_query():
    result = made(ratings(40), sources=Sources(corpus=corpus()))
    assert {p.split for p in result.pairs if p.kind == "hard_negative"} <= {"train", "validation"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DatasetOptions(41, 0, 0), "40 positive pairs; 41 are needed"),
        (DatasetOptions(0, 60, 0), "40 negative pairs; 60 are needed"),
        (DatasetOptions(0, 0, 81), "80 usable ratings; 81 are needed"),
    ],
)
def test_fewer_samples_than_asked_for_are_refused_with_both_numbers(options, message):
    with pytest.raises(NotEnoughData, match=message) as caught:
        made(ratings(40), options)
    assert caught.value.code == "not_enough_data"
    assert "have 4" in str(caught.value) or "have 80" in str(caught.value)


def test_the_refusal_tells_what_became_of_the_entries():
    records = [*ratings(3), entry("a", "?", rating=5), entry("b", question(9), rating=5)]
    with pytest.raises(
        NotEnoughData, match="Of 5 feedback entries 3 were used; skipped: 1 empty_query, 1 no_documents"
    ):
        made(records, DatasetOptions())


def test_minimums_are_not_enforced_where_not_asked_for():
    assert made(ratings(3), DatasetOptions(), enforce_minimum=False).pairs


def test_easy_negatives_close_a_small_gap():
    result = made(ratings(40), DatasetOptions(0, 50, 0))
    assert Counter(p.kind for p in result.pairs)["easy_negative"] == 10
    assert result.statistics()["negative_pairs"] == 50


def test_easy_negatives_do_not_stand_in_for_ratings_nobody_gave():
    with pytest.raises(NotEnoughData, match="0 negative pairs; 4 are needed"):
        made(ratings(40, low=False), DatasetOptions(0, 4, 0))


def test_a_gap_is_not_closed_where_nobody_rated_low():
    sources = Sources(corpus=corpus())
    mined = made(ratings(40, low=False), sources=sources).statistics()["negative_pairs"]
    with pytest.raises(NotEnoughData, match=f"{mined} negative pairs; {mined + 1} are needed"):
        made(ratings(40, low=False), DatasetOptions(0, mined + 1, 0), sources)


def test_a_relevant_document_beyond_the_cap_is_not_mined_as_a_negative():
    # Equal weights: the cap keeps the first ten ids. The four others score low enough to be mined.
    heavy = [rated(f"f{i}", {f"h{i:02}": 5}, question(0), texts=False) for i in range(14)]
    texts = {
        f"h{i:02}": f"{question(0)} {i}" if i < 10 else f"{question(0)[:20]} and more {i}" for i in range(14)
    }
    index = BagCorpus(texts | {"x": question(0)[:20] + " otherwise so"})
    found = made([*heavy, *ratings(20)[1:]], sources=Sources(corpus=index, documents=index))
    mined = {p.document_id for p in found.pairs if p.query == question(0) and p.kind == "hard_negative"}
    assert mined == {"x"}


def test_hard_negatives_count_toward_the_minimum():
    sources = Sources(corpus=corpus())
    assert (
        made(ratings(40, low=False), DatasetOptions(0, 20, 0), sources).statistics()["negative_pairs"] >= 20
    )


def headed():
    return BagCorpus(
        {
            f"s{i}": f"Heading {question(i + 300)}\n\n{' '.join(question(i + j) for j in range(400, 405))}"
            for i in range(9)
        }
    )


def test_synthetic_pairs_are_added_to_train_only_when_asked_for():
    options = DatasetOptions(0, 0, 0, include_synthetic=True)
    result = made(ratings(40), options, Sources(documents=headed()))
    synthetic = [p for p in result.pairs if p.kind == "synthetic"]
    assert len(synthetic) == result.statistics()["synthetic_pairs"] > 0
    assert {p.split for p in synthetic} == {"train"}
    assert made(ratings(40), sources=Sources(documents=headed())).statistics()["synthetic_pairs"] == 0


def test_documents_can_be_kept_apart():
    records = [rated(f"f{i}", {f"d{i % 5}": 5, f"x{i}": 5}, question(i)) for i in range(30)]
    result = made(records, DatasetOptions(0, 0, 0, keep_documents_apart=True))
    tested = {p.document_id for p in result.pairs if p.split == "test" and p.kind == "positive"}
    assert not tested & {p.document_id for p in result.pairs if p.split != "test"}


@pytest.mark.parametrize("copies", ["", "copy of "], ids=["by id", "by text"])
def test_no_negative_and_no_synthetic_pair_holds_a_document_kept_apart(copies):
    # Headings ask what nobody rated; the documents of all 40 questions are positives of one query each.
    texts = {f"d{i}": f"Heading {question(i + 300)}\n\n{question(i)} {question(i + 1)} so" for i in range(40)}
    body = " ".join(["word"] * 20)
    texts = {i: f"{text} {body}" for i, text in texts.items()}
    records = [
        entry(f"f{i}", question(i), documents=(
            RatedDocument(f"d{i}", text=texts[f"d{i}"], rating=5),
            RatedDocument(f"low{i}", text=f"Low {question(i + 100)}.", rating=1),
        ))
        for i in range(40)
    ]  # fmt: skip
    index = BagCorpus(texts | {f"{copies}{i}": text for i, text in texts.items()})
    options = DatasetOptions(0, 0, 0, include_synthetic=True, keep_documents_apart=True)
    result = made(records, options, Sources(index, index))
    tested = {p.document for p in result.pairs if p.split == "test" and p.kind == "positive"}
    others = [p for p in result.pairs if p.split != "test"]
    kinds = {p.kind for p in others}
    # A heading that two documents have asks for neither.
    assert tested and "hard_negative" in kinds and ("synthetic" in kinds) == (not copies)
    assert not tested & {p.document for p in others}
    assert set(result.excluded[""]) == {
        p.document_id for p in result.pairs if p.split == "test" and p.kind == "positive"
    }


@pytest.mark.parametrize(("rating", "kind"), [(1, "negative"), (3, None)])
@pytest.mark.parametrize("heading", ["{}", "{}!", "Please {}"], ids=["same", "same words", "similar"])
def test_no_synthetic_positive_contradicts_a_rating(tmp_path, rating, kind, heading):
    asked = question(0)
    text = f"{heading.format(asked)}\n\n{' '.join(['word'] * 20)}"
    records = [*ratings(40)[1:], rated("own", {"x": 5}, asked)]
    # In train by its hash, among so many: the other splits refuse synthetic pairs anyway.
    records.append(entry("low", asked, documents=(RatedDocument("s", text=text, rating=rating),)))
    options = DatasetOptions(0, 0, 0, include_hard_negatives=False, include_synthetic=True)
    result = made(records, options, Sources(documents=BagCorpus({"s": text})))
    assert {p.split for p in result.pairs if p.query == asked} == {"train"}
    assert [p.kind for p in result.pairs if p.document_id == "s"] == ([kind] if kind else [])
    export_pairs(result.pairs, tmp_path / "x.csv")
    assert validate(load_dataset(tmp_path / "x.csv")).problems == ()


def test_by_time_the_newest_questions_are_tested_on():
    result = made(ratings(40), DatasetOptions(0, 0, 0, by_time=True))
    assert {p.query for p in result.pairs if p.split == "test"} == {question(i) for i in range(13)}


def test_secrets_reach_neither_pairs_nor_the_rejected_list():
    records = [
        rated("f1", {"d": 5}, "who is ann@mail.com here", comment="bob@mail.com"),
        rated("f2", {"carl@mail.com": 5}, "another question", texts=False),
    ]
    result = made(records)
    assert "mail.com" not in json.dumps([result.pairs[0].query, *(r.detail for r in result.rejected)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"days_back": 0}, "days_back 0"),
        ({"min_ratings": -1}, "min_ratings -1"),
        ({"export_format": "xml"}, "'xml'"),
        ({"positive_threshold": 2.0}, "positive threshold 2 must be above 3 and the negative one 2 below 3"),
        ({"positive_threshold": 3.0}, "positive threshold 3 must be above 3"),
        ({"negative_threshold": 3.0}, "negative one 3 below 3"),
    ],
)
def test_options_out_of_range_are_refused(fields, message):
    with pytest.raises(InvalidInput, match=message):
        DatasetOptions(**fields)


@pytest.mark.parametrize(("name", "value"), [("positive", 3), ("negative", 3), ("positive", 6)])
def test_thresholds_of_the_environment_lie_on_their_side_of_3(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(f"{name.upper()}_RATING_THRESHOLD", str(value))
    with pytest.raises(InvalidInput, match=f"{name.upper()}_RATING_THRESHOLD has the value '{value}'"):
        Settings.load(tmp_path)


ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 12),  # query
        st.integers(0, 8) | st.none(),  # document; None for the one whose heading asks the query
        st.integers(1, 5),  # rating
        st.sampled_from(["", "x", "y", "z"]),
        st.floats(0, 200),  # age
        st.sampled_from(["", "?", " please"]),  # spelling
        st.booleans(),  # rates the answer instead
    ),
    max_size=60,
)


# Every document has a heading that asks what some entries ask, so that synthetic pairs meet ratings.
LIBRARY = {f"d{i}": f"{question(i)}!\n\n{f'Body of document {i}. ' * 6}" for i in range(9)}
OPTIONS = st.builds(
    DatasetOptions,
    st.just(0),
    st.just(0),
    st.just(0),
    include_hard_negatives=st.booleans(),
    include_synthetic=st.booleans(),
    keep_documents_apart=st.booleans(),
    by_time=st.booleans(),
    positive_threshold=st.sampled_from([3.5, 4.0, 5.0]),
    negative_threshold=st.sampled_from([1.0, 2.0, 2.5]),
)


def _records(drawn):
    for i, (q, d, rating, rater, age, spelling, answer) in enumerate(drawn):
        name = f"d{q % 9 if d is None else d}"
        document = RatedDocument(name, text=LIBRARY[name], rating=None if answer else rating)
        yield entry(
            f"f{i}",
            question(q) + spelling,
            days=-age,
            rater=rater,
            documents=(document,),
            rating=rating if answer else None,
        )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENTRIES, OPTIONS, st.randoms(use_true_random=False))
def test_any_feedback_becomes_a_valid_data_set_that_does_not_depend_on_its_order(
    tmp_path, drawn, options, rng
):
    records = list(_records(drawn))
    library = BagCorpus(LIBRARY)
    sources = Sources(corpus=library, documents=library)
    result = made(records, options, sources)

    statistics = result.statistics()
    assert (
        statistics["feedback_read"]
        == statistics["feedback_used"] + sum(statistics["skipped"].values())
        == len(records)
    )
    splits: dict[str, set[str]] = {}
    sides: dict[tuple[str, str], set[bool]] = {}
    for p in result.pairs:
        splits.setdefault(p.query_group, set()).add(p.split)
        sides.setdefault((query_key(p.query), p.document), set()).add(p.kind in NEGATIVE_KINDS)
        assert 0 < p.weight <= 1 and 0 <= p.label <= 1
        assert p.feedback_ids or p.kind == "synthetic"
    assert all(len(s) == 1 for s in splits.values())
    assert all(len(s) == 1 for s in sides.values())
    if options.keep_documents_apart:
        tested = {p.document_id for p in result.pairs if p.split == "test" and p.kind == "positive"}
        assert not tested & {p.document_id for p in result.pairs if p.split != "test"}
    for group, excluded in result.excluded.items():
        mined = {p.document_id for p in result.pairs if p.query_group == group and p.rating is None}
        assert not excluded & mined

    shuffled = records.copy()
    rng.shuffle(shuffled)
    again = made(shuffled, options, sources)
    assert (again.pairs, again.rejected) == (result.pairs, result.rejected)
    if result.pairs:
        for name, pairs in (("a.csv", result.pairs), ("b.csv", again.pairs)):
            export_pairs(pairs, tmp_path / name, details={"statistics": statistics})
        assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
        assert validate(load_dataset(tmp_path / "a.csv")).problems == ()


OTHER_PROCESS = """
import hashlib, sys
from dataclasses import astuple
from tests.dataset.test_assemble import DatasetOptions, Sources, corpus, headed, made, ratings
options = DatasetOptions(0, 80, 0, include_synthetic=True)
result = made(ratings(40), options, Sources(corpus=corpus(), documents=headed()))
print(sorted({p.kind for p in result.pairs}))
print(hashlib.sha256(repr([astuple(p) for p in result.pairs]).encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_pairs_in_every_process():
    told = [
        subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert "'easy_negative', 'hard_negative', 'negative', 'positive', 'synthetic'" in told[0]


def test_feedback_added_later_moves_no_query_between_test_and_training(tmp_path):
    db = Database(tmp_path / "ragtune.db")
    sources = Sources(ledger=SliceLedger(db))
    rng = random.Random(3)
    held_out: set[str] = set()
    trained: set[str] = set()
    records = []
    for round_ in range(6):
        start = len(records)
        records += [
            rated(
                f"f{i}", {f"d{i}": 5}, question(rng.randrange(60)) + rng.choice(["", " now", " please now"])
            )
            for i in range(start, start + 8)
        ]
        result = made(records, sources=sources)
        now_tested = {p.query for p in result.pairs if p.split == "test"}
        now_trained = {p.query for p in result.pairs if p.split != "test"}
        assert not held_out & now_trained
        assert not trained & now_tested
        held_out |= now_tested
        trained |= now_trained
        sources.ledger.record(result.pairs, f"t{round_}")
    assert held_out and trained
    db.close()


def test_a_group_with_a_query_held_out_and_one_trained_on_is_left_out_and_counted(tmp_path):
    db = Database(tmp_path / "ragtune.db")
    ledger = SliceLedger(db)
    asked = question(0)
    held, bridge, trained = asked, f"{asked} or so", f"{asked} or so they say"
    ledger.record([pair(held, split="test"), pair(trained)], "earlier")
    records = [
        *ratings(40)[1:],
        *(rated(f"x{i}", {f"x{i}": 5}, query) for i, query in enumerate((held, bridge, trained))),
    ]
    text = f"{bridge} please\n\n{' '.join(['word'] * 20)}"
    options = DatasetOptions(0, 0, 0, include_synthetic=True)
    result = made(records, options, Sources(ledger=ledger, documents=BagCorpus({"s": text})))
    assert not {p.query for p in result.pairs if p.query.startswith(asked)}
    assert skipped(result) == {"held_out_and_trained": 3}
    assert result.statistics()["feedback_used"] == 39
    db.close()
