"""A run's network as a pyfunc model of MLflow, loaded without a pickle.

Each call brings a task with it: the rows whose column of targets is filled are its support set, and
those in which it is empty are asked for.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from raymeta.errors import DataError
from raymeta.inference.examples import read_examples
from raymeta.inference.files import load
from raymeta.inference.model import Model
from raymeta.inference.tables import predictions


class AdaptingModel:
    """The model that MLflow calls to predict."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Adapts to the rows with a target and answers the others, as `raymeta predict` does.

        Args:
            model_input: the experiment's columns; a row a time step, or a text.
            params: of MLflow's; there are none.

        Raises:
            DataError: the column of targets is missing, or full, or empty; or an example is unfit.
        """
        del params
        target = self.model.trained.inputs.target
        if target not in model_input.columns:
            raise DataError(
                f"the DataFrame must have the column {target}: filled in the rows of the support "
                "set, empty in those to be predicted"
            )
        is_support = model_input[target].notna() & (model_input[target].astype(str) != "")
        if is_support.all() or not is_support.any():
            raise DataError(
                f"column {target} must be filled in the rows of the support set and empty in "
                f"others, but is filled in {int(is_support.sum())} of {len(is_support)} rows"
            )
        adapted = self.model.adapt(model_input[is_support])
        query = read_examples(model_input[~is_support], self.model.trained.inputs)
        return predictions(adapted, query).to_pandas()


def _load_pyfunc(path: str) -> AdaptingModel:
    """Loads the model for MLflow; `path` is a run folder."""
    return AdaptingModel(load(path))
