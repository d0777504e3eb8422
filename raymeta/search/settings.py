"""How a search is done: what for, with which model and which acquisition function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymeta.errors import SearchError

Mode = Literal["min", "max"]
Acquisition = Literal["auto", "log_ei", "log_nei", "ucb", "log_ehvi", "log_nehvi"]
Model = Literal["auto", "gp", "saas"]
Method = Literal["bo", "sobol", "random"]
CurveUse = Literal["extrapolate", "ignore"]


def least_completed(num_sobol: int) -> int:
    """How many trials must have come to their end before there is a model of them."""
    return max(1, num_sobol // 3)  # early stopping may leave few


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The settings of `raymeta.search.AxSearcher`, which describes them."""

    objectives: tuple[tuple[str, Mode], ...]
    outcome_constraints: tuple[str, ...] = ()
    method: Method = "bo"
    model: Model = "auto"
    acquisition: Acquisition = "auto"
    num_sobol: int = 5
    seed: int = 0
    device: str = "cpu"
    curves: CurveUse = "extrapolate"

    def __post_init__(self) -> None:
        """Refuses an acquisition function of another number of objectives.

        Raises:
            SearchError: it is one.
        """
        of_several = self.acquisition in ("log_ehvi", "log_nehvi")
        if self.objectives and self.acquisition != "auto" and of_several == self.is_single:
            raise SearchError(
                f"acquisition {self.acquisition} is for "
                f"{'several objectives' if of_several else 'one objective'}, but there "
                f"{'is one' if self.is_single else f'are {len(self.objectives)}'}; 'auto' takes "
                "the right one"
            )

    @property
    def is_single(self) -> bool:
        """Whether there is one objective."""
        return len(self.objectives) == 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that count: the objectives, then those that are only bounded."""
        names = [name for name, _ in self.objectives]
        bounded = [text.split("<=")[0].split(">=")[0].strip() for text in self.outcome_constraints]
        return tuple(dict.fromkeys([*names, *bounded]))
