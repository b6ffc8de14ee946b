"""Print what the sample workspace holds and how well the base model ranks it.

python scripts/measure_sample.py
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from make_sample_feedback import CARELESS
from ragtune_mcp.core.finetune.intervals import paired_interval
from ragtune_mcp.core.finetune.metrics import ndcg
from sample_corpus import SAMPLE, Qrels, base_model, documents, qrels, queries, rank


def main() -> None:
    texts, asked = documents(), queries()
    size = sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file())
    kinds = Counter("ConPort items" if name.startswith("conport:") else "sections" for name in texts)
    words = [len(text.split()) for name, text in texts.items() if not name.startswith("conport:")]
    print(f"{size / 1024:.0f} KiB in {sum(1 for path in SAMPLE.rglob('*') if path.is_file())} files")
    print(f"{kinds['sections']} sections of {min(words)} to {max(words)} words")
    print(f"{kinds['ConPort items']} ConPort items")
    print_feedback()
    rated = rated_documents()
    for part in ("train", "test"):
        judged = qrels(part)
        ranked = rank(texts, [asked[query] for query in judged], base_model())
        values = {
            query: ndcg(list(hits), judged[query], 10) for query, hits in zip(judged, ranked, strict=True)
        }
        grades = Counter(grade for row in judged.values() for grade in row.values())
        print(f"{part}: {len(judged)} queries, judgements by grade {dict(sorted(grades.items()))}")
        print_mean(f"  base nDCG@10 {part}", list(values.values()))
        if part == "test":
            print_rated_and_unseen(judged, values, rated)


def print_feedback() -> None:
    rows = feedback()
    ratings = Counter(str(row["rating"]) for row in rows if "doc_id" in row)
    raters = Counter(row["rater"] for row in rows if "rater" in row)
    answers = sum("response" in row for row in rows)
    print(f"{len(rows)} feedback rows, {answers} of them answers without documents")
    print(f"  ratings of documents {dict(sorted(ratings.items()))}")
    print(f"  rows by rater {dict(sorted(raters.items()))}")


def print_rated_and_unseen(judged: Qrels, values: dict[str, float], rated: set[str]) -> None:
    groups: dict[bool, list[float]] = {True: [], False: []}
    for query, value in values.items():
        groups[any(document in rated for document in judged[query])].append(value)
    print_mean("  of these with a relevant document rated 4 or 5 in the feedback", groups[True])
    print_mean("  of these without", groups[False])


def print_mean(name: str, values: list[float]) -> None:
    interval = paired_interval(values)
    bounds = f"{interval.low:.4f} .. {interval.high:.4f}"
    print(f"{name}: {interval.mean:.4f}, 95 % interval {bounds}, n = {interval.n}")


def rated_documents() -> set[str]:
    """Documents somebody rated 4 or 5, the careless rater left out as the cleaning does."""
    rows = [row for row in feedback() if "doc_id" in row and row["rater"] != CARELESS]
    return {row["doc_id"] for row in rows if row["rating"] in (4, 5)}


def feedback() -> list[dict[str, Any]]:
    lines = (SAMPLE / "feedback.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


if __name__ == "__main__":
    main()
