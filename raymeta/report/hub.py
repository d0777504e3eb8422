"""Writes a run's network with its model card to a folder that others can load."""

from __future__ import annotations

from raymeta.data.encoder import is_folder
from raymeta.errors import RunError
from raymeta.evaluation.calibration import CALIBRATION_FILE
from raymeta.evaluation.forecast_errors import ERRORS_FILE
from raymeta.inference.files import load, load_forecaster
from raymeta.inference.forecaster import Forecaster
from raymeta.inference.hub import HubFolder
from raymeta.report.facts import read_results
from raymeta.report.model_card import CardFacts, model_card
from raymeta.run_folder import DEFAULT_ROOT, Run
from raymeta.storage.paths import AnyPath, path_at


def write_hub_folder(
    run: str | AnyPath, folder: str | AnyPath, *, runs_dir: str | AnyPath = DEFAULT_ROOT
) -> None:
    """Writes a finished run's network to a folder in the form of the Hugging Face Hub.

    The folder has `model.safetensors`, `config.json` and a model card, `README.md`; it opens by
    `raymeta.load` (of forecasts `raymeta.load_forecaster`), and answers as the run does.  It holds
    no data, but of texts their vocabulary, and of categories their levels; and no path of this
    machine.  The license is the author's to choose; the card says `unknown`.

    Args:
        run: name or path of a run folder, or its URI.
        folder: a new or an empty folder, or its URI.
        runs_dir: where runs are looked for by name.

    Raises:
        RunError: there is no such run, it has no network yet, its encoder is a folder of this
            machine, the folder holds something, or it cannot be written.
    """
    found = Run.open(str(run), path_at(runs_dir))
    experiment = found.best_experiment()
    encoder = experiment.tasks.pretrained()
    if encoder is not None and is_folder(encoder):
        raise RunError(
            f"{found.path}: its encoder is a folder of this machine, {encoder}, which others do "
            "not have (tasks.encoder); train with an encoder's name on the Hugging Face Hub"
        )
    is_forecast = experiment.problem.is_forecast
    network = (load_forecaster if is_forecast else load)(found.path)
    reference = None if isinstance(network, Forecaster) else network.reference
    trained = network.trained
    shared = HubFolder(
        settings=trained.settings,
        identity=trained.identity,
        networks=network.networks,
        reference=reference,
        calibrations=found.read_json(CALIBRATION_FILE, found.made_anew),
        errors=found.read_json(ERRORS_FILE, found.made_anew),
    )
    facts = CardFacts(
        experiment=found.experiment(),
        trained=trained,
        num_networks=len(network.networks),
        reference=reference,
        result=read_results(found),
        origin=found.origin,
    )
    shared.write(path_at(folder), model_card(facts))
