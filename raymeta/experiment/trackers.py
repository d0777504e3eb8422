"""The section `trackers` of an experiment: where trials are told besides in the run folder."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from raymeta.sections import Section

_SCHEMES = ("http", "https", "sqlite", "file", "")


class Wandb(Section):
    """Weights & Biases; the key is read from WANDB_API_KEY, or from `wandb login`."""

    project: str = Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: into RUN/wandb, for `wandb sync`; needs no key"
    )


class Trackers(Section):
    """Services that record the trials besides the run folder; they do not influence the run.

    Keys, tokens and passwords come from the trackers' own environment variables alone.
    """

    tensorboard: bool = Field(
        False, description="event files in RUN/tune: `tensorboard --logdir RUN/tune`"
    )
    mlflow: str | None = Field(
        None,
        min_length=1,
        description="a server (http://127.0.0.1:5000), a database (sqlite:///mlflow.db), or a "
        "folder for one; it also gets the meta-test with the network as a pyfunc model",
    )
    wandb: Wandb | None = None

    @field_validator("mlflow")
    @classmethod
    def _is_a_store_without_secrets(cls, uri: str | None) -> str | None:
        if uri is None:
            return uri
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise ValueError(f"must be a folder or a URI, but cannot be read: {error}") from None
        if parts.username or parts.password or parts.query:
            # The value is not shown: it holds what must not be in logs.
            raise ValueError(
                "must hold no user, password or query; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if parts.scheme not in _SCHEMES:
            raise ValueError(
                "must be a folder, or begin with http://, https:// or sqlite:///, but got "
                f"{uri[:60]!r}"
            )
        return uri

    @property
    def needed(self) -> dict[str, str]:
        """The packages that the chosen trackers need, by key."""
        chosen = {
            "tensorboard": ("tensorboardX", self.tensorboard),
            "mlflow": ("mlflow", self.mlflow is not None),
            "wandb": ("wandb", self.wandb is not None),
        }
        return {key: package for key, (package, is_chosen) in chosen.items() if is_chosen}
