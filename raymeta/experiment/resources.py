"""The section `resources` of an experiment: what trials take, and how long they are waited for."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raymeta.sections import Section


class Resources(Section):
    """What one trial takes, and how many trials run at once."""

    num_workers: int = Field(1, ge=1, description="data-parallel workers of a trial")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0, description="whole or a fraction; 0 trains on CPU")
    accelerator_type: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]+$", description="train on such GPUs alone, e.g. A100"
    )
    placement: Literal["pack", "one_node", "spread"] = Field(
        "pack",
        description="a trial's workers on as few nodes as there is room, on one and the same node, "
        "or each on a node of its own",
    )
    max_concurrent_trials: int | None = Field(
        None, ge=1, description="by default as many as there is room for when the search starts"
    )
    max_failures: int = Field(2, ge=0, description="restarts of a trial from its last checkpoint")
    report_timeout_s: float | None = Field(
        None,
        gt=0,
        description="seconds between two reports of a trial, after which it counts as hung and is "
        "restarted; null: 10 times its longest so far, at least 60",
    )
    start_timeout_s: float | None = Field(
        None,
        gt=0,
        description="seconds until a trial's first report, the start of its processes included; "
        "null: 30 times the longest report of all trials, at least 600 and report_timeout_s (1800 "
        "before there is one)",
    )
    collective_timeout_s: float = Field(
        300,
        gt=0,
        description="seconds that a trial's workers wait for each other at most; report_timeout_s, "
        "which follows the reports so far, ends a hung trial sooner where it is shorter",
    )
    grace_s: float = Field(
        25,
        gt=0,
        le=86400,
        description="seconds after SIGTERM or SIGHUP in which trials may report once more; Slurm "
        "and Kubernetes kill after 30 by default",
    )

    @model_validator(mode="after")
    def _whole_gpus_above_one(self) -> Self:
        if self.gpus_per_worker > 1 and self.gpus_per_worker != int(self.gpus_per_worker):
            raise ValueError(
                f"gpus_per_worker must be a fraction up to 1 or a whole number, but got "
                f"{self.gpus_per_worker}"
            )
        if self.accelerator_type is not None and self.gpus_per_worker == 0:
            raise ValueError(
                "accelerator_type needs gpus_per_worker above 0, but got "
                f"(accelerator_type={self.accelerator_type}, gpus_per_worker=0)"
            )
        return self
