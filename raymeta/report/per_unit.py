"""Which tasks gain from adaptation, and which lose: the scores on every unit of an axis."""

from __future__ import annotations

import numpy as np

from raymeta.evaluation.query_scores import QueryScores
from raymeta.evaluation.scores import MetaTest

MAX_UNITS = 60  # a longer table is no help: the figure beside it shows more


def unit_table(
    result: MetaTest, scores: QueryScores, axis: str
) -> tuple[list[str], list[list[str]]]:
    """The mean scores on each unit of an axis, such as a patient: heading and rows.

    Units are in the order of what the network gains by adaptation, or, where it adapts at once, of
    its lead over the hardest control; none for a single unit, or for more than `MAX_UNITS`.

    Args:
        result: of the meta-test.
        scores: of every query.
        axis: of the units.
    """
    ids = scores.queries.units[axis].reshape(-1)
    names, codes = np.unique(ids, return_inverse=True)
    if not 2 <= len(names) <= MAX_UNITS:
        return [], []
    counts, sign = np.bincount(codes), 1 if result.higher_is_better else -1

    def means(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.bincount(codes, values.reshape(-1)) / counts
        return found

    own = means(scores.own.mean(axis=0))
    columns: dict[str, np.ndarray] = {result.metric: own}
    order = own * sign
    controls = [row for row in result.controls if row.name in scores.controls and row.ahead]
    if controls:
        hardest = min(controls, key=lambda row: row.ahead.mean if row.ahead else 0.0)
        order = sign * (own - means(scores.controls[hardest.name]))
        columns[f"ahead of: {hardest.label}"] = order
    if len(result.rows[0].curve) > 1:
        order = sign * (own - means(scores.unadapted))
        columns["gain by adaptation"] = order
    head = [axis, "queries", *columns]
    rows = [
        [
            str(names[unit]),
            str(counts[unit]),
            *(f"{values[unit]:.3f}" for values in columns.values()),
        ]
        for unit in np.argsort(-order, kind="stable")
    ]
    return head, rows
