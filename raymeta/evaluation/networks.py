"""Writes a run's networks to its model files, and reads them back for the meta-test.

A model file holds its network's identity. Only the run that wrote it may use it, with the settings
and data of its training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from raymeta.episodes import TaskDistribution
from raymeta.errors import RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.meta_test import controls_to_train
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import MOST_SEEDS, Experiment
from raymeta.nn.networks import Params, init_params
from raymeta.run_folder import Run
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, remove_file
from raymeta.tasks.load import load_tasks
from raymeta.training.checkpoint import load_network, model_bytes, read_state
from raymeta.training.identity import Identity
from raymeta.training.recipe import build_recipe, meta_params_like

REFIT_FILE = "refit.json"
_REMEDY = "put back a copy of it, or start a new run"


@dataclass(frozen=True)
class Refitted:
    """The networks that a run has from its refit.

    `seeds` are the `training.seed` of the trainings kept as `tuned`, `tuned-1` …; without any, the
    network is the search's own.  The control of the file's configuration took
    `default_meta_steps`, None for the file's own number.
    """

    seeds: tuple[int, ...] = ()
    default_meta_steps: int | None = None

    @classmethod
    def of(cls, run: Run) -> Refitted:
        """Reads the run's record of its refit; `NO_REFIT` if there is none.

        Raises:
            RunError: the record is damaged.
        """
        content: Any = run.read_json(REFIT_FILE, _REMEDY)
        if content is None:
            return NO_REFIT
        try:
            seeds = tuple(map(int, content["seeds"]))
            found = cls(seeds, int(content["default_meta_steps"]))
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(f"{run.path / REFIT_FILE}: is damaged; {_REMEDY}") from error
        if len(seeds) > MOST_SEEDS:
            raise RunError(
                f"{run.path / REFIT_FILE}: names {len(seeds)} seeds, but a refit has at most "
                f"{MOST_SEEDS}; {_REMEDY}"
            )
        return found

    def keep(self, run: Run) -> None:
        """Writes the record; removes it if there was no refit."""
        if self.seeds:
            run.write_json(REFIT_FILE, asdict(self))
        else:
            remove_file(run.path / REFIT_FILE)


NO_REFIT = Refitted()


def keep_network(run: Run, role: str, checkpoint: AnyPath) -> None:
    """Writes the network of a trial's checkpoint to the model file of a role.

    Raises:
        RunError: the checkpoint cannot be read, or the model file not written.
    """
    state = read_state(checkpoint)
    _write(run, role, state.meta_params, state.identity)


def open_networks(
    run: Run, device: torch.device, say: Callable[[str], object]
) -> tuple[Network, dict[str, Network]]:
    """Opens the run's tuned network and those that controls need; trains missing ones.

    After a refit the tuned network is the first of several; `open_further` opens the others.

    Args:
        run: a run whose search has ended.
        device: of the networks.
        say: called before a control is trained.

    Raises:
        RunError: a model file cannot be read, or holds another network than the run asks for now.
    """
    own = _open(run, "tuned", run.best_experiment(), device)
    networks = {}
    if run.model_file("default").is_file():
        default, steps = run.experiment(), Refitted.of(run).default_meta_steps
        if steps is not None:
            default = with_values(default, {"training.meta_steps": steps})
        networks["default"] = _open(run, "default", default, device)
    tasks, recipe = own.tasks, own.recipe
    for control in controls_to_train(tasks):
        spec = control.network_spec(tasks, recipe)
        identity = Identity.of(recipe, tasks, spec)
        if not run.model_file(control.name).is_file():
            say(f"training a control: {control.label}")
            _write(run, control.name, control.train(tasks, recipe, device), identity)
        with torch.device("meta"):  # names, shapes and types alone
            like = init_params(spec, torch.Generator(), recipe.dtype)
        try:
            params = _read(run, control.name, identity, like, device)
        except RunError as error:
            raise RunError(
                f"{error}; or remove the file, and the control is trained again"
            ) from error
        networks[control.name] = Network(tasks, recipe, params)
    return own, networks


def open_further(run: Run, device: torch.device) -> list[Network]:
    """Opens the refit's further trainings, if there was a refit.

    Raises:
        RunError: a model file cannot be read, or holds another network than the run asks for now.
    """
    best = run.best_experiment()
    return [
        _open(run, f"tuned-{number}", with_values(best, {"training.seed": seed}), device)
        for number, seed in enumerate(Refitted.of(run).seeds)
        if number > 0
    ]


def _open(run: Run, role: str, experiment: Experiment, device: torch.device) -> Network:
    tasks: TaskDistribution = load_tasks(experiment)
    recipe = build_recipe(experiment, tasks)
    like = meta_params_like(recipe)
    return Network(tasks, recipe, _read(run, role, Identity.of(recipe, tasks), like, device))


def _read(run: Run, role: str, identity: Identity, like: Params, device: torch.device) -> Params:
    params = load_network(run.model_file(role), identity, like, role=role, run=_id(run))
    return {name: value.to(device) for name, value in params.items()}


def _id(run: Run) -> str:
    """The run's unique id; empty for runs of raymeta 0.1."""
    origin = run.origin
    return "" if origin is None else origin.id


def _write(run: Run, role: str, params: Params, identity: Identity) -> None:
    content = model_bytes(params, identity, role=role, run=_id(run))
    write_file(run.model_file(role), content)
