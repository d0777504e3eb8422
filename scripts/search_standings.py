"""Who is ahead of whom: the runs of search engines on the same problems, ranked and tested.

It needs none of the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, wilcoxon

NUM_STARTS = 10  # given to every engine; also the default of all three samplers of Optuna
RISK = 0.05
LEAST = 1e-3  # of random's median regret: smaller differences do not count in the test


@dataclass(frozen=True)
class Search:
    """What one engine did with one problem.

    `regrets` holds, after every tenth trial to end, the distance from the optimum of the true value
    of the trial that was seen as the best; `in_time` that at the moment when an engine that takes
    no time would be done with all; `asking` the processor seconds of the engine in all.
    """

    engine: str
    problem: str
    concurrent: int
    seed: int
    regrets: list[float]
    in_time: float
    asking: float


Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Standing:
    """An engine among the others, over all problems and seeds.

    Ranks are means over problems of means over seeds, with the 95 % interval of a bootstrap over
    seeds; `p_value` is that of Wilcoxon's signed-rank test against the first engine, on the
    logarithms of the regrets at the end in units of the problem's median under random search, in
    pairs of a problem and a seed, on both sides; `is_beaten` says that the first engine is ahead by
    that test.
    `worse_than_random` names the problems where the median regret at the end is above random's,
    each with that test's p-value for its being larger.
    """

    engine: str
    rank: tuple[float, float, float]  # mean, lower and upper end
    rank_in_time: tuple[float, float, float]
    p_value: float | None
    is_beaten: bool
    worse_than_random: list[str]
    seconds: float  # of the processor, a point that the engine chose; the median over runs


def standings(searches: Sequence[Search]) -> list[Standing]:
    """Ranks all engines of the searches, in their order."""
    engines = list(dict.fromkeys(search.engine for search in searches))
    settings = list(dict.fromkeys((s.problem, s.concurrent) for s in searches))
    seeds = sorted({search.seed for search in searches})
    by_key = {(s.engine, s.problem, s.concurrent, s.seed): s for s in searches}

    def table(value: Callable[[Search], float]) -> np.ndarray:
        """Arranges the values as (settings, seeds, engines)."""
        return np.array(
            [[[value(by_key[e, *s, seed]) for e in engines] for seed in seeds] for s in settings]
        )

    final, in_time = table(lambda s: s.regrets[-1]), table(lambda s: s.in_time)
    seconds = table(lambda s: s.asking / (10 * len(s.regrets) - NUM_STARTS))
    ranks, ranks_in_time = _mean_ranks(final), _mean_ranks(in_time)
    chance = engines.index("random") if "random" in engines else None
    unit = 1.0 if chance is None else np.median(final[:, :, chance], axis=1)[:, None, None]
    logs = np.log(final / np.maximum(unit, 1e-12) + LEAST)
    found = []
    for number, engine in enumerate(engines):
        difference = (logs[:, :, number] - logs[:, :, 0]).ravel()
        p, p_behind = 1.0, 1.0
        if np.any(difference):
            p = float(wilcoxon(difference).pvalue)
            p_behind = float(wilcoxon(difference, alternative="greater").pvalue)
        worse = [
            f"{problem} ({slots} at once, p {_p_of_worse(row[:, number], row[:, chance]):.2f})"
            for (problem, slots), row in zip(settings, final, strict=True)
            if chance is not None and np.median(row[:, number]) > np.median(row[:, chance])
        ]
        found.append(
            Standing(
                engine,
                _interval(ranks[:, number]),
                _interval(ranks_in_time[:, number]),
                p if number > 0 else None,
                p < RISK and p_behind < 0.5,
                worse,
                float(np.median(seconds[..., number])),
            )
        )
    return found


def _p_of_worse(regrets: np.ndarray, of_random: np.ndarray) -> float:
    return float(wilcoxon(regrets - of_random, alternative="greater").pvalue)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    mean, low, high = values.tolist()
    return mean, low, high


def _mean_ranks(values: np.ndarray, draws: int = 2000) -> np.ndarray:
    """(mean, lower, upper) by engine, of values of shape (settings, seeds, engines)."""
    ranks = rankdata(values, axis=-1).mean(axis=0)  # (seeds, engines): all settings count alike
    rng = np.random.default_rng(0)
    means = ranks[rng.integers(len(ranks), size=(draws, len(ranks)))].mean(axis=1)
    return np.stack([ranks.mean(axis=0), *np.quantile(means, [0.025, 0.975], axis=0)])


def can_tell(pairs: int) -> bool:
    """Whether so few pairs could show anything: the least p-value of the test on both sides."""
    return 2 * 0.5**pairs < RISK
