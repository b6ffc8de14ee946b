"""A workspace with three versions whose vectors are planted: each has random word vectors of its own.

The cosine of a query and a text is therefore known for each version, and that of another version differs.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from tests.models.support import WORDS, expected, make_encoder, make_model

from ragtune_mcp.core.app import RagTune

SEEDS = {"all-MiniLM-L6-v2": 0, "one": 1, "two": 2}
FIRST = next(iter(SEEDS))
_WORDS = [word for word in WORDS if not word.startswith("[")]


def plant(app: RagTune) -> None:
    """Register the versions; the first is a base model, which indexing makes the champion."""
    for version, seed in SEEDS.items():
        folder = make_model(app.workspace.models / version, weights=version.encode())
        if version == FIRST:
            model = app.registry.register_base(version, folder)
        else:
            model = app.registry.register(version, folder, base_model=FIRST)
        make_encoder(app.encoders.folder(version), model.digest, seed=seed)


def some_words(draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(2, 6)))


def cosine(version: str, query: str, text: str) -> float:
    """What a search by this version must say of the text."""
    return float(np.dot(expected(query, SEEDS[version]), expected(text, SEEDS[version])))


def write(root: Path, doc_id: str, body: str) -> str:
    """Write a file of one section and return the text it is indexed with.

    In one step: another process may be reading the folder.
    """
    path = root / doc_id
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(f"{body}\n", encoding="utf-8")
    draft.replace(path)
    return text_of(doc_id, body)


def text_of(doc_id: str, body: str) -> str:
    """What a file of one section is indexed as."""
    return f"{doc_id}\n\n{body}"
