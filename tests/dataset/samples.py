"""Small pairs and corpora for the tests of the data set."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ragtune_mcp.core.dataset.pairs import Hit, TrainingPair

TOPICS = "cache index deploy login backup search report upload billing export".split()
_SYLLABLES = "ka ro mi tu se la no vi pe du ha zo".split()


def pair(
    query: str = "how is the cache reset", document: str = "The cache is reset at noon.", **fields: Any
) -> TrainingPair:
    """A positive; fields follow."""
    values: dict[str, Any] = {
        "label": 1.0,
        "kind": "positive",
        "document_id": document[:12],
        "query_group": "g1",
        **fields,
    }
    if values["kind"] in ("negative", "hard_negative", "easy_negative"):
        values["label"] = fields.get("label", 0.0)
    return TrainingPair(query=query, document=document, **values)


def question(number: int) -> str:
    """A question unlike the questions of all other numbers."""
    rng = random.Random(number)
    return " ".join("".join(rng.choices(_SYLLABLES, k=3)) for _ in range(6))


class VectorCorpus:
    """A corpus whose scores are given: query -> {document id: score}."""

    def __init__(self, texts: Mapping[str, str], scores: Mapping[str, Mapping[str, float]]) -> None:
        self._texts = dict(texts)
        self._scores = scores
        self.calls: list[int] = []

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        return {i: self._texts[i] for i in ids if i in self._texts}

    def all_texts(self) -> dict[str, str]:
        return dict(self._texts)

    def nearest(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append(len(queries))
        return [
            [
                Hit(i, self._texts[i], s)
                for i, s in sorted(self._scores[q].items(), key=lambda x: (-x[1], x[0]))
            ][:k]
            for q in queries
        ]


class BagCorpus(VectorCorpus):
    """A corpus that scores by shared words, so that any query can be asked."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        super().__init__(texts, {})
        self._bags = {i: set(t.lower().split()) for i, t in texts.items()}

    def nearest(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        found = []
        for query in queries:
            words = set(query.lower().split())
            scored = [
                (len(words & bag) / np.sqrt(len(words) * len(bag)), i)
                for i, bag in self._bags.items()
                if words & bag
            ]
            best = sorted(scored, key=lambda x: (-x[0], x[1]))[:k]
            found.append([Hit(i, self._texts[i], float(s)) for s, i in best])
        return found


# Any text a pair may hold: all of Unicode but lone surrogates, NUL and line separators included.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40) | st.sampled_from(
    [
        "=1+1",
        "'=x",
        "''",
        "'",
        "-2",
        "@cmd",
        "\t=1",
        "\r\n",
        "\0",
        "\ufeff",
        'say "hi", ok',
        "a\u2028b\x85c",
        "＝1",
        " x ",
    ]
)
PAIRS = st.builds(
    TrainingPair,
    query=TEXTS,
    document=TEXTS,
    label=st.floats(0, 1),
    kind=st.sampled_from(["positive", "negative", "hard_negative", "easy_negative", "synthetic"]),
    weight=st.floats(0, 1, exclude_min=True),
    rating=st.none() | st.floats(1, 5),
    document_id=st.just("") | TEXTS,
    query_group=TEXTS,
    split=st.sampled_from(["train", "validation", "test"]),
    feedback_ids=st.lists(TEXTS, max_size=3).map(tuple),
)
