"""The model card: README.md of a tuned model, for people and for the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragtune_mcp.core.finetune.gate import GateVerdict

_FRONT = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {base}
tags:
- sentence-transformers
- feature-extraction
- sentence-similarity
- ragtune
---
"""
_USAGE = """## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["a query", "a document"], normalize_embeddings=True)
```

Its vectors must not be mixed with those of another version: the whole corpus is encoded anew for it.
"""
_LIMITS = """## Limits

- Tuned on the feedback of one project: outside its documents it is expected to be no better than the base
  model.
- Judgements cover what people rated. A document nobody rated counts as not relevant, which favours the model
  whose results were rated.
- The numbers above are offline. Whether people are better served is decided by an A/B test.
"""


@dataclass(frozen=True, slots=True)
class CardData:
    """What a card tells; counts are of pairs and of distinct queries."""

    name: str
    base: str
    dataset_id: str
    pairs: Mapping[str, int]
    queries: Mapping[str, int]
    max_tokens: int
    duration_s: float


def model_card(
    data: CardData, evaluation: Mapping[str, Any], gate: GateVerdict, chosen: Mapping[str, Any]
) -> str:
    """Markdown with front matter: data, recipe, metrics with n and interval, gate, limits."""
    parts = ", ".join(
        f"{data.pairs[name]} pairs of {data.queries[name]} queries for {name}" for name in data.pairs
    )
    return "\n".join(
        [
            _FRONT.format(base=data.base),
            f"# {data.name}\n",
            f"{data.base}, fine-tuned on the ratings that users of one project gave to its search results.\n",
            "## Data\n",
            f"Data set `{data.dataset_id}`: {parts}. Texts are cut to {data.max_tokens} tokens.\n",
            "## Recipe\n",
            *[f"- {reason}" for reason in chosen["reasons"]],
            f"- {chosen['steps']} steps in {data.duration_s:.0f} s from start to gate.\n",
            _metrics(evaluation),
            _gate(gate),
            _LIMITS,
            _USAGE,
        ]
    )


def student_card(
    name: str, teacher: str, evaluation: Mapping[str, Any], gate: GateVerdict, chosen: Mapping[str, Any]
) -> str:
    """As `model_card`, for a student; the metrics' base is its teacher."""
    return "\n".join(
        [
            _FRONT.format(base=teacher),
            f"# {name}\n",
            f"A smaller, faster student of {teacher}.\n",
            "## Recipe\n",
            *[f"- {reason}" for reason in chosen["reasons"]],
            f"- {chosen['steps']} steps.\n",
            "Below, base is the teacher and tuned the student.\n",
            _metrics(evaluation),
            _gate(gate),
            _LIMITS,
            _USAGE,
        ]
    )


def _metrics(evaluation: Mapping[str, Any]) -> str:
    if not evaluation["queries"]:
        return "## Metrics\n\nNo held-out judged query: nothing could be measured.\n"
    lines = [
        "## Metrics\n",
        f"{evaluation['queries']} held-out queries against all {evaluation['documents']} documents; "
        "gain with its paired 95 % interval.\n",
        "| metric | base | tuned | gain |",
        "|---|---|---|---|",
    ]
    for name, gain in evaluation["gain"].items():
        base, tuned = evaluation["base"][name], evaluation["tuned"][name]
        lines.append(f"| {name} | {base:.4f} | {tuned:.4f} | {_interval(gain)} |")
    lines.append(
        f"\nnDCG@10 on documents rated in training: {_interval(evaluation['seen'])}; "
        f"on all others: {_interval(evaluation['unseen'])}.\n"
    )
    return "\n".join(lines)


def _gate(gate: GateVerdict) -> str:
    return "\n".join([f"## Gate: {gate.verdict}\n", *[f"- {reason}" for reason in gate.reasons], ""])


def _interval(gain: Mapping[str, Any]) -> str:
    if gain["mean"] is None:
        return "not measured (n = 0)"
    bounds = "" if gain["low"] is None else f" ({gain['low']:+.4f} .. {gain['high']:+.4f})"
    return f"{gain['mean']:+.4f}{bounds}, n = {gain['n']}"
