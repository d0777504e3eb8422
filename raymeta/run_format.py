"""RUN/run.json: what a run began with, to check whether it can continue.

Runs of raymeta 0.1 have no such file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter

from raymeta.errors import RunError
from raymeta.experiment.schema import Experiment
from raymeta.experiment.trackers import Trackers
from raymeta.storage.bounds import JSON_BYTES
from raymeta.storage.checksum import from_json
from raymeta.storage.paths import AnyPath, read_regular

FORMAT = 1  # of run folders
FORMAT_FILE = "run.json"
# Libraries that affect results.
LIBRARIES = ("torch", "ax-platform", "botorch")
_MOST_SHOWN = 8  # differences in a message
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class RunOrigin:
    """The record of a run's beginning.

    `experiment` is its experiment as plain values, `data` the fingerprint of its data, `versions`
    those of the libraries that its numbers depend on, `trackers` where its trials are told.
    """

    format: int
    experiment: dict[str, Any]
    data: str
    versions: dict[str, str]
    id: str = ""
    trackers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls, experiment: Experiment, data: str) -> RunOrigin:
        """The origin of a run that begins here and now."""
        versions = {name: installed_version(name) for name in ("raymeta", *LIBRARIES)}
        name = f"{experiment.name}-{uuid4().hex[:8]}"
        trackers = experiment.trackers.model_dump()
        return cls(FORMAT, _plain(experiment), data, versions, name, trackers)

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values for `read_origin`."""
        return asdict(self)

    def check_format(self, place: AnyPath) -> None:
        """Refuses run folders of a later format.

        Raises:
            RunError: this raymeta cannot read the run.
        """
        if self.format > FORMAT:
            raise RunError(
                f"{place}: a run folder of format {self.format}, made by raymeta "
                f"{self.versions.get('raymeta')}; this raymeta reads formats up to {FORMAT}: "
                "install the newer one"
            )

    def check_experiment(self, experiment: Experiment, place: AnyPath) -> None:
        """Refuses an experiment file that was edited since the run began.

        Raises:
            RunError: naming each key that differs, and both values.
        """
        found = list(_differences(self.experiment, _plain(experiment)))
        if found:
            rest = len(found) - _MOST_SHOWN
            lines = [f"  {line}" for line in found[:_MOST_SHOWN]]
            more = [f"  and {rest} more"] if rest > 0 else []
            what = "was edited since the run began; new trials could not be compared with its own:"
            remedy = "undo that, or start a new run with the edited file"
            raise RunError("\n".join([f"{place}/experiment.yaml: {what}", *lines, *more, remedy]))

    def check_trackers(self, trackers: Trackers, place: AnyPath) -> None:
        """Refuses trackers that the run did not begin with; one may be left out.

        Raises:
            RunError: naming the tracker, and both values.
        """
        off = Trackers().model_dump()
        for key, value in trackers.model_dump().items():
            was = self.trackers.get(key, off[key])
            if value not in (was, off[key]):
                raise RunError(
                    f"{place}/experiment.yaml: trackers.{key} is {_short(value)}, at the beginning "
                    f"{_short(was)}; trackers get this user's keys and may write anywhere: undo "
                    "that, or if you trust the file, add --trust"
                )

    def check_environment(self, data: str, place: AnyPath) -> None:
        """Refuses other data and other versions than the run began with.

        Raises:
            RunError: naming what differs, and both values.
        """
        if data != self.data:
            raise RunError(
                f"{place}: its data are not those that it began with (fingerprint {data}, at the "
                f"beginning {self.data}); put those back, or start a new run"
            )
        now = {name: installed_version(name) for name in self.versions}
        others = {name: was for name, was in self.versions.items() if now[name] != was}
        if others:
            found = ", ".join(
                f"{name} {now[name]} in place of {was}" for name, was in others.items()
            )
            wanted = " ".join(f"'{name}=={was}'" for name, was in others.items())
            raise RunError(
                f"{place}: began with other versions: {found}; its trials could not be compared "
                f"with new ones.  `pip install {wanted}`, or start a new run"
            )


def read_origin(file: AnyPath) -> RunOrigin | None:
    """Reads what `RunOrigin.to_json` made; None if there is no such file.

    Raises:
        RunError: the file is damaged.
    """
    try:
        content = read_regular(file, most=JSON_BYTES)
        from_json(content)
        origin = TypeAdapter(RunOrigin).validate_json(content, strict=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is one
        raise RunError(
            f"{file}: is damaged ({str(error).splitlines()[0]}); put back a copy of it, or start a "
            "new run"
        ) from error
    return origin


def _plain(experiment: Experiment) -> dict[str, Any]:
    # Where trials are told decides nothing about them, and may change.
    plain: dict[str, Any] = json.loads(json.dumps(experiment.model_dump(exclude={"trackers"})))
    return plain


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for key in {**before, **after}:
        where = f"{prefix}{key}"
        if key not in before or key not in after:
            here, was = _short(after.get(key)), _short(before.get(key))
            yield f"{where}: {here}" if key not in before else f"{where}: removed, was {was}"
        elif isinstance(before[key], dict) and isinstance(after[key], dict):
            yield from _differences(before[key], after[key], f"{where}.")
        elif before[key] != after[key] or isinstance(before[key], bool) != isinstance(
            after[key], bool
        ):  # 1 is 1.0, but not true
            yield f"{where}: {_short(after[key])}, was {_short(before[key])}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def installed_version(name: str) -> str:
    """The installed version, without the build's suffix such as `+cpu`."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "absent"
