"""A run's network as estimators of scikit-learn: to fit is to adapt.

Shape legend: N examples, T time steps, C channels, K classes, O outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from raymeta.errors import DataError
from raymeta.inference.adapted import Adapted
from raymeta.inference.examples import Axes
from raymeta.inference.files import load
from raymeta.run_folder import DEFAULT_ROOT


class _FewShot(BaseEstimator):
    """The common part of both estimators."""

    _problem: str
    adapted_: Adapted

    def __init__(
        self,
        run: str | Path,
        *,
        ensemble: bool = True,
        axes: Axes | None = None,
        runs_dir: str = str(DEFAULT_ROOT),
    ) -> None:
        self.run = run
        self.ensemble = ensemble
        self.axes = axes
        self.runs_dir = runs_dir

    def _fit(self, X: Any, y: Any) -> None:
        """Adapts the run's network to targets `y`, which only a DataFrame may have in itself."""
        model = load(self.run, ensemble=self.ensemble, runs_dir=self.runs_dir)
        problem = model.trained.recipe.problem.name
        if problem != self._problem:
            raise DataError(
                f"{self.run}: its network was trained for {problem}, but this estimator is for "
                f"{self._problem}"
            )
        self.adapted_ = model.adapt(X, y, axes=self.axes)

    def _examples(self, X: Any, *, reset: bool) -> Any:
        """A table `[N, T]`, checked as scikit-learn does; all else is left to raymeta."""
        ndim = getattr(X, "ndim", None)
        is_own = isinstance(X, pd.DataFrame) or ndim == 3 or _is_list_of_examples(X)
        if is_own:
            return X
        return validate_data(self, X, reset=reset, dtype="numeric")

    def __sklearn_tags__(self) -> Any:
        """Accepts inputs with three axes as well."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class FewShotClassifier(ClassifierMixin, _FewShot):
    """A run's network as a classifier: `fit` adapts it to the examples of a new task.

    Args:
        run: name or path of a finished run, or its URI.
        ensemble: all networks of a refit together, or the first alone; see `raymeta.load`.
        axes: the order of the axes of arrays; see `raymeta.inference.model.Model.adapt`.
        runs_dir: where runs are looked for by name.

    `X` is a list of arrays `[T, C]` of different lengths, an array `[N, T, C]`, a list of texts, or
    a DataFrame with the experiment's columns and one row a time step.  An array `[N, T]`, or a list
    of `[T]`, is for networks of one channel; where all T are the same, they are so in `fit` and
    `predict`, as scikit-learn has it.

    Attributes:
        classes_: `[K]`, sorted.
        adapted_: the adapted network, with `save`.
    """

    _problem = "classification"
    classes_: np.ndarray

    def fit(self, X: Any, y: Any = None) -> Self:
        """Adapts to the classes `y` `[N]`; left out for a DataFrame with the column of targets.

        Raises:
            DataError: an example or a class breaks a rule.
            RunError: the run cannot be used.
        """
        x = self._examples(X, reset=True)
        if y is None:
            _refuse_without_targets(X)
        else:
            y = column_or_1d(y, warn=True)
            check_classification_targets(y)  # numbers are whole after it
        self._fit(x, y.astype(np.int64) if y is not None and y.dtype.kind == "f" else y)
        labels = self.adapted_.labels
        assert labels is not None, "it is a classification"
        self.classes_ = labels if y is None else labels.astype(y.dtype)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The class of each example `[N]`."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each of `classes_`, `[N, K]`."""
        check_is_fitted(self)
        return self.adapted_.predict_proba(self._examples(X, reset=False), axes=self.axes)

    def __sklearn_tags__(self) -> Any:
        """Lets scikit-learn's checks expect any score: their data are unlike the training's."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags


class FewShotRegressor(RegressorMixin, _FewShot):
    """A run's network as a regressor: `fit` adapts it to the examples of a new task.

    Arguments and `X` are those of `FewShotClassifier`; `score` is R², as scikit-learn has it.

    Attributes:
        adapted_: the adapted network, with `save`.
    """

    _problem = "regression"

    def fit(self, X: Any, y: Any = None) -> Self:
        """Adapts to targets `y`, `[N]` or `[N, O]`; left out for a DataFrame that has them.

        Raises:
            DataError: an example or a target breaks a rule.
            RunError: the run cannot be used.
        """
        x = self._examples(X, reset=True)
        if y is None:
            _refuse_without_targets(X)
        elif np.ndim(y) == 2 and np.shape(y)[1] == 1:
            y = column_or_1d(y, warn=True)
        self._fit(x, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The value of each example, `[N]` or `[N, O]`."""
        check_is_fitted(self)
        return self.adapted_.predict(self._examples(X, reset=False), axes=self.axes)

    def __sklearn_tags__(self) -> Any:
        """Lets scikit-learn's checks expect any score: their data are unlike the training's."""
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags


def _refuse_without_targets(X: Any) -> None:
    if not isinstance(X, pd.DataFrame):  # in the words that scikit-learn looks for
        raise DataError("fit requires y to be passed, but the target y is None")


def _is_list_of_examples(X: Any) -> bool:
    """Whether `X` is a list of texts, of 2-D arrays, or of sequences of different lengths.

    An array of objects is such a list if it has one axis and no bare numbers.
    """
    if isinstance(X, np.ndarray):
        if X.dtype != object or X.ndim != 1:
            return False
    elif not isinstance(X, list | tuple):
        return False
    if not len(X) or not all(hasattr(one, "__len__") and getattr(one, "ndim", 1) for one in X):
        return False
    if isinstance(X, np.ndarray) or isinstance(X[0], str | pd.DataFrame):
        return True
    is_nested = any(np.ndim(step) > 0 for one in X for step in one[:1])
    return is_nested or len({len(one) for one in X}) > 1
