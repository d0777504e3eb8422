"""Lists an experiment's data files, and copies them for a job or a run.

Only files that the loader reads are copied: the data folder may hold unrelated or private files.
"""

from __future__ import annotations

from collections.abc import Iterator

from raymeta.data.files import refuse_outside, within
from raymeta.experiment.file import with_values
from raymeta.experiment.schema import Experiment
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at

DATA = "data"  # the folder of copies


def data_files(experiment: Experiment) -> Iterator[AnyPath]:
    """Lists the files that the loader reads from `tasks.data_dir`, if it is set.

    Raises:
        DataError: a file is a link to a place outside the folder.
    """
    if experiment.tasks.data_dir is None:
        return
    folder = path_at(experiment.tasks.data_dir)
    for file in experiment.tasks.data_files():
        refuse_outside(folder, file)
        yield file


def copy_data(experiment: Experiment, folder: AnyPath) -> Experiment:
    """Copies the data files into `folder/data`; returns the experiment that reads them there.

    An experiment without `tasks.data_dir` is returned as it is.

    Raises:
        DataError: a file is a link to a place outside the folder.
        RunError: a copy cannot be written.
    """
    if experiment.tasks.data_dir is None:
        return experiment
    home = path_at(experiment.tasks.data_dir)
    for file in data_files(experiment):
        write_file(folder / DATA / within(home, file), file.read_bytes())
    return with_values(experiment, {"tasks.data_dir": DATA})
