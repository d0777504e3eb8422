"""The cache of token vectors is whole, checked, and safe for several processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raymeta.data import token_vectors as module
from raymeta.data.token_vectors import TokenVectors, token_vectors
from tests.encoders import MAX_TOKENS, SIZE, write_encoder

TEXTS = ["good phones", "bad films !", "Good  Phones", "red"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "cache_folder", lambda _: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def never_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("the encoder was asked")

    monkeypatch.setattr(module, "Encoder", fail)


def same(one: TokenVectors, other: TokenVectors) -> bool:
    return all(
        np.array_equal(one.vectors[one.rows(text)], other.vectors[other.rows(text)])
        and np.array_equal(one.tokens(text), other.tokens(text))
        for text in TEXTS
    )


def test_texts_of_equal_tokens_share_their_vectors(encoder: Path) -> None:
    found = token_vectors(str(encoder), TEXTS, MAX_TOKENS)
    assert found.tokens("bad films !").tolist() == [2, 8, 5, 12, 3]
    assert found.rows("good phones") == found.rows("Good  Phones")
    assert found.vectors.shape == (4 + 5 + 3, SIZE)
    assert token_vectors(str(encoder), TEXTS, 4).tokens("bad films !").tolist() == [2, 8, 5, 3]


def test_known_texts_are_read_from_the_cache(
    encoder: Path, cache: Path, request: pytest.FixtureRequest
) -> None:
    first = token_vectors(str(encoder), TEXTS, MAX_TOKENS)
    request.getfixturevalue("never_encodes")
    assert same(first, token_vectors(str(encoder), TEXTS[::-1], MAX_TOKENS))
    (file,) = cache.iterdir()
    assert file.suffix == ".safetensors"


def test_other_files_texts_and_lengths_have_a_cache_of_their_own(
    encoder: Path, cache: Path, tmp_path: Path
) -> None:
    first = token_vectors(str(encoder), TEXTS, MAX_TOKENS)
    token_vectors(str(encoder), TEXTS[:2], MAX_TOKENS)
    token_vectors(str(encoder), TEXTS, 4)
    other = token_vectors(str(write_encoder(tmp_path / "other", seed=1)), TEXTS, MAX_TOKENS)
    assert len(list(cache.iterdir())) == 4
    assert other.digest != first.digest
    assert not same(first, other)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another key"])
def test_a_damaged_file_is_made_anew(
    encoder: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = token_vectors(str(encoder), TEXTS, MAX_TOKENS)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.unlink()  # `first` is mapped to it
    if damage == "another key":
        token_vectors(str(encoder), TEXTS[:2], MAX_TOKENS)
        (other,) = cache.iterdir()
        other.replace(file)
    else:
        half = len(content) // 2
        flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
        file.write_bytes({"cut": content[:half], "flipped": flipped, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert same(first, token_vectors(str(encoder), TEXTS, MAX_TOKENS))
    assert str(file) in caplog.text
    caplog.clear()
    assert same(first, token_vectors(str(encoder), TEXTS, MAX_TOKENS))
    assert not caplog.text


def test_a_cache_that_cannot_be_written_is_reported_and_done_without(
    encoder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        found = token_vectors(str(encoder), TEXTS, MAX_TOKENS)
    assert found.tokens("red").tolist() == [2, 9, 3]
    assert "not kept" in caplog.text


@pytest.mark.slow
def test_several_processes_encode_once(encoder: Path, tmp_path: Path) -> None:
    script = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from raymeta.data.token_vectors import token_vectors\n"
        f"found = token_vectors({str(encoder)!r}, {TEXTS!r}, {MAX_TOKENS})\n"
        "print(found.vectors.tobytes().hex())"
    )
    settings = {"XDG_CACHE_HOME": str(tmp_path / "user"), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )
        for _ in range(3)
    ]
    ended = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert len({vectors for vectors, _ in ended}) == 1
    assert sum("reads 4 texts, once" in log for _, log in ended) == 1
    (file,) = (tmp_path / "user" / "raymeta" / "encoder").iterdir()
    assert file.suffix == ".safetensors"
