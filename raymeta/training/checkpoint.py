"""Checkpoints and model files: a network's tensors and its identity; reading them runs no code.

The files are safetensors.  Their metadata, JSON under the key `raymeta`, are the format, raymeta's
version, the identity and a checksum.  The facts of the data may be long: they are a tensor of JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from raymeta.errors import RunError
from raymeta.nn.networks import Params
from raymeta.storage.bounds import TENSOR_BYTES, header_fault, parse_json
from raymeta.storage.paths import AnyPath, read_regular
from raymeta.training.identity import Identity

CHECKPOINT_NAME = "checkpoint.safetensors"
META_PREFIX = "meta_params."
_VERSION = version("raymeta")  # looked up once: the server writes a file for every task
FORMAT = 1
_LENGTH_BYTES = 8
_FACTS = "facts.json"
_METADATA = "raymeta"  # a single key: safetensors does not keep the order of several


@dataclass(frozen=True)
class State:
    """The content of a checkpoint or model file."""

    tensors: Params
    identity: Identity

    @property
    def meta_params(self) -> Params:
        """The network alone."""
        return {
            name.removeprefix(META_PREFIX): value
            for name, value in self.tensors.items()
            if name.startswith(META_PREFIX)
        }


def state_bytes(tensors: Params, identity: Identity) -> bytes:
    """Serialises tensors and their network's identity, for `parse`."""
    facts = torch.frombuffer(bytearray(_json(identity.facts)), dtype=torch.uint8)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    plain[_FACTS] = facts
    metadata = {
        "format": FORMAT,
        "version": _VERSION,
        "settings": identity.settings,
        "role": identity.role,
        "run": identity.run,
    }
    metadata["sha256"] = _checksum(plain, metadata)
    content: bytes = save(plain, {_METADATA: _json(metadata).decode()})
    if len(content) > TENSOR_BYTES:
        raise RunError(
            f"a checkpoint of {len(content)} bytes would not be read again: at most {TENSOR_BYTES} "
            "are; make the network smaller (model.hidden_size, model.num_layers)"
        )
    assert not header_fault(content[:_LENGTH_BYTES])
    return content


def model_bytes(meta_params: Params, identity: Identity, *, role: str, run: str) -> bytes:
    """Serialises a network without training state, for `load_network`."""
    tensors = {META_PREFIX + name: value for name, value in meta_params.items()}
    return state_bytes(tensors, replace(identity, role=role, run=run))


def read_state(path: AnyPath) -> State:
    """Reads a checkpoint or model file.

    Raises:
        RunError: the file is missing, damaged, too large to trust or another program's.
    """
    try:
        _check_header_length(read_regular(path, _LENGTH_BYTES), str(path))
        content = read_regular(path, most=TENSOR_BYTES)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse(content, str(path))


def load_network(
    path: AnyPath, expected: Identity, like: Params, *, role: str, run: str = ""
) -> Params:
    """Loads the network in a model file.

    Args:
        path: of the file.
        expected: the identity that the network must have.
        like: tensors with the names, shapes and types that the network must have.
        role: the network's required role.
        run: the id of the network's run; empty for any run.

    Raises:
        RunError: the file cannot be read, or holds another network.
    """
    remedy = "put back a copy of it, or start a new run"
    try:
        state = read_state(path)
    except RunError as error:
        raise RunError(f"{error}; {remedy}") from error
    found = state.identity
    if (found.role, run and found.run) != (role, run):
        raise RunError(
            f"{path}: holds the network {found.role or 'of a trial'!r} of the run {found.run!r}, "
            f"not {role!r} of {run or 'this run'!r}; {remedy}"
        )
    found.check(expected, str(path))
    check_tensors(state.meta_params, like, str(path))
    return state.meta_params


def check_tensors(found: Params, expected: Params, origin: str) -> None:
    """Refuses tensors of other names, shapes or types.

    Raises:
        RunError: naming the first tensor that differs.
    """
    for name in sorted(expected.keys() | found.keys()):
        described = [
            f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            if (tensor := params.get(name)) is not None
            else "nothing"
            for params in (found, expected)
        ]
        if described[0] != described[1]:
            raise RunError(
                f"{origin}: does not fit this experiment's network: {name} is {described[0]}, not "
                f"{described[1]}"
            )


def parse(content: bytes, origin: str) -> State:
    """Parses the content of a checkpoint or model file.

    Args:
        content: of the file.
        origin: names the file in an error.

    Raises:
        RunError: the content is damaged, of another program, or of another version of raymeta.
    """
    _check_header_length(content[:_LENGTH_BYTES], origin)
    try:
        tensors: Params = load(content)
        size = int.from_bytes(content[:_LENGTH_BYTES], "little")
        text = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + size]).get("__metadata__", {})
        metadata = json.loads(text.get(_METADATA, "{}"))
    # Includes torch's errors about impossible shapes and types.
    except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise RunError(
            f"{origin}: not a checkpoint of raymeta, or damaged: {str(error)[:200]}"
        ) from error
    _check_format(metadata, tensors, origin)
    if metadata.pop("sha256", None) != _checksum(tensors, metadata):
        raise RunError(f"{origin}: is damaged: its checksum is wrong")
    try:
        facts = parse_json(tensors.pop(_FACTS).numpy().tobytes())
        settings = dict(metadata["settings"])
        identity = Identity(settings, dict(facts), str(metadata["role"]), str(metadata["run"]))
    except (LookupError, ValueError, TypeError) as error:
        raise RunError(f"{origin}: its metadata cannot be read") from error
    return State(tensors, identity)


def _check_header_length(start: bytes, origin: str) -> None:
    """Refuses a header whose parsing would take minutes and gigabytes."""
    fault = header_fault(start)
    if fault:
        raise RunError(f"{origin}: not a checkpoint of raymeta, or damaged: {fault}")


def _check_format(metadata: Any, tensors: Params, origin: str) -> None:
    """Refuses files of other programs, of raymeta 0.1 and of later formats."""
    written = metadata.get("format") if isinstance(metadata, dict) else None
    if written == FORMAT:
        return
    if written is not None:
        raise RunError(
            f"{origin}: has format {str(written)[:20]}, by raymeta "
            f"{str(metadata.get('version'))[:20]}; this raymeta reads format {FORMAT}: install "
            "that version"
        )
    if any(name.startswith(META_PREFIX) for name in tensors):
        raise RunError(
            f"{origin}: was written by raymeta 0.1, which did not record what a network was "
            "trained as; that version can use it (`pip install raymeta==0.1.0`)"
        )
    raise RunError(f"{origin}: holds no network of raymeta")


def _checksum(tensors: Params, metadata: Mapping[str, Any]) -> str:
    """Computes SHA-256 over the tensors' names, types, shapes and bytes, and the metadata."""
    digest = hashlib.sha256(_json(metadata))
    for name, value in sorted(tensors.items()):
        digest.update(_json([name, str(value.dtype), list(value.shape)]))
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
