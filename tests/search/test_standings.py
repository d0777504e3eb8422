"""The verdict on search engines of `scripts/search_standings.py` and `scripts/bench_search.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from bench_search import standing_claims
from search_standings import Search, can_tell, standings

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROBLEMS, SEEDS = 8, 2


def runs(**factors: float) -> list[Search]:
    """Of engines whose regret is a factor of what the problem and the seed give, within noise."""
    rng = np.random.default_rng(0)
    found = []
    for problem in range(PROBLEMS):
        for seed in range(SEEDS):
            base = 10.0**problem
            for engine, factor in factors.items():
                regret = base * factor * float(np.exp(0.3 * rng.standard_normal()))
                found.append(Search(engine, str(problem), 1, seed, [regret] * 4, regret, 12.0))
    return found


def verdicts(found: list[Search], pairs: int = PROBLEMS * SEEDS) -> tuple[list[str], str]:
    """The verdicts on rank and time, and what was seen of the rank."""
    rank, seconds, *_ = standing_claims(standings(found), "problems", pairs, 40)
    return [rank.verdict, seconds.verdict], rank.seen


def test_ahead_of_every_rival_by_more_than_chance_holds() -> None:
    found, seen = verdicts(runs(ours=1, rival=3, random=10))
    assert found == ["holds", "holds"]
    assert seen == "the best; ahead by more than chance of rival, random"


def test_the_best_rank_falls_short_while_one_rival_is_behind_by_no_more_than_chance() -> None:
    found, seen = verdicts(runs(ours=1, rival=1.1, random=10))
    assert found[0] == "falls short"
    assert seen.startswith("the best; ahead by more than chance of random; not of rival (p 0.")


def test_a_rival_that_is_ahead_by_more_than_chance_is_not_beaten() -> None:
    ours, rival, random = standings(runs(ours=3, rival=1, random=10))
    assert (ours.is_beaten, rival.is_beaten, random.is_beaten) == (False, False, True)
    assert rival.p_value is not None
    assert rival.p_value < 0.05
    assert verdicts(runs(ours=3, rival=1, random=10))[0][0] == "falls short"


def test_few_pairs_cannot_tell() -> None:
    assert not can_tell(5)
    assert can_tell(6)
    assert verdicts(runs(ours=1, rival=3, random=10), pairs=5)[0][0].startswith("cannot tell")


def test_time_counts_by_the_points_that_an_engine_chose_and_not_by_those_given() -> None:
    assert standings(runs(ours=1, random=10))[0].seconds == pytest.approx(12.0 / 30)


def test_recorded_runs_are_of_the_problems_that_there_are_and_fall_short() -> None:
    lines = (SCRIPTS / "search_held_out.jsonl").read_text(encoding="utf-8").splitlines()
    found = [Search(**json.loads(line)) for line in lines]
    source = (SCRIPTS / "search_held_out.py").read_text(encoding="utf-8")
    assert all(f'"{search.problem}"' in source for search in found)
    (rank, _), seen = verdicts(found, len(found))
    assert rank == "falls short"
    assert "random" in seen.split("; not of")[0]
    assert "Ax (p" in seen.split("; not of")[1]
