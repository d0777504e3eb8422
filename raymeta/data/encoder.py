"""Frozen pretrained Transformers of the Hugging Face format, from a folder or the hub.

Only `config.json`, `tokenizer.json` and safetensors weights are read: nothing that can run code.

Shape legend: B texts of a batch, T tokens, D features, P tokens of all texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from raymeta.data.files import digest_of
from raymeta.errors import DataError, shown
from raymeta.storage.bounds import JSON_BYTES, header_fault, parse_json
from raymeta.storage.paths import read_regular

_CONFIG, _TOKENIZER, _INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
_WEIGHTS = "*.safetensors"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_PACKAGES = ("transformers", "tokenizers", "huggingface_hub")
_CONFIG_BYTES = 1 << 20
_BATCH_TOKENS = 2048  # padded tokens encoded at once; bounds memory


def is_folder(encoder: str) -> bool:
    """Whether `tasks.encoder` names a local folder rather than a model of the hub."""
    return Path(encoder).expanduser().is_dir()


def encoder_files(encoder: str) -> list[Path]:
    """Lists the files that are read of an encoder, sorted by name.

    A model of the hub is downloaded unless it is in the local Hugging Face cache.

    Args:
        encoder: a folder or a hub name, as `tasks.encoder` has it.

    Raises:
        DataError: there is no such encoder, it cannot be downloaded, or its format is not
            supported.
    """
    folder = Path(encoder).expanduser() if is_folder(encoder) else _snapshot(encoder)
    weights = sorted(folder.glob(_WEIGHTS))
    if not weights:
        pickled = next(folder.glob("*.bin"), None)
        found = f"only {pickled.name}, a pickle, which could run code" if pickled else "none"
        raise DataError(
            f"tasks.encoder {encoder}: needs its weights as {_WEIGHTS} in {folder}, but found "
            f"{found}; convert them with transformers' save_pretrained, or name another model"
        )
    files = [folder / _CONFIG, folder / _TOKENIZER, *weights]
    for file in files[:2]:
        if not file.is_file():
            raise DataError(
                f"tasks.encoder {encoder}: {file.name} is missing in {folder}; save model and fast "
                "tokenizer there with transformers' save_pretrained"
            )
    if (folder / "adapter_config.json").exists():
        raise DataError(
            f"tasks.encoder {encoder}: must be a whole model, but {folder} holds an adapter; merge "
            "it into its model and save that"
        )
    return sorted([*files, *folder.glob(_INDEX)])


def encoder_digest(encoder: str) -> str:
    """Computes a digest of an encoder's files.

    Raises:
        DataError: see `encoder_files`.
    """
    return digest_of([*encoder_files(encoder)])


def _snapshot(encoder: str) -> Path:
    """Finds a hub model's folder in the local Hugging Face cache."""
    if not _HUB_NAME.fullmatch(encoder):
        raise DataError(
            "tasks.encoder must be a folder, or a name of the Hugging Face hub such as "
            f"sentence-transformers/all-MiniLM-L6-v2, but got {shown(encoder)}: no such folder"
        )
    _check_packages(encoder)
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (an optional extra)
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    wanted = [_CONFIG, _TOKENIZER, _INDEX, _WEIGHTS]
    try:
        folder = Path(snapshot_download(encoder, allow_patterns=wanted, local_files_only=True))
        if (folder / _CONFIG).is_file() and any(folder.glob(_WEIGHTS)):
            return folder
    except LocalEntryNotFoundError:
        pass  # then download it
    except (OSError, ValueError) as error:
        raise DataError(f"tasks.encoder {encoder}: {error}") from error
    try:
        return Path(snapshot_download(encoder, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0][:300]
        raise DataError(
            f"tasks.encoder {encoder}: is not a folder, not in the local Hugging Face cache, and "
            f"cannot be downloaded ({reason}); give the folder of the model, or download it where "
            f"there is a network: hf download {encoder}"
        ) from error


def _check_packages(encoder: str) -> None:
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise DataError(
            f"tasks.encoder {encoder}: needs the Python package {missing[0]}, which is not "
            "installed here: pip install 'raymeta[text]'"
        )


class Encoder:
    """A frozen Transformer: token vectors are the states of its last layer.

    Args:
        encoder: a folder or a hub name.
        max_tokens: longer texts are cut to this length, special tokens included.

    Raises:
        DataError: files are damaged or do not match, the model needs custom code or reads fewer
            tokens than `max_tokens`, or `raymeta[text]` is not installed.
    """

    def __init__(self, encoder: str, max_tokens: int) -> None:
        files = encoder_files(encoder)
        _check_packages(encoder)
        self._folder = files[0].parent
        self._config = self._read_config()
        limit = self._config.get("max_position_embeddings")
        if isinstance(limit, int) and max_tokens > limit:
            raise DataError(
                f"tasks.max_tokens must be at most {limit}, which {encoder} reads, but got "
                f"{max_tokens}"
            )
        self._tokenizer = self._read_tokenizer(max_tokens)
        self._model = self._read_model([file for file in files if file.match(_WEIGHTS)])

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, int32 `[T]`.

        Raises:
            DataError: a text has no token, or the tokenizer is of another model.
        """
        found = [np.array(one.ids, dtype=np.int32) for one in self._tokenizer.encode_batch(texts)]
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        for text, ids in zip(texts, found, strict=True):
            if not len(ids):
                raise self._fault(f"its tokenizer finds no token in {shown(text)}; remove the text")
            if ids.max() >= vocabulary:
                raise self._damaged(
                    _TOKENIZER, f"token {ids.max()} of {vocabulary} that the model knows"
                )
        return found

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """The tokens of each text as the tokenizer writes them, special tokens included."""
        return [list(one.tokens) for one in self._tokenizer.encode_batch(texts)]

    def vectors(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """Computes the token vectors of all texts, concatenated, float16 `[P, D]`.

        Raises:
            DataError: a vector is not finite in float16.
        """
        ends = np.cumsum([len(ids) for ids in tokens])
        found: np.ndarray | None = None
        for rows in _batches([len(ids) for ids in tokens]):
            states = self._states([tokens[row] for row in rows])
            if found is None:
                found = np.empty((ends[-1], states.shape[-1]), dtype=np.float16)
            for row, vectors in zip(rows, states, strict=True):
                length = len(tokens[row])
                found[ends[row] - length : ends[row]] = vectors[:length]
        assert found is not None, "there are texts"
        if not np.isfinite(found).all():
            raise self._damaged(_WEIGHTS, "token vectors are NaN, or beyond float16")
        return found

    @torch.no_grad()
    def _states(self, tokens: list[np.ndarray]) -> np.ndarray:
        """States of the last layer, float16 `[B, T, D]`."""
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(row.astype(np.int64)) for row in tokens], batch_first=True
        )
        lengths = torch.tensor([len(row) for row in tokens])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        states: np.ndarray = (
            self._model(input_ids=ids, attention_mask=mask).last_hidden_state.half().numpy()
        )
        return states

    def _read_config(self) -> dict[str, Any]:
        try:
            config = parse_json(read_regular(self._folder / _CONFIG, most=_CONFIG_BYTES))
        except (OSError, ValueError) as error:
            raise self._damaged(_CONFIG, error) from error
        if not isinstance(config, dict):
            raise self._damaged(_CONFIG, "it is not a mapping")
        if config.get("auto_map"):
            raise self._fault(
                "its config.json (auto_map) asks for code of the model's own, which raymeta never "
                "runs; name a model that transformers itself has"
            )
        if config.get("is_encoder_decoder"):
            raise self._fault("is an encoder with a decoder; name a model that is an encoder alone")
        return config

    def _read_tokenizer(self, max_tokens: int) -> Any:
        from tokenizers import Tokenizer  # noqa: PLC0415  (an optional extra)

        try:
            content = read_regular(self._folder / _TOKENIZER, most=JSON_BYTES)
            tokenizer = Tokenizer.from_str(content.decode())
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_length=max_tokens)
        except Exception as error:  # tokenizers raises plain Exceptions
            raise self._damaged(_TOKENIZER, error) from error
        return tokenizer

    def _read_model(self, weights: list[Path]) -> Any:
        import transformers  # noqa: PLC0415  (an optional extra that takes seconds)

        for file in weights:
            try:
                if fault := header_fault(read_regular(file, 8)):
                    raise self._damaged(file.name, fault)
                with safe_open(file, "np"):
                    pass
            except (OSError, SafetensorError) as error:
                raise self._damaged(file.name, error) from error
        quiet = transformers.utils.logging
        shows_progress, verbosity = quiet.is_progress_bar_enabled(), quiet.get_verbosity()
        quiet.disable_progress_bar()
        quiet.set_verbosity_error()  # what it would warn about is refused below
        try:
            model, found = transformers.AutoModel.from_pretrained(
                str(self._folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (
            OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError,
            SafetensorError,
        ) as error:  # fmt: skip
            raise self._damaged("the model", error) from error
        finally:
            quiet.set_verbosity(verbosity)
            if shows_progress:
                quiet.enable_progress_bar()
        # A pooler makes one vector of a text; token vectors do not need it.
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
        wrong = sorted(str(key) for key in found["mismatched_keys"])
        if missing or wrong:
            raise self._damaged(
                _WEIGHTS, f"no weights of the right shape for {shown((missing or wrong)[:3])}"
            )
        return model.eval()

    def _damaged(self, name: str, reason: object) -> DataError:
        text = " ".join(str(reason).split())[:300]
        return self._fault(
            f"{name} cannot be used ({text}); download or save the model again, all files together"
        )

    def _fault(self, text: str) -> DataError:
        return DataError(f"tasks.encoder {self._folder}: {text}")


@lru_cache(maxsize=1)
def open_encoder(encoder: str, max_tokens: int, digest: str) -> Encoder:
    """Opens an `Encoder`, cached while its files have this `digest`."""
    del digest
    return Encoder(encoder, max_tokens)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Splits rows into batches of similar lengths: `_BATCH_TOKENS` padded tokens, or one text."""
    batch: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[row] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
