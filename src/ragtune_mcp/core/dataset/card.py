"""The data card: one Markdown page that says what is in a data set and where it comes from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ragtune_mcp.core.dataset.assemble import Assembled
from ragtune_mcp.core.dataset.pairs import NEGATIVE_KINDS, TrainingPair
from ragtune_mcp.core.feedback.judgements import Contradiction
from ragtune_mcp.core.feedback.records import Judgement

EXAMPLES = 10
_BAR = 40


class Example(NamedTuple):
    """A query with one document users found right and one that is not: what training pulls apart."""

    positive: TrainingPair
    negative: TrainingPair


def most_informative(pairs: Sequence[TrainingPair], count: int = EXAMPLES) -> list[Example]:
    """The queries whose weightiest positive and weightiest negative weigh most together (by product)."""
    queries: dict[str, list[TrainingPair]] = defaultdict(list)
    for pair in pairs:
        if pair.kind not in ("synthetic", "easy_negative"):
            queries[pair.query].append(pair)
    found = []
    for members in queries.values():
        positives = [pair for pair in members if pair.kind == "positive"]
        negatives = [pair for pair in members if pair.kind in NEGATIVE_KINDS]
        if positives and negatives:
            found.append(Example(max(positives, key=_by_weight), max(negatives, key=_by_weight)))
    found.sort(key=lambda e: (-e.positive.weight * e.negative.weight, e.positive.query))
    return found[:count]


def render_card(
    dataset_id: str,
    made: Assembled,
    statistics: Mapping[str, Any],
    options: Mapping[str, Any],
    warnings: Sequence[str],
) -> str:
    """The card as Markdown; texts in it are excerpts of what the data set holds, masked like it."""
    parts = [
        f"# Data set {dataset_id}\n",
        f"{statistics['total_pairs']} pairs of {statistics['queries']} queries, made of "
        f"{statistics['feedback_used']} of {statistics['feedback_read']} feedback entries.\n",
        *(f"> {warning}\n" for warning in warnings),
        "## Feedback\n",
        _table(("entries", "number"), _feedback_rows(statistics)),
        "## Ratings\n",
        "Judgements of one query and document by their pooled rating, rounded:\n",
        _histogram(made.judged.judgements),
        "## Balance\n",
        _table(
            ("split", "queries", "positive", "negative", "hard", "easy", "synthetic"), _split_rows(made.pairs)
        ),
        _table(("", ""), _balance_rows(made)),
        "## Contradictions\n",
        _contradictions(made.judged.contradictions),
        "## Examples\n",
        "Queries whose right and wrong document are surest:\n",
        "\n".join(_example(example) for example in most_informative(made.pairs)) or "None yet.\n",
        "## Options\n",
        _table(("option", "value"), ((name, value) for name, value in options.items())),
    ]
    return "\n".join(parts)


def _by_weight(pair: TrainingPair) -> tuple[float, str]:
    return pair.weight, pair.document_id


def _feedback_rows(statistics: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    yield "read", statistics["feedback_read"]
    yield "used", statistics["feedback_used"]
    for reason, number in statistics["skipped"].items():
        yield f"skipped: {reason}", number


def _histogram(judgements: Iterable[Judgement]) -> str:
    counts = Counter(int(j.rating + 0.5) for j in judgements)
    top = max(counts.values(), default=1)
    lines = (f"{r}  {'#' * round(_BAR * counts[r] / top):<{_BAR}} {counts[r]}" for r in (5, 4, 3, 2, 1))
    return "```\n" + "\n".join(lines) + "\n```\n"


def _split_rows(pairs: Sequence[TrainingPair]) -> Iterator[tuple[Any, ...]]:
    for name in ("train", "validation", "test"):
        members = [pair for pair in pairs if pair.split == name]
        kinds = Counter(pair.kind for pair in members)
        yield (
            name,
            len({pair.query for pair in members}),
            *(kinds[k] for k in ("positive", "negative", "hard_negative", "easy_negative", "synthetic")),
        )


def _balance_rows(made: Assembled) -> Iterator[tuple[str, Any]]:
    sources: Counter[str] = Counter()
    for judgement in made.judged.judgements:
        sources[judgement.source] += judgement.n_opinions
    yield "opinions by kind", ", ".join(f"{n} {s}" for s, n in sorted(sources.items())) or "none"
    per_query = Counter(pair.query for pair in made.pairs)
    yield "most pairs of one query", max(per_query.values(), default=0)
    yield "groups of near-duplicate queries", len({pair.query_group for pair in made.pairs})
    yield "entries attributed by quotation", len(made.judged.attributed)
    yield "opinions replaced by a newer one of the same rater", made.judged.superseded
    yield "masked", ", ".join(f"{n} {rule}" for rule, n in sorted(made.masked.items())) or "nothing"
    if made.mined is not None:
        basis = f"{made.mined.calibrated_on} rated documents" if made.mined.calibrated_on else "the default"
        yield "margin of the hard negatives", f"{made.mined.margin:g} (from {basis})"
        yield "mining by query", ", ".join(f"{n} {o}" for o, n in sorted(made.mined.counts.items()))


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
    positive, negative = example
    return (
        f"- **{_inline(positive.query, 200)}**\n"
        f"    - {_opinion(positive)}: {_inline(positive.document, 200)}\n"
        f"    - {_opinion(negative)}: {_inline(negative.document, 200)}"
    )


def _opinion(pair: TrainingPair) -> str:
    what = f"rated {pair.rating:g}" if pair.rating is not None else pair.kind.replace("_", " ")
    return f"{what}, weight {pair.weight:.2f}, `{_inline(pair.document_id, 80).replace('`', '')}`"


def _inline(text: str, limit: int) -> str:
    flat = " ".join(text.split())
    flat = flat if len(flat) <= limit else flat[: limit - 1] + "\u2026"
    return flat.translate({ord(c): f"\\{c}" for c in "\\`*_{}[]<>|#"})


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_inline(str(cell), 120) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
