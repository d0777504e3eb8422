"""Models from run folders and folders of the Hub's form; adapted networks from files of their own.

Reading them needs no data of the training and runs no code: they are safetensors and JSON, checked
by a SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from raymeta.episodes import Examples, InputSpec
from raymeta.errors import ExperimentError, RaymetaError, RunError
from raymeta.evaluation.calibration import NO_CALIBRATION, Calibration, calibration_of
from raymeta.evaluation.familiarity import Reference, familiarity_from_json
from raymeta.evaluation.forecast_errors import errors_of
from raymeta.evaluation.networks import Refitted
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.inference.adapted import PREFIX, ROLE, Adapted
from raymeta.inference.forecaster import Forecaster
from raymeta.inference.hub import MODEL_FILE, HubFolder, is_hub_folder
from raymeta.inference.model import Model
from raymeta.inference.support import SUPPORT_PREFIX, Support
from raymeta.inference.trained import Trained
from raymeta.nn.networks import Params
from raymeta.run_folder import DEFAULT_ROOT, Run
from raymeta.storage.paths import AnyPath, path_at
from raymeta.tasks.forecast import forecast_facts
from raymeta.tasks.table_settings import TableTasks
from raymeta.training.checkpoint import State, check_tensors, read_state
from raymeta.training.identity import Identity
from raymeta.training.recipe import Recipe, meta_params_like, recipe_for_inputs


def load(
    run: str | AnyPath, *, ensemble: bool = True, runs_dir: str | AnyPath = DEFAULT_ROOT
) -> Model:
    """Opens the network of a finished search, to adapt it to new tasks.

    Neither the training's data nor Ray are needed, and no code in the folder is run.

    Args:
        run: name or path of a run folder, or its URI; or of a folder that `raymeta export RUN
            --hub` wrote.
        ensemble: after a refit from several seeds, all of its networks answer together, as in the
            meta-test's row of the ensemble; False for the first alone, which takes less time.
        runs_dir: where runs are looked for by name.

    Raises:
        RunError: there is no such run, it has no network yet, or its files are damaged or do not
            belong together.
    """
    folder = path_at(run)
    if is_hub_folder(folder):
        shared = HubFolder.read(folder)
        trained, networks = _shared_networks(shared, folder, ensemble=ensemble)
        _ = trained.inputs
        spec, problem = trained.recipe.spec, trained.recipe.problem.name
        with _damage_of(folder):
            calibration = shared.calibration(len(networks))
            return Model(trained, networks, calibration, shared.familiarity(spec, problem))
    found = Run.open(str(run), path_at(runs_dir))
    trained, networks = _networks(found, ensemble=ensemble)
    _ = trained.inputs  # refuses forecasts, and facts that do not fit
    spec, problem = trained.recipe.spec, trained.recipe.problem.name
    calibration = calibration_of(found, len(networks))
    return Model(trained, networks, calibration, Reference.read(found, spec, problem))


def load_forecaster(
    run: str | AnyPath, *, ensemble: bool = True, runs_dir: str | AnyPath = DEFAULT_ROOT
) -> Forecaster:
    """Opens the network of a finished search with `tasks.kind: forecast`, to forecast new series.

    Arguments and errors are those of `load`.
    """
    folder = path_at(run)
    if is_hub_folder(folder):
        shared = HubFolder.read(folder)
        trained, networks = _shared_networks(shared, folder, ensemble=ensemble)
        tasks = _forecast_tasks(trained, folder)
        with _damage_of(folder):
            errors = shared.forecast_errors(len(networks), tasks.horizon)
        return Forecaster(trained, networks, tasks, errors)
    found = Run.open(str(run), path_at(runs_dir))
    trained, networks = _networks(found, ensemble=ensemble)
    tasks = _forecast_tasks(trained, found.path)
    errors = errors_of(found, len(networks), tasks.horizon)
    return Forecaster(trained, networks, tasks, errors)


def open_network(
    run: str | AnyPath, *, ensemble: bool = True, runs_dir: str | AnyPath = DEFAULT_ROOT
) -> Model | Forecaster:
    """Opens the network of a finished search, whatever its tasks are.

    Arguments and errors are those of `load`.
    """
    folder = path_at(run)
    settings = (
        HubFolder.read(folder).settings
        if is_hub_folder(folder)
        else Run.open(str(run), path_at(runs_dir)).experiment().model_dump()
    )
    opens = load_forecaster if settings["tasks"].get("kind") == "forecast" else load
    return opens(run, ensemble=ensemble, runs_dir=runs_dir)


def _forecast_tasks(trained: Trained, place: AnyPath) -> TableTasks:
    """The tasks of a network that forecasts; refuses facts that do not fit them."""
    tasks = trained.experiment.tasks
    if not (isinstance(tasks, TableTasks) and tasks.kind == "forecast"):
        raise RunError(f"{place}: its network makes no forecasts; raymeta.load opens it")
    facts = dict(trained.identity.facts)
    levels, shares = facts.pop("levels", {}), facts.pop("shares", [])
    sizes = [len(entries) for entries in levels.values()]
    fits = sorted(levels) == sorted(tasks.categories) and sum(sizes) == len(shares)
    if facts != forecast_facts(tasks) or not fits:
        raise RunError(
            f"{place}: the facts of its data do not fit the `tasks` settings; put back the files "
            "of the run"
        )
    return tasks


def _shared_networks(
    shared: HubFolder, folder: AnyPath, *, ensemble: bool
) -> tuple[Trained, tuple[Params, ...]]:
    """The training record and the meta-parameters of a shared folder's networks."""
    file = folder / MODEL_FILE
    with _damage_of(folder):
        experiment = _experiment(shared.settings)
    recipe = _recipe(experiment, shared.identity, file)
    shared.identity.check(shared.identity.of_recipe(recipe), str(file))
    networks = shared.networks if ensemble else shared.networks[:1]
    for network in networks:
        _check_network(network, recipe, file)
    return Trained(experiment, shared.identity, recipe), networks


@contextmanager
def _damage_of(folder: AnyPath) -> Iterator[None]:
    """Names the folder in errors about what its files hold."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder}: is damaged, or of another version of raymeta ({str(error)[:200]}); fetch "
            "it again"
        ) from error


def _experiment(settings: Any) -> Experiment:
    """The experiment of a file that travels.

    Raises:
        ValueError: it is none.
    """
    try:
        return Experiment.model_validate(settings)
    except (ValidationError, ExperimentError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _networks(run: Run, *, ensemble: bool) -> tuple[Trained, tuple[Params, ...]]:
    """The training record and the meta-parameters of a run's networks."""
    run.experiment()  # refuses folders of a later format
    best = run.best_experiment()
    seeds = Refitted.of(run).seeds if ensemble else ()
    trained, first = _opened(run, "tuned", best)
    networks = [first]
    for number, seed in enumerate(seeds[1:], start=1):
        _, network = _opened(run, f"tuned-{number}", with_values(best, {"training.seed": seed}))
        networks.append(network)
    return trained, tuple(networks)


def _opened(run: Run, role: str, experiment: Experiment) -> tuple[Trained, Params]:
    file = run.model_file(role)
    remedy = "put back a copy of the file, or start a new run"
    try:
        state = read_state(file)
    except RunError as error:
        raise RunError(f"{error}; {remedy}") from error
    found, origin = state.identity, run.origin
    if (found.role, found.run) != (role, "" if origin is None else origin.id):
        raise RunError(f"{file}: is not the network {role!r} of this run; {remedy}")
    recipe = _recipe(experiment, found, file)
    found.check(found.of_recipe(recipe), str(file))
    network = state.meta_params
    _check_network(network, recipe, file)
    return Trained(experiment, found, recipe), network


def _recipe(experiment: Experiment, identity: Identity, file: AnyPath) -> Recipe:
    """The recipe of the experiment with inputs as they were in training."""
    settings = identity.settings
    try:
        spec = InputSpec(
            settings["data.problem"],
            settings["network.num_outputs"],
            settings["network.num_features"],
            settings["network.vocabulary_size"],
        )
    except (LookupError, ValueError) as error:
        raise RunError(f"{file}: its metadata cannot be read") from error
    source = settings.get("data.name")
    if (spec.problem, source) != (experiment.problem.name, experiment.tasks.source):
        raise RunError(
            f"{file}: its network was trained on the source {source!r}, not on "
            f"{experiment.tasks.source!r} (tasks.source)"
        )
    return recipe_for_inputs(experiment, spec)


def _check_network(network: Params, recipe: Recipe, file: AnyPath) -> None:
    """Refuses tensors that do not fit; none of the sizes that a file names is allocated."""
    try:
        like = meta_params_like(recipe)
    except (RuntimeError, TypeError) as error:
        raise RunError(f"{file}: is damaged: {error!s:.200}") from error
    check_tensors(network, like, str(file))


def load_adapted(path: str | AnyPath) -> Adapted:
    """Reads what `Adapted.save` wrote; no code in the file is run.

    Raises:
        RunError: the file cannot be read, is damaged, or holds something else.
    """
    file = path_at(path)
    if file.is_dir():
        raise RunError(
            f"{file}: is a folder; raymeta.load opens runs, this opens what `raymeta adapt` wrote"
        )
    state = read_state(file)
    if state.identity.role != ROLE:
        raise RunError(
            f"{file}: holds no adapted network, but one to be adapted; open its run folder"
        )
    try:
        adapted = _adapted(state, file)
        _check_answers(adapted)
    except RaymetaError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{file}: is damaged, or of another version of raymeta ({str(error)[:200]}); adapt "
            "again"
        ) from error
    return adapted


def _adapted(state: State, file: AnyPath) -> Adapted:
    facts = state.identity.facts
    experiment = _experiment(facts["experiment"])
    identity = replace(state.identity, facts=facts["data"])
    recipe = _recipe(experiment, identity, file)
    identity.check(identity.of_recipe(recipe), str(file))
    recipe = replace(recipe, spec=replace(recipe.spec, num_outputs=facts["num_outputs"]))
    labels = None if facts["labels"] is None else np.array(facts["labels"])
    if (labels is not None) != (recipe.problem.name == "classification"):
        raise ValueError("its labels do not fit its problem")
    networks: dict[int, Params] = {}
    for name, value in state.tensors.items():
        if name.startswith(SUPPORT_PREFIX):
            continue
        number, _, own = name.removeprefix(PREFIX).partition(".")
        networks.setdefault(int(number), {})[own] = value
    params = tuple(networks[number] for number in range(len(networks)))
    support = Support.from_tensors(state.tensors, recipe, len(params))
    # Files of earlier versions say nothing of it.
    calibration = Calibration.from_json(facts.get("calibration", NO_CALIBRATION.to_json()))
    familiarity = familiarity_from_json(facts.get("familiarity"))
    trained = Trained(experiment, identity, recipe)
    return Adapted(trained, params, labels, support, calibration, familiarity)


def _check_answers(adapted: Adapted) -> None:
    """Refuses tensors that do not fit each other: they must answer to an example of zeros."""
    recipe = adapted.trained.recipe
    _ = adapted.trained.inputs  # refuses facts that do not fit
    if not adapted.params:
        raise ValueError("it holds no network")
    numbers = [v for p in adapted.params for v in p.values() if v.is_floating_point()]
    if any(value.dtype != recipe.dtype for value in numbers):
        raise ValueError(f"its numbers are not {recipe.dtype}")
    shape = (1, 1, 1) if recipe.spec.num_features is None else (1, 1, 1, recipe.spec.num_features)
    dtype = torch.int64 if recipe.spec.num_features is None else recipe.dtype
    query = Examples(torch.zeros(shape, dtype=dtype), torch.zeros(1, 1, dtype=torch.int64))
    wanted = (1, 1, recipe.spec.num_outputs)
    for params in adapted.params:
        found = recipe.learner.adapted_outputs(recipe.spec, params, query)
        if tuple(found.shape) != wanted or found.dtype != recipe.dtype:
            raise ValueError(f"its outputs are {list(found.shape)}, not {list(wanted)}")
        size = recipe.spec.output_size + recipe.learner.reads_steps
        features = torch.zeros(1, 1, size, dtype=recipe.dtype)
        weights = recipe.learner.support_weights(recipe.spec, params, features)
        if weights is not None and adapted.support is not None:
            adapted.support.check(weights.shape[2])
    if adapted.labels is not None and len(adapted.labels) > recipe.spec.num_outputs:
        raise ValueError("it has more labels than outputs")
