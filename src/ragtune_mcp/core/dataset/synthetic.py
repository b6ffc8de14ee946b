"""Positives nobody rated, from the structure of the documents; no language model takes part.

    heading    a document's heading asks, the document answers; for project memory that is a decision's
               summary and its rationale, a pattern's name and description, a key and its value
    keywords   the terms that single a document out (tf-idf) ask, the document answers

They are marked `synthetic`, weigh `WEIGHT` each and together at most `SHARE` of the rated positives of train,
and stand in train only. One whose query is a near-duplicate of a held-out query is left out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ragtune_mcp.core.dataset.grouping import NEAR_DUPLICATE, group_queries
from ragtune_mcp.core.dataset.negatives import document_names, is_taboo
from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.feedback.masking import mask
from ragtune_mcp.core.feedback.text import plain_query, query_key, scrub
from ragtune_mcp.core.workspace import sha256_text

WEIGHT = 0.2
SHARE = 0.5
KEYWORDS = 5
_HEADING_WORDS = 2
_HEADING_CHARS = 200
_BODY_WORDS = 20
# Terms in more documents than this say nothing about one.
_COMMON = 0.1
_ITEM_TITLE = re.compile(r"^[\w ./-]{1,60}: ")
_TERM = re.compile(r"[^\W\d_]\w{2,}")


class _Candidate(NamedTuple):
    query: str
    document_id: str
    document: str


def synthetic_pairs(
    documents: Mapping[str, str],
    pairs: Sequence[TrainingPair],
    seed: int = 42,
    *,
    held_out: Collection[str] = (),
    refused: Mapping[str, set[str]] | None = None,
) -> list[TrainingPair]:
    """Make synthetic positives to go with rated pairs.

    Args:
        documents: id -> text as it is encoded; a heading is what stands before the first blank line.
        pairs: the rated pairs with their groups and splits.
        seed: of the choice where there are more candidates than the cap allows.
        held_out: queries to keep away from, beside those that `pairs` hold out.
        refused: group or query key -> names of documents that may not be a positive there.

    Returns:
        Pairs of kind synthetic in split train.
    """
    budget = SHARE * math.fsum(p.weight for p in pairs if p.kind == "positive" and p.split == "train")
    wanted = int(budget / WEIGHT)
    candidates = _unique([*_headings(documents), *_keywords(documents)])
    avoided = sorted({*held_out, *(pair.query for pair in pairs if pair.split != "train")})
    trained = {pair.query: pair.query_group for pair in pairs if pair.split == "train"}
    groups = group_queries([*avoided, *trained, *(c.query for c in candidates)], (NEAR_DUPLICATE,))
    forbidden = {groups[query] for query in avoided}
    group_of = {groups[query]: group for query, group in trained.items()}
    barred = refused or {}
    allowed = [
        TrainingPair(
            query=c.query,
            document=c.document,
            label=1.0,
            kind="synthetic",
            weight=WEIGHT,
            document_id=c.document_id,
            query_group=group_of.get(groups[c.query], groups[c.query]),
        )
        for c in candidates
        if groups[c.query] not in forbidden
    ]
    allowed = [p for p in allowed if not _is_refused(p, barred)]
    allowed.sort(key=lambda p: hashlib.sha256(f"{seed}:{p.document_id}:{p.query}".encode()).digest())
    return allowed[:wanted]


def _is_refused(pair: TrainingPair, refused: Mapping[str, set[str]]) -> bool:
    names = document_names(pair.document_id, pair.document)
    return any(is_taboo(refused, group, names) for group in (pair.query_group, query_key(pair.query)))


def _headings(documents: Mapping[str, str]) -> Iterator[_Candidate]:
    for doc_id, text in documents.items():
        heading, blank, body = text.partition("\n\n")
        if not blank or len(heading) > _HEADING_CHARS or len(body.split()) < _BODY_WORDS:
            continue
        if doc_id.startswith("conport:"):
            heading = _ITEM_TITLE.sub("", heading)
        query = mask(plain_query(heading))
        if len(query.split()) >= _HEADING_WORDS:
            yield _Candidate(query, doc_id, mask(scrub(text)))


def _keywords(documents: Mapping[str, str]) -> Iterator[_Candidate]:
    terms = {doc_id: Counter(_TERM.findall(text.lower())) for doc_id, text in documents.items()}
    spread: Counter[str] = Counter(term for counts in terms.values() for term in counts)
    common = max(2, _COMMON * len(documents))
    for doc_id, counts in terms.items():
        score = {
            term: (1 + math.log(n)) * math.log(len(documents) / spread[term])
            for term, n in counts.items()
            if 1 < spread[term] <= common
        }
        best = sorted(score, key=lambda term: (-score[term], term))[:KEYWORDS]
        if len(best) == KEYWORDS and sum(counts.values()) >= _BODY_WORDS:
            # In the order of the text, as a person would type them.
            text = documents[doc_id].lower()
            query = " ".join(sorted(best, key=text.find))
            yield _Candidate(mask(query), doc_id, mask(scrub(documents[doc_id])))


def _unique(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """Without queries that fit several documents: a heading such as "Getting started" asks for none of
    them.
    """
    by_key: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_key.setdefault(query_key(candidate.query), []).append(candidate)
    alone = [found[0] for found in by_key.values() if len(found) == 1]
    return sorted(alone, key=lambda c: (c.document_id, sha256_text(c.query)))
