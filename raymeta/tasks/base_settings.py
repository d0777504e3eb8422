"""The settings that sources of tasks have in common, and the registry of all.

Defining a subclass of `TaskSettings` registers it under the value of its `source` key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import Field, field_validator

from raymeta.data.files import TABLE_SUFFIXES, table_files
from raymeta.errors import shown
from raymeta.sections import Section
from raymeta.storage.paths import AnyPath, path_at

SHIPPED_DATA = Path(__file__).parents[1] / "data" / "shipped"

# `source` -> the class of its settings.
SETTINGS: dict[str, type[TaskSettings]] = {}


class TaskSettings(Section):
    """The settings of every source. A subclass sets `problem` and narrows `source`."""

    # A name in `raymeta.problem.PROBLEMS`.
    problem: ClassVar[str]
    # Keys that cannot be searched: trials that differ in them solve different problems.
    FIXED: ClassVar[frozenset[str]] = frozenset(
        {"source", "num_ways", "num_shots", "num_queries", "data_dir"}
    )

    source: str
    num_ways: int = Field(ge=1, description="classes of an episode; 1 for regression")
    num_shots: int = Field(ge=1, description="support examples a class")
    num_queries: int = Field(ge=1, description="query examples a class")
    data_dir: str | None = Field(None, description="a folder or URI; null for the shipped data")

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in get_args(cls.model_fields["source"].annotation):  # none for a base class
            assert name not in SETTINGS, f"two settings classes have the source {name!r}"
            SETTINGS[name] = cls

    def data_files(self) -> list[AnyPath]:
        """Exactly the files that the loader reads, shipped ones included.

        Raises:
            DataError: a name fits, but is a folder or a link to nothing.
        """
        return []

    def pretrained(self) -> str | None:
        """The pretrained encoder of examples, a folder or hub name; None without one."""
        return None

    def asks_for(self) -> str:
        """The name of the problem; a source may have several."""
        return self.problem

    def levels(self) -> tuple[float, ...]:
        """The levels of the quantiles to be given; none of other problems."""
        return ()

    @property
    def has_fixed_labels(self) -> bool:
        """Whether a label, or a number, means the same in all tasks."""
        return False


class FileTasks(TaskSettings):
    """The settings of every source of a user's tables: the files to read."""

    # How the names of files that may be read end.
    SUFFIXES: ClassVar[tuple[str, ...]] = TABLE_SUFFIXES

    data_dir: str = Field(description="the folder or URI of the table's files")
    files: list[str] = Field(
        [],
        description="names and patterns of files in data_dir, such as *.csv or 2026-*/*.parquet; "
        "empty: every table file that is directly in it",
    )

    @field_validator("files", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _one_or_several(cls, files: object) -> object:
        return [files] if isinstance(files, str) else files

    @field_validator("files")
    @classmethod
    def _stay_in_the_folder(cls, files: list[str]) -> list[str]:
        for name in files:
            parts = name.split("/")
            if "" in parts or {"..", ".", "**"} & set(parts) or "\\" in name or "\0" in name:
                raise ValueError(
                    f"must name files within data_dir, level by level, but got {shown(name)}"
                )
            if not name.lower().endswith(cls.SUFFIXES):
                raise ValueError(
                    f"must end in one of {', '.join(cls.SUFFIXES)}, but got {shown(name)}"
                )
        return files

    def data_files(self) -> list[AnyPath]:
        """The files that fit `files`, sorted, each once.

        Raises:
            DataError: a name fits, but is a folder, a link to nothing, or leads out of `data_dir`.
        """
        return table_files(path_at(self.data_dir), self.files)
