"""The settings of tables that a function of the user's own returns."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, JsonValue, field_validator

from raymeta.data.files import table_files
from raymeta.errors import shown
from raymeta.storage.paths import AnyPath, path_at
from raymeta.tasks.table_settings import TableTasks

_FUNCTION = re.compile(r"[^\W\d]\w*:[^\W\d]\w*")


class PythonTasks(TableTasks):
    """Sequences in a long table that a function of your own returns: one row a time step."""

    FIXED: ClassVar[frozenset[str]] = TableTasks.FIXED | {"function", "options"}
    SUFFIXES: ClassVar[tuple[str, ...]] = ("",)

    source: Literal["python"]  # type: ignore[assignment]  # a table from elsewhere
    data_dir: str = Field(description="the folder or URI of the Python file")
    function: str = Field(
        description="module:function; the file module.py in data_dir has the function, which "
        "returns the table: a mapping of columns, a pandas DataFrame or a pyarrow.Table. The code "
        "runs only where the environment variable RAYMETA_ALLOW_CODE names the file"
    )
    options: dict[str, JsonValue] = Field({}, description="arguments of the function, by name")
    files: list[str] = Field(
        [],
        description="names and patterns of files in data_dir that the function reads: they travel "
        "with the code, and a change of theirs is noticed",
    )

    @field_validator("function")
    @classmethod
    def _names_both(cls, function: str) -> str:
        if not _FUNCTION.fullmatch(function):
            raise ValueError(
                f"must be module:function, such as mine:load for the function load in mine.py, but "
                f"got {shown(function)}"
            )
        return function

    @property
    def module_file(self) -> AnyPath:
        """The file of the code."""
        return path_at(self.data_dir) / f"{self.function.partition(':')[0]}.py"

    def data_files(self) -> list[AnyPath]:
        """The file of the code, and those that fit `files`.

        Raises:
            DataError: a name fits, but is a folder, a link to nothing, or leads out of `data_dir`.
        """
        return table_files(path_at(self.data_dir), [self.module_file.name, *self.files])
