"""The identity of a network: its settings, the shape of its input, and its data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from raymeta.episodes import TaskDistribution
from raymeta.errors import RunError
from raymeta.nn.networks import NetworkSpec
from raymeta.training.recipe import Recipe

_MOST_SHOWN = 5  # differences in a message
_LONGEST_VALUE = 60
# Settings that affect how a network is trained or scored, but not the result.
_UNBOUND = {"val_episodes", "max_skipped"}
_DATA, _EPISODE = "data.", "episode."
# Settings that follow from the data.
_OF_DATA = {"network.num_features", "network.vocabulary_size", "network.num_outputs"}


@dataclass(frozen=True)
class Identity:
    """The identity of a network, in plain JSON values.

    `settings` are its architecture, its learner, its training and the fingerprint of its data, by
    dotted name.  `facts` are facts of its inputs, such as the vocabulary. `role` is its use in the
    run (empty for a trial's checkpoint), `run` the id of that run.
    """

    settings: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    role: str = ""
    run: str = ""

    @classmethod
    def of(
        cls, recipe: Recipe, tasks: TaskDistribution, network: NetworkSpec | None = None
    ) -> Identity:
        """Makes the identity of a network that `recipe` trains on `tasks`.

        Args:
            recipe: of the training.
            tasks: the data it is trained on.
            network: the architecture, if it is not the recipe's own.
        """
        first = tasks.episode("test", 0)
        settings = {
            "data": {
                "name": tasks.name,
                "problem": tasks.input_spec.problem,
                "fingerprint": tasks.fingerprint,
            },
            "episode": {
                "support_examples": len(first.support_y),
                "query_examples": len(first.query_y),
            },
            **_trained_as(recipe, network or recipe.spec),
        }
        facts: dict[str, Any] = json.loads(json.dumps(dict(tasks.facts)))
        return cls(dict(_flat(settings)), facts)

    def of_recipe(self, recipe: Recipe) -> Identity:
        """Makes the identity that `recipe` would give a network trained on the same data."""
        data = {k: v for k, v in self.settings.items() if k.startswith((_DATA, _EPISODE))}
        trained = dict(_flat(_trained_as(recipe, recipe.spec)))
        return replace(self, settings={**data, **trained})

    def check(self, expected: Identity, place: str) -> None:
        """Refuses a network of another identity.

        Args:
            expected: the identity that the run's files and data require now.
            place: the network's file, for the message.

        Raises:
            RunError: naming what differs, and the remedy.
        """
        differing = [
            key
            for key in {**expected.settings, **self.settings}
            if not _same(self.settings.get(key), expected.settings.get(key))
        ]
        if not differing:
            return
        if all(key.startswith(_DATA) or key in _OF_DATA for key in differing):
            found = [_difference(key, self, expected) for key in differing if key in _OF_DATA]
            found += list(_fact_differences(self.facts, expected.facts))
            named = "; ".join(found[:_MOST_SHOWN]) or "the examples or their deal differ"
            raise RunError(
                f"{place}: its network was trained on other data ({named}); put back the data and "
                "the `tasks` settings that it was trained with, or start a new run"
            )
        shown = "; ".join(_difference(key, self, expected) for key in differing[:_MOST_SHOWN])
        more = f"; and {len(differing) - _MOST_SHOWN} more" * (len(differing) > _MOST_SHOWN)
        raise RunError(
            f"{place}: is not the network that this run asks for ({shown}{more}); put back the "
            "run's own best.yaml, experiment.yaml and model files, or start a new run"
        )


def _trained_as(recipe: Recipe, network: NetworkSpec) -> dict[str, Any]:
    outer = {key: v for key, v in asdict(recipe.outer).items() if key not in _UNBOUND}
    return {
        "network": asdict(network),
        "learner": {"name": recipe.learner.name, **asdict(recipe.learner)},
        "training": outer | {"pretrain_lr": recipe.pretrain_lr, "dtype": recipe.dtype},
        "seed": recipe.seed,
    }


def _same(found: Any, expected: Any) -> bool:
    """Equality in which 1 is 1.0, but not true."""
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)


def _difference(key: str, found: Identity, expected: Identity) -> str:
    was, now = (_short(identity.settings.get(key)) for identity in (found, expected))
    return f"{key}: {was} in the file, {now} asked for"


def _fact_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Describes the differences between facts of the data."""
    for key in sorted({*was, *now}):
        before, after = was.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, list | dict) and isinstance(after, list | dict):
            new, gone = (
                [str(item) for item in one if item not in other]
                for one, other in ((after, before), (before, after))
            )
            examples = [f"new: {_short(new[0])}"] if new else []
            examples += [f"gone: {_short(gone[0])}"] if gone else []
            sizes = f"{len(before)} entries then, {len(after)} now"
            yield ", ".join([f"{key}: {sizes}", *examples])
        else:
            yield f"{key}: {_short(before)} then, {_short(after)} now"


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested settings to dotted names."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, torch.dtype) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
