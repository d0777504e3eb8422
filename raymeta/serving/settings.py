"""The settings of a server: keys of `serveConfigV2`'s `args`, and options of `raymeta serve`."""

from __future__ import annotations

from pydantic import Field

from raymeta.run_folder import DEFAULT_ROOT
from raymeta.sections import Section


class Limits(Section):
    """The limits of a request; a text has one time step a character."""

    body_bytes: int = Field(8 << 20, ge=1)
    examples: int = Field(1000, ge=1, description="of a task")
    batch_examples: int = Field(10_000, ge=1, description="of all tasks of a request together")
    time_steps: int = Field(10_000, ge=1)
    classes: int = Field(100, ge=2)


class ServeSettings(Section):
    """What the application serves, and how it keeps tasks.

    `run` and `tasks_dir` must be reached from every node; they may be URIs.  The token is no key:
    the application takes it from the environment.
    """

    run: str
    tasks_dir: str = Field(description="a folder of the tasks alone; whoever reads it reads them")
    runs_dir: str = str(DEFAULT_ROOT)
    ensemble: bool = True
    replicas: int = Field(2, ge=1, description="processes that adapt and predict, a core each")
    tasks_kept: int = Field(1000, ge=1)
    keep_for_s: float = Field(3600, ge=1, le=1e9)
    limits: Limits = Limits()
