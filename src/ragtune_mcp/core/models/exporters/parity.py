"""Whether an exported model gives the vectors of its source: the texts, the measures, the thresholds.

"create succeeded" proves nothing: a model without its pooling, with another tokenizer or with the base
model's weights under a tuned name is created just as well.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ragtune_mcp.core.errors import ExportMismatch
from ragtune_mcp.core.models.exporters.bert import BertSource
from ragtune_mcp.core.models.exporters.gguf_file import Quantization
from ragtune_mcp.core.models.probes import PROBE_TEXTS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = npt.NDArray[np.float32]

# Least and mean cosine on texts of equal tokens. Measured on 100 texts: f16 .9999948 and .9999986, q8_0 .9983
# and .9994.
THRESHOLDS: dict[Quantization, tuple[float, float]] = {
    "f32": (0.9999, 0.9999),
    "f16": (0.9999, 0.9999),
    "q8_0": (0.995, 0.999),
}
# Below these shares of common top-10 neighbours the report warns.
_OVERLAP_WARNING: dict[Quantization, float] = {"f32": 0.99, "f16": 0.99, "q8_0": 0.95}
_TOP = 10
_WORST = 3
_SHOWN = 60
_HANGUL = ("\uac00", "\ud7a3")
# Texts that llama.cpp tokenizes differently, with the cosines measured.
_CLASSES = {
    "hangul_syllables": "hold Hangul syllables, which Ollama cuts short (cosine about .7); send them as NFD.",
    "long_word": "hold a word too long for the tokenizer, which Ollama splits (cosine .2 to .6); "
    "keep base64, hashes and minified code out of the chunks.",
    "spacing_vowel_signs": "hold spacing vowel signs (Devanagari, Bengali), which Ollama drops "
    "(cosine about .95).",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """What the source makes of the texts of the comparison.

    Attributes:
        texts: fixed probes, then the user's.
        vectors: (n, dim) float32, unit rows, by sentence-transformers.
        ids: token ids of each text with the special ones, cut to the window.
        token_counts: as of the whole text.
        classes: why llama.cpp is known to tokenize a text differently; "" for no such reason.
        queries: positions of what the user asked; the user's other texts are documents.
    """

    texts: tuple[str, ...]
    vectors: Vectors
    ids: tuple[list[int], ...]
    token_counts: tuple[int, ...]
    classes: tuple[str, ...]
    queries: tuple[int, ...] = ()


def make_reference(
    model: SentenceTransformer, source: BertSource, texts: Sequence[str], queries: Sequence[str] = ()
) -> Reference:
    """Encode the probe texts and the user's with the source model.

    Args:
        model: the source.
        source: its description.
        texts: documents of the user; duplicates count once.
        queries: what the user asked.

    Returns:
        What an export is compared with.
    """
    from tokenizers import Tokenizer

    chosen = tuple(dict.fromkeys((*PROBE_TEXTS, *queries, *texts)))
    tokenizer = Tokenizer.from_file(str(source.layout.transformer / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(chosen))]
    return Reference(
        texts=chosen,
        vectors=encode(model, chosen),
        ids=tuple(_cut(found, source.layout.max_tokens) for found in ids),
        token_counts=tuple(len(found) for found in ids),
        classes=tuple(_difference_class(text, source, tokenizer) for text in chosen),
        queries=tuple(chosen.index(query) for query in dict.fromkeys(queries)),
    )


def encode(model: SentenceTransformer, texts: Sequence[str]) -> Vectors:
    """Unit vectors (n, dim) of the texts."""
    vectors: Vectors = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
    return unit(vectors)


def unit(vectors: Vectors) -> Vectors:
    """The rows, scaled to length 1."""
    scaled: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


def cosines(left: Vectors, right: Vectors) -> Vectors:
    """Cosine of each row of unit vectors with its counterpart."""
    values: Vectors = np.sum(left * right, axis=1)
    return values


def compare(
    reference: Reference, vectors: Vectors, quantization: Quantization, apart: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Compare vectors with the source's.

    Args:
        reference: the source's.
        vectors: (n, dim), unit rows, for the same texts.
        quantization: chooses the thresholds.
        apart: index -> class of the texts whose tokens differ; they are reported but not judged.

    Returns:
        {status, texts, cosine_min, cosine_mean, cosine_p05, worst_texts, top_10_overlap, same_top_1,
        own_queries {queries, documents, top_10_overlap}, thresholds, token_differences {class: {n, cosine_min}},
        warnings}.

    Raises:
        ExportMismatch: a cosine is under the threshold, or not a number.
    """
    apart = apart or {}
    values = cosines(reference.vectors, vectors)
    judged = np.array([index for index in range(len(values)) if index not in apart])
    least, mean = THRESHOLDS[quantization]
    kept = values[judged]
    order = judged[np.argsort(kept)]
    # Negated, so that a cosine that is not a number fails too.
    if not (kept.min() >= least and kept.mean() >= mean):
        raise ExportMismatch(
            f"The export gives other vectors than its source: cosine {kept.min():.6f} at least and "
            f"{kept.mean():.6f} on average over {len(kept)} texts, {least} and {mean} are needed; "
            f"worst: {reference.texts[order[0]][:_SHOWN]!r}.",
            hint="Nothing was written. Export as f32, or as onnx.",
        )
    overlap, same = _ranking(reference.vectors[judged], vectors[judged])
    warnings = []
    if overlap < _OVERLAP_WARNING[quantization]:
        warnings.append(f"Only {overlap:.3f} of the ten nearest texts stay the same under {quantization}.")
    return {
        "status": "passed",
        "texts": len(kept),
        "cosine_min": _rounded(kept.min()),
        "cosine_mean": _rounded(kept.mean()),
        "cosine_p05": _rounded(np.quantile(kept, 0.05)),
        "worst_texts": [reference.texts[index][:_SHOWN] for index in order[:_WORST]],
        "top_10_overlap": round(overlap, 4),
        "same_top_1": round(same, 4),
        "own_queries": _own_queries(reference, vectors, apart),
        "thresholds": {"cosine_min": least, "cosine_mean": mean},
        "token_differences": _differences(values, apart),
        "warnings": warnings,
    }


def class_warnings(reference: Reference) -> list[str]:
    """How many of the user's texts llama.cpp is known to tokenize differently, by reason, and what helps."""
    own = Counter(name for name in reference.classes[len(PROBE_TEXTS) :] if name)
    total = len(reference.texts) - len(PROBE_TEXTS)
    return [f"{n} of {total} of your texts {_CLASSES[name]}" for name, n in sorted(own.items())]


def skipped(reason: str) -> dict[str, Any]:
    """The report of a check that was not made; it never counts as passed."""
    return {"status": "skipped", "reason": reason}


def require_known(reference: Reference, different: Iterable[int]) -> dict[int, str]:
    """The classes of texts whose tokens differ.

    Args:
        reference: the source's texts and tokens.
        different: positions of the texts that an export splits into other tokens.

    Returns:
        Position -> class.

    Raises:
        ExportMismatch: a text's tokens differ for no known reason.
    """
    found = {index: reference.classes[index] for index in different}
    for index, name in found.items():
        if not name:
            raise ExportMismatch(
                f"The export splits {reference.texts[index][:_SHOWN]!r} into other tokens than its source, "
                "for none of the known reasons.",
                hint="Export as onnx.",
            )
    return found


def _difference_class(text: str, source: BertSource, tokenizer: Any) -> str:
    if source.strip_accents and any(_HANGUL[0] <= character <= _HANGUL[1] for character in text):
        return "hangul_syllables"
    if any(unicodedata.category(character) == "Mc" for character in text):
        return "spacing_vowel_signs"
    words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    return "long_word" if any(len(word) > source.max_word_chars for word, _ in words) else ""


def _cut(ids: list[int], window: int) -> list[int]:
    return ids if len(ids) <= window else [*ids[: window - 1], ids[-1]]


def _ranking(source: Vectors, exported: Vectors) -> tuple[float, float]:
    """Share of common ten nearest texts, and of the same nearest one, each text being the query once."""
    nearest = []
    for vectors in (source, exported):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(np.argsort(-similarity, axis=1, kind="stable")[:, :_TOP])
    shares = [len(set(a) & set(b)) / min(_TOP, len(a)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shares)), float(np.mean(nearest[0][:, 0] == nearest[1][:, 0]))


def _own_queries(reference: Reference, vectors: Vectors, apart: Mapping[int, str]) -> dict[str, Any]:
    """What the user would notice: the user's documents that stay among the ten nearest of the user's queries."""
    queries = [index for index in reference.queries if index not in apart]
    asked = {*range(len(PROBE_TEXTS)), *reference.queries, *apart}
    documents = [index for index in range(len(reference.texts)) if index not in asked]
    shares = []
    if documents:
        ranked = [
            np.argsort(-(of[queries] @ of[documents].T), axis=1, kind="stable")[:, :_TOP]
            for of in (reference.vectors, vectors)
        ]
        shares = [len(set(a) & set(b)) / len(a) for a, b in zip(*ranked, strict=True)]
    return {
        "queries": len(shares),
        "documents": len(documents),
        "top_10_overlap": round(float(np.mean(shares)), 4) if shares else None,
    }


def _differences(values: Vectors, apart: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"n": count, "cosine_min": _rounded(min(values[i] for i, of in apart.items() if of == name))}
        for name, count in sorted(Counter(apart.values()).items())
    }


def _rounded(value: Any) -> float:
    return round(float(value), 7)
