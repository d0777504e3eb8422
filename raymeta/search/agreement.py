"""Tests whether validation can distinguish the trials of a search.

The best of many trials may be best by luck: another sample of validation tasks might rank them
differently.  Each trial has a score on two halves of the validation's units; if the trials
differ, both halves rank them alike (split-half reliability, Spearman 1910).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import permutation_test, rankdata

from raymeta.search.trial_log import LoggedTrials

FEWEST_TRIALS = 5  # with four trials, even perfect agreement has a chance of 1 in 24
LEVEL = 0.05  # significance level


@dataclass(frozen=True)
class Agreement:
    """The agreement of the halves: Spearman's ρ over the finished trials.

    `p_value` is the probability that trials without any difference agree at least as much.
    """

    num_trials: int
    rho: float
    p_value: float

    @property
    def is_chance(self) -> bool:
        """Whether the agreement may be due to chance."""
        return not self.p_value <= LEVEL


def agreement(trials: LoggedTrials) -> Agreement | None:
    """Computes the agreement over trials that used the full budget; None without scores of halves.

    Trials that were stopped early are left out: both halves rank a short training last.
    """
    pairs = [
        trials.halves[trial_id]
        for trial_id, record in trials.records.items()
        if record.status == "completed" and trial_id in trials.halves
    ]
    if not pairs:
        return None
    one, other = np.array(pairs).T
    if len(pairs) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return Agreement(len(pairs), math.nan, 1.0)
    ranks, others = rankdata(one), rankdata(other)
    others = (others - others.mean()) / (len(pairs) * others.std() * ranks.std())
    found = permutation_test(
        (ranks,),
        lambda permuted, axis: (permuted * others).sum(axis),  # Pearson's, of the ranks
        vectorized=True,
        permutation_type="pairings",
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return Agreement(len(pairs), float(found.statistic), float(found.pvalue))
