"""A BERT so small that training it takes milliseconds, and data on which it can visibly learn."""

import json
from pathlib import Path

import numpy as np

from ragtune_mcp.core.dataset.pairs import Dataset, TrainingPair

WORDS = [f"w{index}" for index in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 48,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_model(
    folder: Path, *, kind: str = "bert", layers: int = 4, pooling: str = "mean", normalize: bool = True
) -> Path:
    """A sentence-transformers folder with random weights; `kind` is a transformers model type."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import AutoConfig, AutoModel

    source = folder.parent / f"{folder.name}-source"
    source.mkdir(parents=True)
    write_tokenizer(source)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": layers, "n_heads": 4, "hidden_dim": 64}
    config = AutoConfig.for_model(
        kind, vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=64, pad_token_id=0, **sizes
    )
    torch.manual_seed(5)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        # Larger than the usual initialisation, so that a random model tells texts apart.
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    model.save_pretrained(source)
    transformer = Transformer(str(source), max_seq_length=48)
    modules = [transformer, Pooling(32, pooling_mode=pooling), *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


def sentence(rng: np.random.Generator, words: list[str], length: int) -> str:
    return " ".join(rng.choice(words, length))


def make_corpus(documents: int = 60, seed: int = 0) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {f"d{index}": sentence(rng, WORDS, int(rng.integers(6, 30))) for index in range(documents)}


def make_dataset(corpus: dict[str, str], queries: int = 40, seed: int = 1, test: int = 0) -> Dataset:
    """Each query repeats some words of its document; half of the queries also have a document rated low."""
    rng = np.random.default_rng(seed)
    names = list(corpus)
    pairs = []
    for index in range(queries):
        target = names[int(rng.integers(len(names)))]
        query = sentence(rng, corpus[target].split(), 3) + f" w{index % 60}"
        split = "test" if index < test else "validation" if index < test + queries // 5 else "train"
        common = {"query": query, "query_group": f"g{index}", "split": split}
        pairs.append(
            TrainingPair(
                document=corpus[target],
                label=1.0,
                rating=5.0,
                document_id=target,
                feedback_ids=(f"f{index}",),
                **common,
            )
        )
        if index % 2:
            other = names[int(rng.integers(len(names)))]
            if other != target:
                pairs.append(
                    TrainingPair(
                        document=corpus[other],
                        label=0.0,
                        rating=1.0,
                        kind="negative",
                        document_id=other,
                        **common,
                    )
                )
    return Dataset("tiny", tuple(pairs), {})
