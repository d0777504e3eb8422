"""The targets that a user gives: classes, or numbers; checked.

Shape legend: N examples, O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.errors import DataError, shown


def label_array(y: Any, num_examples: int) -> np.ndarray:
    """Classes as text or whole numbers `[N]`.

    Raises:
        DataError: their number or kind is wrong, or one is missing.
    """
    labels = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (num_examples,):
        raise DataError(
            f"y must have one class for each of the {num_examples} examples, but has the shape "
            f"{list(labels.shape)}"
        )
    if labels.dtype.kind == "O":
        for number, label in enumerate(labels.tolist(), start=1):
            if not isinstance(label, str | int) or label == "":
                raise DataError(
                    f"y, example {number}: must be a class, text or a whole number, but got "
                    f"{shown(label)}"
                )
        kinds = {isinstance(label, str) for label in labels.tolist()}
        if len(kinds) > 1:
            raise DataError("y must be text or whole numbers, but is text and numbers mixed")
        labels = labels.astype(str if kinds == {True} else np.int64)
    if labels.dtype.kind not in "iubUT":
        raise DataError(f"y must be classes, text or whole numbers, but holds {labels.dtype}")
    return labels.astype(str) if labels.dtype.kind == "T" else labels


def known(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of each label's class, int64 `[N]`."""
    number_of = {label: number for number, label in enumerate(classes.tolist())}
    for number, label in enumerate(labels.tolist(), start=1):
        if label not in number_of:
            raise DataError(
                f"y, example {number}: {shown(label)} is none of the classes that the network is "
                f"adapted to ({', '.join(map(shown, [*number_of][:10]))})"
            )
    return np.array([number_of[label] for label in labels.tolist()], dtype=np.int64)


def values_array(y: Any, num_examples: int, num_outputs: int) -> Tensor:
    """Targets of a regression as float64 `[N, O]`."""
    try:
        values = np.array(y, dtype=np.float64)  # a copy: what is given may not be writable
    except (TypeError, ValueError) as error:
        raise DataError(f"y must be numbers: {error!s:.200}") from None
    if values.ndim == 1 and num_outputs == 1:
        values = values[:, None]
    if values.shape != (num_examples, num_outputs):
        raise DataError(
            f"y must be numbers [{num_examples}, {num_outputs}], but has the shape "
            f"{list(values.shape)}"
        )
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        number = int(is_finite.argmin())
        raise DataError(
            f"y, example {number + 1}: {values[number].tolist()} is not a finite number"
        )
    return torch.from_numpy(values)
