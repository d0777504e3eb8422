"""A folder by which others get a network, in the form of the Hugging Face Hub.

FOLDER/config.json        the experiment, how sure its answers are, versions; with a checksum
FOLDER/model.safetensors  the networks, the facts of their data, what support sets are compared with
FOLDER/README.md          the model card, for people; nothing is read from it

It holds no data, no path of the machine that wrote it and no pickle: reading it runs no code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raymeta.errors import RunError
from raymeta.evaluation.calibration import NO_CALIBRATION, Calibration
from raymeta.evaluation.familiarity import Reference
from raymeta.evaluation.forecast_errors import ForecastErrors
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.run_format import LIBRARIES, installed_version
from raymeta.storage.atomic import write_file
from raymeta.storage.checksum import read_json, to_json
from raymeta.storage.paths import AnyPath, RemotePath, remove_folder
from raymeta.training.checkpoint import read_state, state_bytes
from raymeta.training.identity import Identity

CONFIG_FILE, MODEL_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
LIBRARY = "raymeta"
FORMAT = 1
_ROLE = "hub"  # of the model file
_NETWORK, _FAMILIARITY = "network-", "familiarity."  # before the names of tensors
_REMEDY = "fetch the folder again, or let its author export it again"


@dataclass(frozen=True)
class HubFolder:
    """The content of such a folder.

    `settings` are the experiment's, as `Trained.settings` has them; `identity` is that of the first
    of the `networks`.  `calibrations` and `errors` are what the run's own files say of the first
    network alone and of all together, by their number; None where they were not measured.
    """

    settings: Mapping[str, Any]
    identity: Identity
    networks: tuple[Params, ...]
    reference: Reference | None = None
    calibrations: Mapping[str, Any] | None = None
    errors: Mapping[str, Any] | None = None

    def write(self, folder: AnyPath, card: str) -> None:
        """Writes the folder, whole or not at all.

        Args:
            folder: a new one, or an empty one.
            card: the model card, in Markdown.

        Raises:
            RunError: there is something in the folder, or it cannot be written.
        """
        if folder.is_file() or (folder.is_dir() and any(True for _ in folder.iterdir())):
            raise RunError(
                f"{folder}: must be a new or an empty folder, but holds something; name another "
                "one, or remove it"
            )
        contents = {MODEL_FILE: self._model(), CARD_FILE: card.encode(), CONFIG_FILE: self._config}
        if isinstance(folder, RemotePath):
            for name, content in contents.items():  # config.json last: it makes the folder a model
                write_file(folder / name, content)
            return
        folder = folder.resolve()
        made = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            for name, content in contents.items():
                write_file(made / name, content)
            made.replace(folder)
        except OSError as error:
            raise RunError(f"{folder}: cannot be written: {error.strerror or error}") from error
        finally:
            if made.is_dir():
                remove_folder(made)

    @classmethod
    def read(cls, folder: AnyPath) -> HubFolder:
        """Reads a folder.

        Raises:
            RunError: it is another library's, a file is damaged or missing, or they do not belong
                together.
        """
        config, state = _config(folder / CONFIG_FILE), read_state(folder / MODEL_FILE)
        identity, place = state.identity, folder / MODEL_FILE
        if (identity.role, identity.run) != (_ROLE, config.get("run")):
            raise RunError(f"{place}: does not belong to its {CONFIG_FILE}; {_REMEDY}")
        networks: dict[int, Params] = {}
        reference: dict[str, np.ndarray] = {}
        try:
            for name, value in state.tensors.items():
                if name.startswith(_FAMILIARITY):
                    reference[name.removeprefix(_FAMILIARITY)] = value.numpy()
                else:
                    number, _, own = name.removeprefix(_NETWORK).partition(".")
                    networks.setdefault(int(number), {})[own] = value
            found = cls(
                dict(config["experiment"]),
                identity,
                tuple(networks[number] for number in range(len(networks))),
                Reference(**reference) if reference else None,
                config["calibrations"],
                config["forecast_errors"],
            )
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(f"{folder}: is damaged ({str(error)[:200]}); {_REMEDY}") from error
        if not found.networks:
            raise RunError(f"{place}: holds no network; {_REMEDY}")
        return found

    def calibration(self, num_networks: int) -> Calibration:
        """The joint calibration of the first networks.

        Raises:
            LookupError, TypeError, ValueError: it is damaged.
        """
        if self.calibrations is None:
            return NO_CALIBRATION
        return Calibration.from_json(self.calibrations[str(num_networks)])

    def familiarity(self, spec: NetworkSpec, problem: str) -> Reference | None:
        """The statistics that support sets are compared with; None if the folder has none.

        Raises:
            ValueError: it does not fit the network.
        """
        if self.reference is not None and not self.reference.fits(spec, problem):
            raise ValueError("what support sets are compared with does not fit its network")
        return self.reference

    def forecast_errors(self, num_networks: int, horizon: int) -> ForecastErrors | None:
        """The joint forecast errors of the first networks; None if the folder has none.

        Raises:
            LookupError, TypeError, ValueError: they are damaged.
        """
        if self.errors is None:
            return None
        return ForecastErrors.from_json(self.errors[str(num_networks)], horizon)

    @property
    def _config(self) -> bytes:
        return to_json(
            {
                "library_name": LIBRARY,
                "format": FORMAT,
                "run": self.identity.run,
                "versions": {name: installed_version(name) for name in (LIBRARY, LIBRARIES[0])},
                "experiment": self.settings,
                "calibrations": self.calibrations,
                "forecast_errors": self.errors,
            }
        )

    def _model(self) -> bytes:
        # Copies: networks may have a tensor in common, which safetensors refuses.
        tensors = {
            f"{_NETWORK}{number}.{name}": value.clone()
            for number, params in enumerate(self.networks)
            for name, value in params.items()
        }
        if self.reference is not None:
            tensors |= {
                _FAMILIARITY + name: torch.from_numpy(np.ascontiguousarray(value))
                for name, value in vars(self.reference).items()
            }
        return state_bytes(tensors, replace(self.identity, role=_ROLE))


def is_hub_folder(folder: AnyPath) -> bool:
    """Whether the folder holds a shared network rather than a run."""
    is_run = (folder / "experiment.yaml").is_file()
    return not is_run and (folder / CONFIG_FILE).is_file() and (folder / MODEL_FILE).is_file()


def _config(file: AnyPath) -> dict[str, Any]:
    content = read_json(file, _REMEDY)
    if not isinstance(content, dict) or content.get("library_name") != LIBRARY:
        raise RunError(
            f"{file}: does not say library_name {LIBRARY}, so that it is another library's model; "
            "raymeta opens runs, and what `raymeta export RUN --hub` wrote"
        )
    if content.get("format") != FORMAT:
        versions = content.get("versions")
        by = versions.get(LIBRARY) if isinstance(versions, dict) else None
        raise RunError(
            f"{file}: has format {content.get('format')!r:.20}, by raymeta {by!r:.20}; this "
            f"raymeta reads format {FORMAT}: install that version"
        )
    return content
