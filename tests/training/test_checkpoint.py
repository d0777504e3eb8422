"""Checkpoints and model files are read back whole, or refused: damaged, hostile, another's."""

from __future__ import annotations

import json
import pickle
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file

from raymeta.errors import RunError
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.nn.networks import Params
from raymeta.storage.bounds import HEADER_BYTES
from raymeta.tasks.load import load_tasks
from raymeta.training.checkpoint import (
    check_tensors,
    load_network,
    model_bytes,
    parse,
    read_state,
)
from raymeta.training.identity import Identity
from raymeta.training.recipe import build_recipe, initial_meta_params
from raymeta.training.trainer import build_trainer

CPU = torch.device("cpu")


def identity_of(experiment: Experiment) -> Identity:
    tasks = load_tasks(experiment)
    return Identity.of(build_recipe(experiment, tasks), tasks)


def params_of(experiment: Experiment) -> Params:
    return initial_meta_params(build_recipe(experiment, load_tasks(experiment)), CPU)


@pytest.fixture
def content(tiny):
    experiment = tiny("sentiment", "maml.learn_inner_lr=true")
    return model_bytes(params_of(experiment), identity_of(experiment), role="tuned", run="mine")


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


# Reading back


def test_a_model_file_gives_back_the_network_and_its_identity(tiny, tmp_path, content):
    experiment = tiny("sentiment", "maml.learn_inner_lr=true")
    expected, params = identity_of(experiment), params_of(experiment)
    path = written(tmp_path, content)
    found = load_network(path, expected, params, role="tuned", run="mine")
    torch.testing.assert_close(found, params, rtol=0, atol=0)
    assert read_state(path).identity == replace(expected, role="tuned", run="mine")


def test_a_checkpoint_of_a_trial_gives_back_its_network(tiny, tmp_path):
    trainer = build_trainer(tiny("sinusoid", "maml.learn_inner_lr=true"))
    trainer.train(2)
    state = read_state(written(tmp_path, trainer.serialize()))
    torch.testing.assert_close(state.meta_params, trainer.meta_params, rtol=0, atol=0)


def test_other_programs_can_read_what_a_network_was_trained_as(tmp_path, content):
    with safe_open(written(tmp_path, content), "pt") as file:
        metadata = json.loads(file.metadata()["raymeta"])
        facts = bytes(file.get_tensor("facts.json").tolist())
    assert metadata["settings"]["network.cell"] == "gru"
    assert metadata["role"] == "tuned"
    assert isinstance(json.loads(facts), dict)


# Another network


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.cell=lstm"], "network.cell: 'gru' in the file, 'lstm' asked for"),
        (["model.hidden_size=5"], "network.hidden_size: 4 in the file, 5 asked for"),
        (["model.pooling=mean"], "network.pooling"),
        (["model.dropout=0.25"], "network.dropout"),
        (["training.precision=bfloat16"], "network.layer_dtype"),
        (["training.precision=float32"], "training.dtype"),
        (["maml.inner_lr=0.7"], "learner.inner_lr"),
        (["maml.adapt=head"], "learner.adapt"),
        (["training.outer_lr=0.7"], "training.lr"),
        (["training.meta_steps=9"], "training.meta_steps"),
        (["seed=7"], "seed: 0 in the file, 7 asked for"),
    ],
)
def test_a_network_trained_with_other_settings_is_refused_naming_them(
    tiny, tmp_path, overrides, named
):
    trained, asked = tiny("pen-maml"), tiny("pen-maml", *overrides)
    file = model_bytes(params_of(trained), identity_of(trained), role="tuned", run="mine")
    path = written(tmp_path, file)
    with pytest.raises(RunError) as error:
        load_network(path, identity_of(asked), params_of(asked), role="tuned")
    message = str(error.value)
    assert str(path) in message
    assert named in message
    assert "put back the run's own best.yaml" in message
    assert len(message) < 1500


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.val_episodes=7"],
        ["training.max_skipped=3"],
        ["training.memory_gb=1"],
        ["training.chunk_size=2"],
        ["training.graph=flat"],
        ["evaluation.num_episodes=9"],
        ["evaluation.adaptation_steps=3"],
        ["resources.max_failures=0"],
    ],
)
def test_settings_that_make_no_other_network_are_not_bound(tiny, overrides):
    identity_of(tiny("pen-maml", *overrides)).check(identity_of(tiny("pen-maml")), "file")


def test_a_network_of_another_role_or_run_is_refused_by_name(tiny, tmp_path, content):
    experiment = tiny("sentiment", "maml.learn_inner_lr=true")
    path = written(tmp_path, content)
    for role, run in (("default", "mine"), ("tuned", "other")):
        with pytest.raises(RunError, match=r"'tuned' of the run 'mine'"):
            load_network(path, identity_of(experiment), params_of(experiment), role=role, run=run)


def test_a_network_of_another_source_is_refused(tiny, tmp_path, content):
    asked = tiny("pen-maml")
    with pytest.raises(RunError, match=r"data\.name: 'sentiment' in the file, 'pen' asked for"):
        load_network(written(tmp_path, content), identity_of(asked), params_of(asked), role="tuned")


def test_other_data_are_refused_naming_what_differs():
    words = {"vocabulary": ["good", "bad"], "max_tokens": 8}
    settings = {"network.vocabulary_size": 4, "network.cell": "gru", "data.fingerprint": "a"}
    trained = Identity(settings, words)
    grown = Identity(
        settings | {"network.vocabulary_size": 5, "data.fingerprint": "b"},
        words | {"vocabulary": ["good", "bad", "zorblax"]},
    )
    with pytest.raises(RunError) as error:
        trained.check(grown, "model.safetensors")
    message = str(error.value)
    assert "trained on other data" in message
    assert "network.vocabulary_size: 4 in the file, 5 asked for" in message
    assert "vocabulary: 2 entries then, 3 now, new: 'zorblax'" in message
    assert "put back the data" in message
    with pytest.raises(RunError, match="the examples or their deal differ"):
        trained.check(Identity(settings | {"data.fingerprint": "b"}, words), "file")


def test_a_network_of_another_learner_is_refused():
    maml, reptile = (
        identity_of(load_experiment("sinusoid", ["search.space={}", f"learner={name}"]))
        for name in ("maml", "reptile")
    )
    with pytest.raises(RunError, match=r"learner\.name: 'maml' in the file, 'reptile' asked for"):
        maml.check(reptile, "file")


def test_true_and_one_are_different_settings():
    with pytest.raises(RunError, match="shared_head"):
        Identity({"learner.shared_head": True}).check(Identity({"learner.shared_head": 1}), "file")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p | {"head.weight": p["head.weight"][:, :-1].contiguous()},
        lambda p: p | {"head.weight": p["head.weight"].float()},
        lambda p: p | {"extra": torch.zeros(1)},
        lambda p: {name: value for name, value in p.items() if name != "head.bias"},
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tiny, change):
    params = params_of(tiny("pen-maml"))
    with pytest.raises(RunError, match=r"file: does not fit .*(head\.(weight|bias)|extra) is "):
        check_tensors(change(params), params, "file")


# Damaged and hostile files


def repacked(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Returns the same file with another header."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def metadata_with(**values: object) -> Callable[[bytes], bytes]:
    def change(header: dict[str, Any]) -> None:
        metadata = json.loads(header["__metadata__"]["raymeta"]) | values
        header["__metadata__"]["raymeta"] = json.dumps(metadata)

    return lambda content: repacked(content, change)


def deep(header: dict[str, Any]) -> None:
    header["__metadata__"]["raymeta"] = "[" * 100_000


def reshaped(header: dict[str, Any]) -> None:
    header["meta_params.head.bias"]["shape"] = [1, 2]


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "seven bytes": lambda content: content[:7],
    "text": lambda _: b"no checkpoint at all, just some text",
    "cut off": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "pickle": lambda content: pickle.dumps(load(content)),
    "last byte flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "zeros": lambda content: bytes(len(content)),
    "other settings": metadata_with(settings={}),
    "other role": metadata_with(role="default"),
    "settings of text": metadata_with(settings="gru"),
    "deep metadata": lambda content: repacked(content, deep),
    "metadata of text": lambda content: repacked(
        content, lambda header: header["__metadata__"].update(raymeta='"gru"')
    ),
    "later format": metadata_with(format=99),
    "format of a list": metadata_with(format=[1] * 1000),
    "without checksum": metadata_with(sha256=None),
    "without facts": lambda content: save(
        {name: value for name, value in load(content).items() if name != "facts.json"}
    ),
    "reshaped": lambda content: repacked(content, reshaped),
    "unknown type": lambda content: repacked(
        content, lambda header: header["meta_params.head.bias"].update(dtype="F4")
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_with_one_message(tmp_path, content, kind):
    path = written(tmp_path, DAMAGED[kind](content))
    with pytest.raises(RunError, match=r"model\.safetensors: ") as error:
        load_network(path, Identity({}), {}, role="tuned", run="mine")
    message = str(error.value)
    assert len(message) < 700
    assert "\n" not in message
    assert "start a new run" in message


def test_no_flipped_byte_goes_unnoticed(content):
    draw = random.Random(0)  # noqa: S311  (which bytes to damage)
    for _ in range(300):
        place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        with pytest.raises(RunError, match="file: "):
            parse(bytes(changed), "file")


@pytest.mark.parametrize("size", [HEADER_BYTES + 1, 94_000_000, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_before_it_is_read(tmp_path, size):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", size) + b'{"' + b"a" * 1000)
        file.truncate(200_000_000)  # a sparse file
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(RunError, match=r"header must have at most 1,000,000 bytes"):
        read_state(path)
    assert time.monotonic() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_header_of_many_tensors_is_refused_quickly(tmp_path):
    tensors = {
        f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(14000)
    }
    text = json.dumps(tensors).encode()
    assert 900_000 < len(text) < HEADER_BYTES
    path = written(tmp_path, struct.pack("<Q", len(text)) + text)
    with pytest.raises(RunError, match="holds no network of raymeta"):
        read_state(path)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_loading_a_model_runs_no_code(tmp_path, write):
    marker, file = tmp_path / "ran", tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        write({"meta_params.head.weight": Payload(marker)}, stream)
    with pytest.raises(RunError, match=r"model\.safetensors: not a checkpoint of raymeta"):
        read_state(file)
    assert not marker.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone\.safetensors: cannot be read"):
        read_state(tmp_path / "gone.safetensors")


def test_a_model_of_raymeta_0_1_is_refused_with_the_remedy(tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({f"meta_params.{k}": v for k, v in params_of(tiny("pen-maml")).items()}, path)
    with pytest.raises(RunError, match=r"by raymeta 0\.1.*raymeta==0\.1\.0.* start a new run"):
        load_network(path, Identity({}), {}, role="tuned")


def test_a_tensor_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(RunError, match="holds no network of raymeta"):
        read_state(path)
