"""Trainables that take moments, for tests of the searcher.

They have a module of their own because every trial's process imports it: test modules import Ax,
which takes seconds.
"""

from __future__ import annotations

import enum
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

BUDGET = 3  # epochs of `Fated`
SEM = 0.125
SCORE, LIMIT = "metrics/mAP50-95(B)", 0.75  # of `Limited`
# What becomes of the trials of `Numbered`, one after another.
FATES = (
    *("completed", "failed", "abandoned", "completed", "early_stopped", "completed"),
    *("early_stopped", "completed", "failed", "completed", "completed"),
)


class Opt(str, enum.Enum):  # noqa: UP042  (as users write it)
    ADAM = "adam"
    SGD = "sgd"


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Fated(tune.Trainable):
    """Scores x · epoch, and fails in its second epoch if its configuration says so."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config, self._epoch = config, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        fate, score = self._config.get("fate"), self._config["x"] * self._epoch
        if self._epoch == 2:
            failed_before = Path(self._config["folder"]) / self.trial_id
            if fate == "error" or (fate == "flaky" and not failed_before.exists()):
                failed_before.touch()
                raise RuntimeError("as the configuration says")
            if fate == "nan":
                score = math.nan
        done = self._epoch >= BUDGET or math.isnan(score)
        return {"score": score, "score_sem": SEM, "epochs": self._epoch, "done": done}


class Scored(tune.Trainable):
    """Two metrics of a nested configuration."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        x, width = self._config["net"]["x"], self._config["net"]["width"]
        assert self._config["name"] == "constant"
        return {"score": x * width, "cost": width, "done": True}


class Reported(tune.Trainable):
    """Reports its x as loss, in the type that its configuration names, in one step."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        x = self._config["x"]
        wrap: Callable[[float], Any] = self._config.get("wrap", float)
        kinds = {name: type(value).__name__ for name, value in self._config.items()}
        return {"loss": wrap(x), "cost": 2 * x, "kinds": json.dumps(kinds), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Loads nothing."""


class Limited(Reported):
    """Scores a number in one step, and fails where it is large; has names that formulas know."""

    def step(self) -> dict[str, Any]:
        x = self._config["beta"]
        if x > LIMIT:
            raise RuntimeError("too large")
        return {SCORE: x, "acc%": 1 - x, "done": True}


class Numbered(Fated):
    """Scores its first number less 1 / epoch, and ends as its place among the trials says.

    A score is an array of one element, as many libraries report it.
    """

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        numbers = self._config.get("net", self._config)
        first, second = numbers["beta"], numbers["test"]
        fate = FATES[self._place()]
        if fate == "failed" and self._epoch == 2:
            raise RuntimeError("as its place says")
        score = math.nan if fate == "abandoned" and self._epoch == 2 else first - 1 / self._epoch
        last = {"early_stopped": 1, "abandoned": 2}.get(fate, BUDGET)
        return {
            SCORE: np.array([score]),
            f"{SCORE}_sem": 0.01,
            "acc%": float(second),
            "acc%_sem": 0.1,
            "epochs": self._epoch,
            "done": self._epoch == last,
        }

    def _place(self) -> int:
        """Its place among the trials that left their names in a folder, the same ever after."""
        for place in itertools.count():
            path = Path(self._config["folder"], str(place))
            try:
                with path.open("x") as file:
                    file.write(self.trial_id)
            except FileExistsError:
                if path.read_text() != self.trial_id:
                    continue
            return place
        raise AssertionError  # `count` does not end
