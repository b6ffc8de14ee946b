"""Random BERT sentence encoders of a few hundred kilobytes, saved as sentence-transformers saves them."""

from __future__ import annotations

from pathlib import Path

from ragtune_mcp.core.models.probes import PROBE_TEXTS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WINDOW = 48


def make_tiny_bert(
    folder: Path,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    lowercase: bool = True,
    layers: int = 2,
    intermediate: int = 64,
    seed: int = 0,
) -> Path:
    """A saved model with a vocabulary of characters and the words of the probe texts."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word.lower() for text in PROBE_TEXTS[:40] for word in text.split() if word.isascii()})
    letters = (
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?-'\"()[]{}<>/\\_=+*&^%$#@|~`"
    )
    vocabulary = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words])
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    # On matrices this small, threads spend their time waiting for each other.
    torch.set_num_threads(1)
    source = folder.with_name(f"{folder.name}-transformer")
    torch.manual_seed(seed)
    config = BertConfig(
        # Two rows more than tokens: real models pad their embeddings.
        vocab_size=len(ids) + 2,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=intermediate,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(source, safe_serialization=True)
    BertTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=WINDOW, do_lower_case=lowercase
    ).save_pretrained(source)
    transformer = Transformer(str(source), max_seq_length=WINDOW)
    chain = [transformer, Pooling(config.hidden_size, pooling_mode=pooling)]
    SentenceTransformer(modules=[*chain, Normalize()] if normalize else chain, device="cpu").save(str(folder))
    return folder
