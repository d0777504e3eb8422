"""The contract of every source of tasks: the registered ones and a new one.

A source that is added to `raymeta.tasks.load.SOURCES` needs one entry in `DATA` here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymeta.data.readers.python import ALLOW_CODE
from raymeta.episodes import SPLITS, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.experiment.file import load_experiment, to_yaml
from raymeta.experiment.schema import Experiment
from raymeta.tasks import load as tasks_load
from raymeta.tasks.base_settings import SETTINGS
from raymeta.tasks.load import load_tasks
from raymeta.training.trainer import build_trainer

# All that somebody writes who adds a source: one file …
TOY = '''
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.files import files_in, read_each
from raymeta.data.ragged import Ragged
from raymeta.data.sequences import Sequences, content_of, joined
from raymeta.data.splits import deal_sealed, deal_units
from raymeta.episodes import SPLITS, InputSpec, TaskDistribution
from raymeta.storage.paths import path_at
from raymeta.tasks.sampling import ClassPool, ClassSampler, fingerprint, unit_ids
from raymeta.tasks.base_settings import TaskSettings


class ToyTasks(TaskSettings):
    """Numbers in text files: a file a class, a line a sequence."""

    problem: ClassVar[str] = "classification"
    source: Literal["toy"]
    num_ways: int = 2
    num_shots: int = 1
    num_queries: int = 1
    data_dir: str

    def data_files(self):
        return files_in(path_at(self.data_dir), "*.txt")


def read_toy(path):
    lines = path.read_text().splitlines()
    return Sequences(
        x=tuple(np.array(line.split(), dtype=float)[:, None] for line in lines),
        classes=(path.stem,) * len(lines),
        groups={"class": (path.stem,) * len(lines)},
        ids=tuple(f"{path.name}, line {n}" for n, _ in enumerate(lines, start=1)),
    )


def load_toy(settings, *, seed, sealed):
    sequences = joined(read_each(read_toy, settings.data_files()))
    contents = [content_of(x) for x in sequences.x]
    refuse_copies(sequences, contents, "class")
    deal = {"class": deal_units(sequences.classes, num_test=3, num_val=3, salt="toy")}
    if sealed:
        deal = deal_sealed(deal, salt="toy")
    splits = [deal["class"][name] for name in sequences.classes]
    rows, dropped = distinct_rows(sequences, contents, [-SPLITS.index(s) for s in splits])
    chosen = {s: sequences.select(r for r in rows if splits[r] == s) for s in SPLITS}
    pools = {s: ClassPool.build(c.classes, {n: n for n in c.classes}) for s, c in chosen.items()}
    for split, pool in pools.items():
        pool.check(split, settings.num_ways, settings.num_shots + settings.num_queries, "class")
    return TaskDistribution(
        name="toy",
        input_spec=InputSpec("classification", settings.num_ways, num_features=1),
        seed=seed,
        sample_episode=ClassSampler(
            pools=pools,
            x={
                s: Ragged.contiguous(np.concatenate(c.x).astype(np.float32), c.lengths)
                for s, c in chosen.items()
            },
            longest=9,
            units={s: {"class": unit_ids(c.classes)} for s, c in chosen.items()},
            num_ways=settings.num_ways,
            num_shots=settings.num_shots,
            num_queries=settings.num_queries,
        ),
        num_train_classes=pools["train"].num_classes,
        fingerprint=fingerprint(chosen, {}),
        deal=deal,
        warnings=tuple(dropped),
    )
'''


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_CODE, hashlib.sha256(CODE.encode()).hexdigest())


@pytest.fixture(autouse=True, scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """… and the line that registers it."""
    file = tmp_path_factory.mktemp("newcomer") / "toy.py"
    file.write_text(TOY)
    spec = importlib.util.spec_from_file_location("toy", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module
    spec.loader.exec_module(module)
    tasks_load.SOURCES["toy"] = tasks_load.Source(module.load_toy)
    yield
    del tasks_load.SOURCES["toy"], SETTINGS["toy"], sys.modules["toy"]


def numbers(unit: int, row: int) -> list[int]:
    """Returns values that occur only in this row of this unit."""
    return [int(v) for v in np.random.default_rng((unit, row)).integers(1, 10**6, 6)]


def write_writer(folder: Path, unit: int) -> None:
    """Writes all letters and digits, twice."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    text = ""
    for row, character in enumerate(characters * 2):
        values = numbers(unit, row)
        text += f'.SEGMENT CHARACTER 0-1 OK "{character}"\n.PEN_DOWN\n'
        text += "".join(f" {x} {y}\n" for x, y in zip(values[::2], values[1::2], strict=True))
        text += ".PEN_UP\n"
    (folder / f"UJIpenchars-w{unit:02}").write_text(text)


def write_domain(folder: Path, unit: int) -> None:
    rows = []
    for row in range(120):
        words = " ".join("abcdefghijklmnopqrstuvwxyz"[n % 26] * 2 for n in numbers(unit, row))
        rows.append({"text": words, "class": row % 2})
    (folder / f"domain{unit}.json").write_text(json.dumps(rows))


def write_texts(folder: Path, unit: int) -> None:
    """Writes the same sentences as a table."""
    write_domain(folder, unit)
    rows = json.loads((folder / f"domain{unit}.json").read_text())
    (folder / f"domain{unit}.json").unlink()
    lines = [f"{row['text']},{row['class']},domain {unit}" for row in rows]
    (folder / f"domain{unit}.csv").write_text("\n".join(["text,label,domain", *lines]))


def write_people(folder: Path, unit: int) -> None:
    """Writes a person's recordings of twelve classes."""
    lines = ["recording,kind,person,x,y"]
    for row in range(12 * 3):
        values = numbers(unit, row)
        lines += [
            f"p{unit}r{row},kind {row % 12},person {unit},{x},{y}"
            for x, y in zip(values[::2], values[1::2], strict=True)
        ]
    (folder / f"person{unit}.csv").write_text("\n".join(lines))


# A user's own code, which reads the same files.
CODE = """
from pathlib import Path


def load(pattern):
    lines = []
    for file in sorted(Path(__file__).parent.glob(pattern)):
        header, *rows = file.read_text().splitlines()
        lines += [row.split(",") for row in rows]
    return dict(zip(header.split(","), zip(*lines)))
"""


def write_code(folder: Path, unit: int) -> None:
    write_people(folder, unit)
    (folder / "zz.py").write_text(CODE)


def write_toy(folder: Path, unit: int) -> None:
    lines = [" ".join(map(str, numbers(unit, row))) for row in range(4)]
    (folder / f"class{unit}.txt").write_text("\n".join(lines))


@dataclass(frozen=True)
class Data:
    """A small data set: `write` makes a file of one unit, `tasks` are the settings to read it."""

    write: Callable[[Path, int], None]
    num_units: int
    tasks: dict[str, Any]


DATA: dict[str, Data | None] = {
    "pen": Data(
        write_writer,
        8,
        {"augmentation": dict.fromkeys(("class_mirror", "example_bend"), 0.0), "num_queries": 1},
    ),
    "sentiment": Data(
        write_domain, 4, {"test_domain": "domain1", "num_shots": 1, "num_queries": 2}
    ),
    "sinusoid": None,  # reads no data
    "table": Data(
        write_people,
        6,
        {
            "sequence": "recording",
            "target": "kind",
            "features": ["x", "y"],
            "groups": ["person"],
            "num_ways": 3,
            "num_queries": 2,
            "val_classes": 3,
            "test_classes": 3,
        },
    ),
    "text": Data(write_texts, 4, {"num_shots": 1, "num_queries": 2}),
    "toy": Data(write_toy, 12, {}),
}

table = DATA["table"]
assert table is not None
DATA["python"] = Data(
    write_code,
    6,
    table.tasks | {"function": "zz:load", "options": {"pattern": "person*"}, "files": "person*"},
)

every_source = pytest.mark.parametrize("source", DATA)
every_reader = pytest.mark.parametrize("source", [s for s, data in DATA.items() if data])


def written(source: str, folder: Path, units: range | None = None) -> Experiment:
    """Writes the data of some units, by default all; returns an experiment on them."""
    data = DATA[source]
    tasks: dict[str, Any] = {"source": source}
    if data is not None:
        folder.mkdir(exist_ok=True)
        for unit in units or range(data.num_units):
            data.write(folder, unit)
        tasks |= data.tasks | {"data_dir": str(folder)}
    return Experiment.model_validate(
        {
            "name": source,
            "tasks": tasks,
            "model": {"hidden_size": 4},
            "training": {"meta_steps": 2, "meta_batch_size": 2, "val_episodes": 2},
        }
    )


def examples(tasks: TaskDistribution, split: Split, num_episodes: int = 60) -> set[bytes]:
    found = set()
    for index in range(num_episodes):
        episode = tasks.episode(split, index)
        for x in (*episode.support_x, *episode.query_x):
            found.add(x.tobytes())
    return found


def test_every_registered_source_is_checked_here() -> None:
    assert set(tasks_load.SOURCES) == set(SETTINGS) == set(DATA)


@every_source
def test_settings_survive_a_file_and_a_pickle(source: str, tmp_path: Path) -> None:
    experiment = written(source, tmp_path / "data")
    file = tmp_path / "own.yaml"
    file.write_text(to_yaml(experiment))
    assert load_experiment(str(file)) == experiment
    assert pickle.loads(pickle.dumps(experiment.tasks)) == experiment.tasks  # noqa: S301


@every_source
def test_keys_that_cannot_be_searched_exist(source: str) -> None:
    assert set(SETTINGS[source].FIXED) <= set(SETTINGS[source].model_fields)
    assert SETTINGS[source].problem in {"classification", "regression"}


@every_source
def test_tasks_survive_a_pickle(source: str, tmp_path: Path) -> None:
    tasks = load_tasks(written(source, tmp_path / "data"))
    copy: TaskDistribution = pickle.loads(pickle.dumps(tasks))  # noqa: S301
    one, other = (t.episodes("val", [3]) for t in (tasks, copy))
    assert torch.equal(one.support.x, other.support.x)


@every_source
def test_settings_tell_whether_labels_stay_from_task_to_task(source: str, tmp_path: Path) -> None:
    experiment = written(source, tmp_path / "data")
    assert experiment.tasks.has_fixed_labels == load_tasks(experiment).fixed_labels


@every_source
def test_an_episode_is_a_function_of_seed_split_and_index(source: str, tmp_path: Path) -> None:
    experiment = written(source, tmp_path / "data")
    tasks = load_tasks(experiment)
    other = load_tasks(experiment.model_copy(update={"seed": 1}))
    seen = set()
    for split in SPLITS:
        for index in range(3):
            first, again = tasks.episode(split, index), tasks.episode(split, index)
            assert np.array_equal(first.query_x, again.query_x)
            assert np.array_equal(first.support_y, again.support_y)
            for episode in (first, other.episode(split, index)):
                seen.add(episode.support_x.tobytes() + episode.query_x.tobytes())
    assert len(seen) == 2 * 3 * len(SPLITS)


@every_source
def test_no_recording_is_in_support_and_query(source: str, tmp_path: Path) -> None:
    tasks = load_tasks(written(source, tmp_path / "data"))
    for split in SPLITS:
        for index in range(30):
            episode = tasks.episode(split, index)
            assert episode.support_ids is not None
            assert episode.query_ids is not None
            assert not set(episode.support_ids.tolist()) & set(episode.query_ids.tolist())


@every_source
def test_no_example_is_in_two_splits(source: str, tmp_path: Path) -> None:
    tasks = load_tasks(written(source, tmp_path / "data"))
    found = {split: examples(tasks, split) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not found[one] & found[other]


@every_source
def test_the_sealed_test_is_in_nobodys_validation_or_test(source: str, tmp_path: Path) -> None:
    experiment = written(source, tmp_path / "data")
    ordinary = load_tasks(experiment)
    evaluation = experiment.evaluation.model_copy(update={"sealed": True})
    sealed = load_tasks(experiment.model_copy(update={"evaluation": evaluation}))
    assert sealed.fingerprint != ordinary.fingerprint
    found = examples(sealed, "test")
    seen = [examples(t, "val") for t in (ordinary, sealed)]
    for others in (*seen, examples(sealed, "train"), examples(ordinary, "test")):
        assert not found & others
    num_units = {axis: Counter(units.values()) for axis, units in ordinary.deal.items()}
    assert num_units == {axis: Counter(units.values()) for axis, units in sealed.deal.items()}


@every_source
def test_a_network_trains_on_it(source: str, tmp_path: Path) -> None:
    trainer = build_trainer(written(source, tmp_path / "data"))
    report = trainer.train(2)
    assert np.isfinite(report["train_loss"])
    assert np.isfinite(list(trainer.validate().values())).all()


@every_source
def test_facts_and_deal_are_json(source: str, tmp_path: Path) -> None:
    tasks = load_tasks(written(source, tmp_path / "data"))
    assert json.loads(json.dumps(tasks.facts)) == tasks.facts
    assert json.loads(json.dumps(tasks.deal)) == tasks.deal
    assert tasks.fingerprint


@every_reader
def test_data_files_lists_exactly_the_files_that_are_read(source: str, tmp_path: Path) -> None:
    experiment = written(source, tmp_path / "data")
    before = load_tasks(experiment)
    (tmp_path / "data" / "README").write_text("not read")
    listed = experiment.tasks.data_files()
    assert {path.name for path in listed} == {
        path.name for path in (tmp_path / "data").iterdir() if path.name != "README"
    }
    (tmp_path / "moved").mkdir()
    for path in listed:
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    tasks = experiment.tasks.model_copy(update={"data_dir": str(tmp_path / "moved")})
    moved = load_tasks(experiment.model_copy(update={"tasks": tasks}))
    assert moved.fingerprint == before.fingerprint


@every_reader
@pytest.mark.parametrize("new", range(20, 26))
def test_a_new_unit_moves_no_training_unit_into_validation_or_test(
    source: str, new: int, tmp_path: Path
) -> None:
    before = load_tasks(written(source, tmp_path / "data")).deal
    after = load_tasks(written(source, tmp_path / "data", range(new, new + 1))).deal
    assert before.keys() == after.keys()
    for axis, units in before.items():
        assert units.keys() <= after[axis].keys()
        for unit, split in units.items():
            assert split != "train" or after[axis][unit] == "train"


@every_reader
def test_the_fingerprint_changes_with_the_data(source: str, tmp_path: Path) -> None:
    experiment = written(source, tmp_path / "data")
    before = load_tasks(experiment)
    assert load_tasks(experiment.model_copy(update={"seed": 1})).fingerprint == before.fingerprint
    path = Path(str(experiment.tasks.data_files()[0]))
    old, new = (
        ("aa", "zz") if source in ("sentiment", "text") else (str(numbers(0, 0)[0]), "7777777")
    )
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert load_tasks(experiment).fingerprint != before.fingerprint


@every_reader
def test_a_unit_under_two_names_is_refused(source: str, tmp_path: Path) -> None:
    experiment = written(source, tmp_path / "data")
    paths = [Path(str(path)) for path in experiment.tasks.data_files()]
    text = paths[0].read_text()
    for old, new in (("p0r", "again"), ("person 0", "person again"), ("domain 0", "domain again")):
        text = text.replace(old, new)
    copy = paths[0].with_name(paths[0].stem + "copy" + paths[0].suffix)
    copy.write_text(text)
    with pytest.raises(DataError, match="is a copy of the other") as error:
        load_tasks(experiment)
    assert copy.stem in str(error.value) or " again" in str(error.value)


@every_reader
def test_the_same_data_are_loaded_once(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered, calls = tasks_load.SOURCES[source], []

    def counted(*args: Any, **kwargs: Any) -> TaskDistribution:
        calls.append(args)
        return registered.load(*args, **kwargs)

    monkeypatch.setitem(tasks_load.SOURCES, source, replace(registered, load=counted))
    experiment = written(source, tmp_path / "data")
    assert load_tasks(experiment) is load_tasks(experiment)
    assert len(calls) == 1
    path = Path(str(experiment.tasks.data_files()[0]))
    path.write_text(path.read_text() + "\n")
    load_tasks(experiment)
    assert len(calls) == 2


@every_reader
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_or_a_link_to_nothing_is_refused_by_name(
    source: str, kind: str, tmp_path: Path
) -> None:
    experiment = written(source, tmp_path / "data")
    path = Path(str(experiment.tasks.data_files()[0]))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError) as error:
        load_tasks(experiment)
    assert str(error.value).startswith(str(path))


def refusal(experiment: Experiment) -> str:
    """Returns the message with which the data are refused; empty if episodes can be drawn."""
    try:
        load_tasks(experiment).episode("train", 0)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("source", ["pen", "sentiment", "table", "text"])
@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_refused_in_few_words_or_read(
    source: str, seed: int, tmp_path: Path
) -> None:
    """Cuts, overwrites and flips bytes: an error names the folder, or episodes are drawn."""
    experiment = written(source, tmp_path / "data")
    path = Path(str(experiment.tasks.data_files()[0]))
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    start, end = sorted(int(v) for v in rng.integers(0, len(content), 2))
    match seed % 4:
        case 0:
            del content[start:]
        case 1:
            content[start:end] = rng.bytes(end - start)
        case 2:
            content[start:start] = b"9" * 5000
        case _:
            for place in rng.integers(0, len(content), 20):
                content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))
    message = refusal(experiment)
    assert len(message) < 1500
    assert (
        message == "" or message.startswith("tasks.") or "split" in message or str(path) in message
    )
