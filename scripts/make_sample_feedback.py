"""Write sample/feedback.jsonl: ratings of eight simulated raters on the training queries of the sample.

    python scripts/make_sample_feedback.py

A session is one training query asked by one rater, who sees the ten documents that the base model really
ranks first. Rank i is looked at with probability 1 / i; what was looked at is rated with probability .6 when
the rating is extreme (1 or 5) and .4 otherwise. A rating is 1 + 4 grade / 3, plus the rater's own bias, plus
noise, rounded; one in ten is a slip, any of 1 to 5. r8 gives everything a 5. Ages are days before the day of
use, so that the ratings never fall out of the reading window. The file also holds answer ratings in the shape
of the original system (no documents, an HTML answer), ratings that are too old, and entries that no reader
may accept. The same seed and the same computer write the same bytes.
"""

from __future__ import annotations

import json
import random
from typing import Any

from sample_corpus import SAMPLE, base_model, documents, qrels, queries, rank

SEED = 20260901
SESSIONS = 520
DAYS = 60.0
MAX_GRADE = 3
WRONG_SHARE = 0.10
RATERS = {"r1": 0.0, "r2": 0.4, "r3": -0.4, "r4": 0.2, "r5": -0.6, "r6": 0.6, "r7": 0.0}
CARELESS = "r8"
COMMENTS = {
    1: (
        "wrong topic",
        "no idea why this came up",
        "not what I meant at all",
        "matches a word, not the question",
    ),
    2: ("only touches it", "wrong part of the manual", "somewhat near, but does not answer"),
    3: ("half of the answer", "useful background, still had to search on", "ok"),
    4: ("helped, a bit general", "good enough", "right section, answer in the second half"),
    5: ("exactly what I needed", "answered it", "this one, please always first", "perfect"),
}
ANSWERS = 26
RELEVANCE = {
    1: "not_relevant",
    2: "somewhat_relevant",
    3: "somewhat_relevant",
    4: "relevant",
    5: "very_relevant",
}
# (query, document, rating, rater): each is refused or skipped for a reason of its own.
BROKEN: tuple[tuple[str, str, Any, str], ...] = (
    ("brain swap: how does the new version become champion", "deployment.md#promoting-a-version", 0, "r3"),
    ("who won the taste test, deploy or keep the baseline", "ab-statistics.md#the-look-at-the-end", 6, "r2"),
    ("button mashers who give everything the same grade", "raters.md#careless-raters", "five", "r6"),
    ("list of error codes a program can rely on", "interfaces.md#error-codes", None, "r4"),
    ("", "gate.md#forgetting", 4, "r1"),
    ("and for that one?", "ollama.md#choosing-the-precision", 4, "r5"),
    ("why is the search process so light", "serving.md#a-section-that-was-removed", 5, "r2"),
)


def main() -> None:
    rng = random.Random(SEED)
    texts, asked, judged = documents(), queries(), qrels("train")
    ids = list(judged)
    run = dict(zip(ids, rank(texts, [asked[i] for i in ids], base_model()), strict=True))
    rows = _ratings(rng, ids, asked, judged, run)
    rows += [_answer(rng, asked[i], judged[i], run[i], texts) for i in rng.sample(ids, ANSWERS)]
    rows += [
        {
            "query": query,
            "doc_id": f"knowledge/{document}",
            "rating": rating,
            "comment": "",
            "rater": rater,
            "age_days": _age(rng),
        }
        for query, document, rating, rater in BROKEN
    ]
    rows += _too_old(rng, ids, asked, run)
    rows.sort(key=lambda row: (-row["age_days"], json.dumps(row, sort_keys=True)))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (SAMPLE / "feedback.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(_summary(rows, judged))


def _ratings(
    rng: random.Random, ids: list[str], asked: dict[str, str], judged: Any, run: Any
) -> list[dict[str, Any]]:
    rows = []
    popularity = [1 / (place + 10) for place in range(len(ids))]
    rng.shuffle(popularity)
    # Everybody's question is asked once; what is left falls on the popular ones.
    sessions = ids + rng.choices(ids, popularity, k=SESSIONS - len(ids))
    for query in sessions:
        rater = CARELESS if rng.random() < 1 / 8 else rng.choice(list(RATERS))
        age = _age(rng)
        for place, document in enumerate(run[query], start=1):
            if rng.random() > 1 / place:
                continue
            rating = _rating(rng, rater, judged[query].get(document, 0))
            if rng.random() < (0.6 if rating in (1, 5) else 0.4):
                rows.append(
                    {
                        "query": asked[query],
                        "query_id": query,
                        "doc_id": document,
                        "rank": place,
                        "rating": rating,
                        "comment": rng.choice(COMMENTS[rating])
                        if rater != CARELESS and rng.random() < 0.25
                        else "",
                        "rater": rater,
                        "age_days": age,
                    }
                )
    return rows


def _rating(rng: random.Random, rater: str, grade: int) -> int:
    if rater == CARELESS:
        return 5
    meant = 1 + 4 * grade / MAX_GRADE
    if rng.random() < WRONG_SHARE:
        return rng.randint(1, 5)
    return min(5, max(1, round(meant + RATERS[rater] + rng.gauss(0, 0.5))))


def _answer(
    rng: random.Random, query: str, grades: Any, ranked: Any, texts: dict[str, str]
) -> dict[str, Any]:
    """An answer rating without documents; three in four quote the section the answer came from."""
    best = max(grades, key=lambda document: (grades[document], document))
    good = rng.random() < 0.6
    source = best if good else next(document for document in ranked if document not in grades)
    quoted = rng.random() < 0.75
    body = texts[source].split("\n\n", 1)[1] if quoted else ""
    sentences = ". ".join(body.split(". ")[:3])
    html = (
        f"<p>From the documentation:</p><blockquote>{sentences}.</blockquote>"
        if quoted
        else "<p>See the manual.</p>"
    )
    rating = rng.choice((4, 5)) if good and quoted else rng.choice((1, 2))
    return {
        "session_id": "unknown",
        "rating": rating,
        "query": query,
        "response": html,
        "detailed_feedback": {
            "relevance": RELEVANCE[rating],
            "completeness": "complete" if rating == 5 else "incomplete",
            "length": "just_right" if quoted else "too_short",
            "comments": "",
        },
        "document_ids": [],
        "metadata": {},
        "conversation_context": {"history_length": 0, "is_follow_up": False},
        "age_days": _age(rng),
    }


def _too_old(rng: random.Random, ids: list[str], asked: dict[str, str], run: Any) -> list[dict[str, Any]]:
    rows = []
    for query in rng.sample(ids, 3):
        document = next(iter(run[query]))
        row = {
            "query": asked[query],
            "query_id": query,
            "doc_id": document,
            "rank": 1,
            "rating": 3,
            "comment": "",
        }
        rows.append({**row, "rater": "r7", "age_days": round(rng.uniform(120, 200), 3)})
    return rows


def _age(rng: random.Random) -> float:
    return round(rng.uniform(0.5, DAYS), 3)


def _summary(rows: list[dict[str, Any]], judged: Any) -> str:
    rated = [row for row in rows if row.get("query_id") and row["age_days"] <= DAYS]
    good = [row for row in rated if row["rating"] >= 4]
    bad = [row for row in rated if row["rating"] <= 2]
    true = sum(row["doc_id"] in judged[row["query_id"]] for row in good)
    false = sum(row["doc_id"] not in judged[row["query_id"]] for row in bad)
    queries_rated = len({row["query_id"] for row in rated})
    return (
        f"{len(rows)} rows, {len(rated)} document ratings on {queries_rated} queries; "
        f"rated 4-5: {len(good)}, of them relevant {true / len(good):.2f}; "
        f"rated 1-2: {len(bad)}, of them not relevant {false / len(bad):.2f}"
    )


if __name__ == "__main__":
    main()
