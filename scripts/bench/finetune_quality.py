"""Gain of fine-tuning on held-out queries, by collection, amount of feedback, recipe and seed; and the gate.

    python scripts/bench/finetune_quality.py run [--only feedbackqa] [--seeds 0 1 2 3 4] [--recipes auto ...]
    python scripts/bench/finetune_quality.py table

`run` takes ratings through the product's own stages: pooled, paired, split, trained and gated by `fine_tune`
on nothing but feedback. The truth is measured apart: judgements of test queries that never gave feedback,
each against the whole corpus. One JSON line per run is appended to --results; runs already in the file are
skipped, so it can be stopped and repeated. `table` prints the Markdown tables of docs/fine-tuning.md from
that file. A worse model is one whose true difference has one-sided p < .05.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
from bench_data import (
    DATA,
    ROOT,
    Collection,
    judged_ratings,
    load_collection,
    processor,
    real_ratings,
    simulated_ratings,
    to_dataset,
)
from safetensors.torch import load_file

from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.finetune import tuning
from ragtune_mcp.core.finetune.backbone import FastBackbone
from ragtune_mcp.core.finetune.base import BaseModel, resolve_base_model
from ragtune_mcp.core.finetune.bert import BertShape
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.evaluation import Comparison, Vectors, compare, restricted
from ragtune_mcp.core.finetune.examples import is_positive
from ragtune_mcp.core.finetune.intervals import sign_flip_p
from ragtune_mcp.core.finetune.similarity import correlations

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = ROOT / "scripts" / "bench" / "results" / "finetune_quality.jsonl"
# Those of the interpolations, of which one is kept and scored again.
KEPT_WEIGHTS = 5
ADAPTER, QUERY_ADAPTER = "linear adapter", "linear adapter, queries only"
CEILING = "auto, all judgements"
RECIPES: dict[str, dict[str, Any]] = {
    "auto": {},
    # The specification's defaults, taken literally.
    "CosineSimilarityLoss": {"loss_function": "CosineSimilarityLoss"},
    "CoSENTLoss": {"loss_function": "CoSENTLoss", "warmup_steps": 10},
    "TripletLoss": {"loss_function": "TripletLoss", "warmup_steps": 10},
    "MultipleNegativesRankingLoss": {"loss_function": "MultipleNegativesRankingLoss", "warmup_steps": 10},
    ADAPTER: {},
    QUERY_ADAPTER: {},
    CEILING: {},
}


class Setting(NamedTuple):
    """A collection and how much feedback of which kind: `size` is ratings for real, searches for simulated;
    0 for all there are.
    """

    collection: str
    size: int
    noise: str


SETTINGS = (
    Setting("feedbackqa", 100, "real"),
    Setting("feedbackqa", 500, "real"),
    Setting("feedbackqa", 0, "real"),
    Setting("scrapy_docs", 1000, "mild"),
    Setting("peps", 1000, "mild"),
    Setting("cranfield", 1000, "mild"),
    Setting("scrapy_docs", 1000, "clean"),
    Setting("scrapy_docs", 1000, "fbqa"),
    Setting("scrapy_docs", 250, "mild"),
    Setting("scrapy_docs", 250, "fbqa"),
    Setting("peps", 1000, "fbqa"),
    Setting("cranfield", 1000, "fbqa"),
    Setting("cranfield", 300, "mild"),
    Setting("cranfield", 300, "fbqa"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", default=[], help="collection[:size[:noise]] to run, default all")
    parser.add_argument("--recipes", nargs="*", default=["auto"], choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--stsb", action="store_true", help="also the change of STS-B test Spearman")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print_tables(read_results(arguments.results))
        return
    key = (*Setting._fields, "recipe", "seed")
    done = {tuple(result[name] for name in key) for result in read_results(arguments.results)}
    for setting in SETTINGS:
        name = ":".join(map(str, setting))
        if arguments.only and not any(name == only or name.startswith(f"{only}:") for only in arguments.only):
            continue
        for seed in arguments.seeds:
            for recipe in arguments.recipes:
                if (*setting, recipe, seed) not in done:
                    record(arguments.results, run(setting, recipe, seed, arguments))


def run(setting: Setting, recipe: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run and what it truly gained."""
    collection = _loaded(setting.collection, arguments.data)
    before = _base_vectors(setting.collection, arguments.data)
    if recipe == CEILING:
        ratings = judged_ratings(collection, seed)
    elif setting.noise == "real":
        ratings = real_ratings(collection, setting.size, seed)
    else:
        shown = base_run(setting.collection, arguments.data)
        ratings = simulated_ratings(collection, shown, setting.size, setting.noise, seed, arguments.data)
    dataset = to_dataset(f"{collection.name}-{seed}", ratings)
    found: dict[str, Any] = {}
    if recipe in (ADAPTER, QUERY_ADAPTER):
        after = adapted(before, dataset, collection, seed, documents_too=recipe == ADAPTER)
    else:
        config = FineTuningConfig(random_seed=seed, **RECIPES[recipe])
        backbone = _backbone(setting.collection, config.loss_function == "auto")
        folder = Path(tempfile.mkdtemp(prefix="ragtune-quality-"))
        try:
            with mock.patch.object(tuning, "open_backbone", lambda *_, **__: backbone):
                result = tuning.fine_tune(
                    dataset,
                    collection.corpus,
                    _base_model(),
                    config,
                    folder / "model",
                    report=lambda *_: None,
                    cancelled=lambda: None,
                    checkpoints=None,
                )
            weights = _weights(backbone, result.model_path)
            after = vectors(collection, backbone, weights)
            found = {
                "verdict": result.gate.verdict,
                "gate_queries": result.gate.details["gain"]["n"],
                "probe_drop": result.gate.details["probe_base"] - result.gate.details["probe_tuned"],
                "agreement": result.gate.details["neighbour_agreement"],
                "alpha": result.gate.details["alpha"],
            }
            if arguments.stsb:
                found["stsb"] = stsb(backbone, weights, arguments.data) - stsb(backbone, None, arguments.data)
        finally:
            shutil.rmtree(folder)
    return {
        **setting._asdict(),
        "recipe": recipe,
        "seed": seed,
        "processor": processor(),
        "ratings": len(ratings),
        **truth(before, after, collection, dataset),
        **found,
    }


def truth(before: Vectors, after: Vectors, collection: Collection, dataset: Dataset) -> dict[str, Any]:
    """True gain in nDCG@10 over all test queries, and on documents rated and not rated."""
    qrels = {query: collection.qrels[query] for query in collection.test}
    rated = {pair.document_id for pair in dataset.pairs if pair.split == "train" and pair.rating}
    runs = before.rank(10), after.rank(10)

    def compared(inside: bool) -> Comparison:
        return compare(*runs, restricted(qrels, rated, inside=inside))

    overall = compare(*runs, qrels)
    differences, gain = overall.differences(), overall.gain()
    return {
        "base": float(np.mean(list(overall.base["ndcg@10"].values()))),
        "gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "n": len(differences),
        "p_worse": sign_flip_p(differences, "less"),
        "seen": compared(True).gain().mean,
        "unseen": compared(False).gain().mean,
    }


class KeptBackbone(FastBackbone):
    """A model that reads each text of a collection once for all runs: what the frozen layers and the base
    weights make of it is kept, and what the last weights made of it. The numbers are the same, a run takes
    half the time.
    """

    def __init__(self, folder: Path, shape: BertShape) -> None:
        super().__init__(folder, shape, 512, low_precision=True)
        self._by_weights: dict[str, dict[str, np.ndarray]] = {}

    def freeze(self, layers: int, keep_bytes: int) -> None:
        if layers != self.frozen:
            super().freeze(layers, 1 << 34)

    def encode(self, texts, weights=None, tick=None):  # type: ignore[no-untyped-def]
        key = "" if weights is None else fingerprint(weights)
        known = self._by_weights[key] = self._by_weights.pop(key, {})
        for oldest in [key for key in self._by_weights if key][:-KEPT_WEIGHTS]:
            del self._by_weights[oldest]
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        found = super().encode(fresh, weights, tick)
        known.update(zip(fresh, found, strict=True))
        return np.stack([known[text] for text in texts]) if len(texts) else found


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()


def vectors(
    collection: Collection, backbone: FastBackbone, weights: Mapping[str, Tensor] | None = None
) -> Vectors:
    """A model's view of the corpus and the test queries."""
    queries = backbone.encode([collection.queries[query] for query in collection.test], weights)
    documents = backbone.encode(list(collection.corpus.values()), weights)
    return Vectors(dict(zip(collection.test, queries, strict=True)), documents, list(collection.corpus))


def adapted(
    before: Vectors, dataset: Dataset, collection: Collection, seed: int, *, documents_too: bool
) -> Vectors:
    """One matrix over the base model's vectors, trained on the positives with in-batch negatives."""
    import torch

    torch.manual_seed(seed)
    pairs = [pair for pair in dataset.pairs if pair.split == "train" and is_positive(pair)]
    place = {document: index for index, document in enumerate(before.ids)}
    backbone = _backbone(collection.name, True)
    anchors = torch.from_numpy(backbone.encode([pair.query for pair in pairs]))
    positives = torch.from_numpy(before.documents[[place[pair.document_id] for pair in pairs]])
    documents = np.array([place[pair.document_id] for pair in pairs])
    matrix = torch.eye(anchors.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([matrix], lr=1e-3, weight_decay=0.0)
    for _ in range(20):
        for batch in torch.randperm(len(pairs)).split(32):
            left = torch.nn.functional.normalize(anchors[batch] @ matrix)
            right = positives[batch]
            if documents_too:
                right = torch.nn.functional.normalize(right @ matrix)
            same = torch.from_numpy(documents[batch][:, None] == documents[batch][None, :])
            other = same & ~torch.eye(len(batch), dtype=torch.bool)
            scores = (20 * left @ right.T).masked_fill(other, -torch.inf)
            loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(batch)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights = matrix.detach().numpy()

    def moved(rows: np.ndarray) -> np.ndarray:
        return (rows @ weights) / np.linalg.norm(rows @ weights, axis=1, keepdims=True)

    queries = moved(np.stack(list(before.queries.values())))
    seen = moved(before.documents) if documents_too else before.documents
    return Vectors(dict(zip(before.queries, queries, strict=True)), seen, list(before.ids))


@functools.cache
def _base_model() -> BaseModel:
    return resolve_base_model("all-MiniLM-L6-v2", ROOT, allow_downloads=False)


@functools.cache
def _loaded(name: str, data: Path) -> Collection:
    return load_collection(name, data)


@functools.cache
def _backbone(collection: str, frozen: bool) -> KeptBackbone:
    """One per collection and kind of training, so that neither undoes what the other kept."""
    folder = _base_model().path
    shape = BertShape.of(folder)
    assert shape is not None
    return KeptBackbone(folder, shape)


def _weights(backbone: FastBackbone, folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model that training changed."""
    saved = load_file(folder / "model.safetensors")
    return {name: saved[name].float() for name in backbone.trainable()}


def _base_vectors(name: str, data: Path) -> Vectors:
    return vectors(_loaded(name, data), _backbone(name, True))


@functools.cache
def base_run(name: str, data: Path) -> dict[str, list[str]]:
    """What the base model shows for the training queries."""
    collection, backbone = _loaded(name, data), _backbone(name, True)
    queries = backbone.encode([collection.queries[query] for query in collection.train])
    documents = _base_vectors(name, data).documents
    return Vectors(
        dict(zip(collection.train, queries, strict=True)), documents, list(collection.corpus)
    ).rank(10)


def stsb(backbone: FastBackbone, weights: Mapping[str, Tensor] | None, data: Path) -> float:
    """Spearman correlation on the STS-B test part."""
    lines = (data / "stsb" / "test.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    sides = [backbone.encode([row[key] for row in rows], weights) for key in ("sentence1", "sentence2")]
    _, spearman = correlations(np.einsum("nd,nd->n", *sides), np.array([row["score"] for row in rows]))
    assert spearman is not None
    return spearman


def read_results(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if path.exists()
        else []
    )


def record(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def print_tables(results: list[dict[str, Any]]) -> None:
    """One row per setting and recipe: means over seeds, with the spread of the seeds; then the gate's score."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[(*(result[key] for key in Setting._fields), result["recipe"])].append(result)
    order = {setting: number for number, setting in enumerate(SETTINGS)}
    recipes = list(RECIPES)
    print(
        "| collection | feedback | recipe | seeds | n | base | gain (least .. most) | rated | unseen | STS-B "
        "| neighbours kept | alpha | verdicts |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for key in sorted(groups, key=lambda key: (order[Setting(*key[:3])], recipes.index(key[3]))):
        print("| " + " | ".join(_cells(key, groups[key])) + " |")
    print_gate([result for result in results if "verdict" in result])


def print_gate(judged: list[dict[str, Any]]) -> None:
    """How the verdicts, given on feedback alone, stand against the truth."""
    print("\n| truth | runs | pass | warn | block |\n|---|---|---|---|---|")
    kinds = {
        "worse (one-sided p < .05)": [r for r in judged if r["p_worse"] < 0.05],
        "better (interval above 0)": [r for r in judged if r["low"] > 0],
    }
    kinds["not told apart"] = [r for r in judged if all(r not in rows for rows in kinds.values())]
    for name, rows in {**kinds, "all": judged}.items():
        verdicts = [row["verdict"] for row in rows]
        shown = " | ".join(str(verdicts.count(verdict)) for verdict in ("pass", "warn", "block"))
        print(f"| {name} | {len(rows)} | {shown} |")


def _cells(key: tuple[Any, ...], rows: list[dict[str, Any]]) -> Iterator[str]:
    collection, _, noise, recipe = key
    gains = [row["gain"] for row in rows]

    def mean(name: str, form: str) -> str:
        known = [row[name] for row in rows if row.get(name) is not None]
        return format(np.mean(known), form) if known else ""

    yield collection
    yield f"{np.mean([row['ratings'] for row in rows]):.0f} {noise}"
    yield recipe
    yield str(len(rows))
    yield str(rows[0]["n"])
    yield f"{rows[0]['base']:.4f}"
    yield f"{np.mean(gains):+.4f} ({min(gains):+.3f} .. {max(gains):+.3f})"
    yield mean("seen", "+.3f")
    yield mean("unseen", "+.3f")
    yield mean("stsb", "+.4f")
    yield mean("agreement", ".2f")
    yield mean("alpha", ".2f")
    verdicts = [row["verdict"] for row in rows if "verdict" in row]
    yield ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "warn", "block") if v in verdicts)


if __name__ == "__main__":
    main()
