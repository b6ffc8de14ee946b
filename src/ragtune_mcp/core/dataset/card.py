"""The data card: one Markdown page that says what is in a data set and where it comes from."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ragtune_mcp.core.dataset.assemble import Assembled
from ragtune_mcp.core.dataset.pairs import NEGATIVE_KINDS, TrainingPair
from ragtune_mcp.core.feedback.judgements import Contradiction

EXAMPLES = 10
# Of the cosine in the training loss.
SCALE = 20.0
# About what the base model reads of a document.
READ_WORDS = 200
_BAR = 40
_LIMITS = """\
- Only what was shown was rated: a document without a rating is not a wrong one, and the ratings follow the
  ranking of the model that served.
- Mined negatives carry no rating; some are relevant. How many to expect is measured in docs/training-data.md.
- Ratings of a whole answer and signals are weak evidence about single documents; their weights say how weak.
- Texts are masked for secrets, mail addresses and personal numbers; names and postal addresses stay.
"""
_PULL = {
    True: "sure on both sides, and the wrong document near or above the right one",
    False: "sure on both sides; without an index nothing tells what the serving model makes of them",
}

Scores = Mapping[tuple[str, str], float]


class Example(NamedTuple):
    """A query with a document users found right and one that is not, and their cosines where known."""

    positive: TrainingPair
    negative: TrainingPair
    scores: tuple[float | None, float | None]


def most_informative(
    pairs: Sequence[TrainingPair], scores: Scores | None = None, count: int = EXAMPLES
) -> list[Example]:
    """Where training pulls hardest, one example a query.

    Both weights, times the share of the contrastive gradient at scale `SCALE`: it is near 1 where the serving
    model prefers the wrong document and near 0 where it already tells the two apart. Without scores the
    weights alone count.

    Args:
        pairs: of a data set; those of test do not train and are left out.
        scores: (query, document id) -> cosine under the serving model; a document that is missing was not
            among the nearest.
        count: how many.

    Returns:
        The examples, most informative first.
    """
    scores = scores or {}
    queries: dict[str, list[TrainingPair]] = defaultdict(list)
    for pair in pairs:
        if pair.split != "test" and pair.kind not in ("synthetic", "easy_negative"):
            queries[pair.query].append(pair)

    def pull(example: Example) -> float:
        right, wrong = (score or 0.0 for score in example.scores)
        weight = example.positive.weight * example.negative.weight
        return weight / (1 + math.exp(SCALE * (right - wrong))) if scores else weight

    found = []
    for query, members in queries.items():
        contrasts = [
            Example(
                right, wrong, (scores.get((query, right.document_id)), scores.get((query, wrong.document_id)))
            )
            for right in members
            if right.kind == "positive"
            for wrong in members
            if wrong.kind in NEGATIVE_KINDS
        ]
        if contrasts:
            best = max(contrasts, key=lambda e: (pull(e), e.positive.document_id, e.negative.document_id))
            found.append((-pull(best), query, best))
    return [best for _, _, best in sorted(found, key=lambda f: f[:2])[:count]]


def render_card(
    dataset_id: str,
    made: Assembled,
    statistics: Mapping[str, Any],
    options: Mapping[str, Any],
    warnings: Sequence[str],
) -> str:
    """The card as Markdown; texts in it are excerpts of what the data set holds, masked like it."""
    scores = made.mined.scores if made.mined is not None else {}
    parts = [
        f"# Data set {dataset_id}\n",
        f"{statistics['total_pairs']} pairs of {statistics['queries']} queries, made of "
        f"{statistics['feedback_used']} of {statistics['feedback_read']} feedback entries.\n",
        *(f"> {warning}\n" for warning in warnings),
        "## Feedback\n",
        _table(("entries", "number"), _feedback_rows(statistics)),
        "## Ratings\n",
        "Opinions by the rating given, or stood for by a signal:\n",
        _histogram(made.judged.given),
        "Pooled by query and document, rounded:\n",
        _histogram(Counter(j.rating for j in made.judged.judgements)),
        _table(("", ""), _opinion_rows(made)),
        "## Balance\n",
        _table(
            ("split", "share", "groups", "queries", "positive", "negative", "hard", "easy", "synthetic"),
            _split_rows(made.pairs),
        ),
        _table(("", ""), _balance_rows(made)),
        "## Contradictions\n",
        _contradictions(made.judged.contradictions),
        "## Examples\n",
        f"Where training pulls hardest: {_PULL[bool(scores)]}. A mistaken rating does most harm here, so they are "
        "worth a look.\n",
        "\n".join(_example(example) for example in most_informative(made.pairs, scores)) or "None yet.",
        "\n## Limits\n",
        _LIMITS,
        "## Options\n",
        _table(("option", "value"), ((name, value) for name, value in options.items())),
    ]
    return "\n".join(parts)


def _feedback_rows(statistics: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield "read", statistics["feedback_read"]
    yield "used", statistics["feedback_used"]
    for reason, number in statistics["skipped"].items():
        yield f"skipped: {reason}", number


def _histogram(ratings: Mapping[float, int]) -> str:
    counts: Counter[int] = Counter()
    for rating, number in ratings.items():
        counts[int(rating + 0.5)] += number
    top = max(counts.values(), default=1)
    lines = (f"{r}  {'#' * round(_BAR * counts[r] / top):<{_BAR}} {counts[r]}" for r in (5, 4, 3, 2, 1))
    return "```\n" + "\n".join(lines) + "\n```\n"


def _opinion_rows(made: Assembled) -> Iterator[tuple[str, Any]]:
    judged = made.judged
    if judged.period is not None:
        yield "given", f"{judged.period[0]:%Y-%m-%d} to {judged.period[1]:%Y-%m-%d}"
    sources: Counter[str] = Counter()
    for judgement in judged.judgements:
        sources[judgement.source] += judgement.n_opinions
    yield "opinions by kind", ", ".join(f"{n} {s}" for s, n in sorted(sources.items())) or "none"
    yield "known raters", judged.raters
    several = sum(j.n_opinions > 1 for j in judged.judgements)
    yield "judged by several", _share(several, len(judged.judgements))
    yield "of these all on one side of 3", _share(several - len(judged.contradictions), several)
    yield "opinions replaced by a newer one of the same rater", judged.superseded
    yield "entries attributed by quotation", len(judged.attributed)
    yield "masked", ", ".join(f"{n} {rule}" for rule, n in sorted(made.masked.items())) or "nothing"


def _split_rows(pairs: Sequence[TrainingPair]) -> Iterator[tuple[Any, ...]]:
    for name in ("train", "validation", "test"):
        members = [pair for pair in pairs if pair.split == name]
        kinds = Counter(pair.kind for pair in members)
        yield (
            name,
            f"{len(members) / max(1, len(pairs)):.0%}",
            len({pair.query_group for pair in members}),
            len({pair.query for pair in members}),
            *(kinds[k] for k in ("positive", "negative", "hard_negative", "easy_negative", "synthetic")),
        )


def _balance_rows(made: Assembled) -> Iterator[tuple[str, Any]]:
    queries: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in made.pairs:
        queries[pair.query]["wrong" if pair.kind in NEGATIVE_KINDS else "right"] += 1
    both = sum(bool(sides["right"] and sides["wrong"]) for sides in queries.values())
    yield "queries with a right and a wrong document", _share(both, len(queries))
    yield "most pairs of one query", max((sides.total() for sides in queries.values()), default=0)
    tested = {p.document_id for p in made.pairs if p.split == "test" and p.kind == "positive"}
    trained = {p.document_id for p in made.pairs if p.split == "train"}
    yield "right documents of test that also stand in train", _share(len(tested & trained), len(tested))
    texts = {p.document_id: p.document for p in made.pairs}
    long = sum(len(text.split()) > READ_WORDS for text in texts.values())
    yield f"documents over {READ_WORDS} words, read in part", _share(long, len(texts))
    if made.mined is not None:
        basis = f"{made.mined.calibrated_on} rated documents" if made.mined.calibrated_on else "the default"
        yield "margin of the hard negatives", f"{made.mined.margin:g} (from {basis})"
        yield "mining by query", ", ".join(f"{n} {o}" for o, n in sorted(made.mined.counts.items()))
        yield (
            "rated contrasts the serving model ranks wrongly",
            _share(*_misranked(made.pairs, made.mined.scores)),
        )


def _misranked(pairs: Sequence[TrainingPair], scores: Scores) -> tuple[int, int]:
    """Of the (right, wrong) documents of a query that users rated and the index retrieved: wrongly ordered, all."""
    rated: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        score = scores.get((pair.query, pair.document_id))
        if score is not None and pair.rating is not None:
            rated[pair.query][pair.kind].append(score)
    orders = [wrong >= right for q in rated.values() for right in q["positive"] for wrong in q["negative"]]
    return sum(orders), len(orders)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "0 of 0"


def _contradictions(found: Sequence[Contradiction]) -> str:
    if not found:
        return "None.\n"
    resolved = sum(c.resolved for c in found)
    heavy = sorted(found, key=lambda c: (-len(c.ratings), c.query, c.document_id))[:EXAMPLES]
    rows = (
        (
            c.query,
            c.document_id,
            " ".join(f"{r:g}" for r in c.ratings),
            f"{c.rating:g}" if c.resolved else "left out",
        )
        for c in heavy
    )
    head = f"{len(found)} times opinions stood on both sides of 3; {resolved} were resolved by weight.\n\n"
    return head + _table(("query", "document", "ratings", "pooled"), rows)


def _example(example: Example) -> str:
    right, wrong = example.positive, example.negative
    return (
        f"- **{_inline(right.query, 200)}**\n"
        f"    - {_opinion(right, example.scores[0])}: {_inline(right.document, 200)}\n"
        f"    - {_opinion(wrong, example.scores[1])}: {_inline(wrong.document, 200)}"
    )


def _opinion(pair: TrainingPair, score: float | None) -> str:
    what = f"rated {pair.rating:g}" if pair.rating is not None else pair.kind.replace("_", " ")
    cosine = "" if score is None else f", cosine {score:.2f}"
    document_id = " ".join(pair.document_id.replace("`", "").split())[:80]
    return f"{what}, weight {pair.weight:.2f}{cosine}, `{document_id}`"


def _inline(text: str, limit: int) -> str:
    flat = " ".join(text.split())
    flat = flat if len(flat) <= limit else flat[: limit - 1] + "\u2026"
    return flat.translate({ord(c): f"\\{c}" for c in "\\`*_{}[]<>|#"})


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_inline(str(cell), 120) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
