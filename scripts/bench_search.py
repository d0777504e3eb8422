"""What the search costs, whether it holds anything up, and what it finds beside other engines.

- stalls: a Tune run of 60 trials, 8 at a time, each reporting every 0.1 s for 10 s, 6 parameters;
  the time that Tune's loop takes for a step while trials run, and the share of the time in which
  trial slots are busy, from the start of the eighth trial to that of the last; beside it the same
  searcher when it waits for Ax within `suggest`, as searchers commonly do (`search_stalls.py`);
- state: time and size of a save at 500 trials of 20 reports;
- curves: Hartmann-6 whose trials gain with their budget, under successive halving; the best final
  value found when stopped trials count with what they would have come to, and when they are left
  out, from the same seeds;
- thaw: the same trials when each may be paused and gone on with (`search_thaw.py`), at 60 % of the
  budget of successive halving;
- batches: candidates for many slots at once, which get less search each: the time of 16 with 500
  trials behind and 48 running, and the regret on Hartmann-6 after 128 trials in batches of 16, both
  against the search that a single candidate gets;
- stop: searches that end by themselves (`search.stop_when_gain_below`, 1 % of a function's range)
  against all of their trials (`search_economy.py`): the regret lost and the trials saved;
- cost: `log_nei_per_second` against `log_nei` where trials take 1 to 10 s, at equal simulated time
  (`search_economy.py`); the start points are the same;
- failure: trials that fail where a corner, a product of sizes or half a space does
  (`search_learning.py`), of 25 with two at once, and the regret of the others; and with the memory
  that a trial would take as a known limit;
- learning: an earlier search that helps and one that misleads (`search.learn_from`) against none;
- ensemble: `model: gp-ensemble` against `gp`: the regret and the time a candidate;
- packed: what several trials in the meta-steps of one process could gain (`search_packed.py`), on
  shipped experiments;
- held-out: the engines of the part on regret, on problems on which nothing was ever tuned
  (`search_held_out.py`);
- large: 1,000 simulated trials, 64 at a time, each reporting five times: the time of the searcher's
  calls and the driver's memory as the search grows;
- regret: against other engines from the same start points (`search_regret.py`), on test functions
  and recorded tables (`search_problems.py`).  It needs `pip install -e '.[bench]'`.

    python scripts/bench_search.py                                    # quick: little of each part
    python scripts/bench_search.py --only PART...                     # that of a part
    python scripts/bench_search.py --full --rows FILE --json FILE     # hours; --rows: goes on later
    options: --only PART..., --seeds N, --processes N, --problems NAME...
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import ray
import torch
from botorch.test_functions.synthetic import Hartmann
from rich.console import Console
from rich.table import Table
from scipy.stats import wilcoxon
from search_economy import FUNCTIONS, function, regret_in_time, stopped
from search_learning import FAILING, failures, paired, planned, regret_of, regret_with
from search_packed import packing_gains
from search_stalls import CONCURRENT, WaitingSearcher, run_tune
from search_standings import RISK, Standing, can_tell
from search_thaw import SHARE, FreezeThaw, asha

from raymeta.search import AxSearcher, Parameter, Space, ax_model
from raymeta.search.ax_model import AxModel
from raymeta.search.records import Curve, TrialRecord
from raymeta.search.settings import Mode, Model, SearchSettings

SHOWN = "shown"  # what a claim must reach that is no claim
SPACE = [Parameter(name=f"x{i}", low=0, high=1) for i in range(6)]
LONGEST_LARGE_SECONDS = 7200  # of the part on a large search
REPORTS = 5  # of a trial in the part on a large search
LEAST_REGRET = 1e-3  # in % of the range; below, regrets count as equal
MOST_FAILED = {"corner": 4.0, "memory": 5.0, "harmless": 4.0}  # they were 8.0, 7.2, 5.0
QUICK_FUNCTIONS = ("branin", "levy4")
QUICK_HELD_OUT = ("beale", "shekel_fails")
PACKED = ("pen", "pen-maml", "sinusoid", "employment")
WORTH_PACKING = 1.5  # times the meta-steps; below, Tune's own trials are the simpler way
QUICK_LENGTH = 20  # trials of a search beside other engines
QUICK_PROBLEMS = ("levy4", "pen_trials")
OBJECTIVES: tuple[tuple[str, Mode], ...] = (("value", "max"),)
BATCH = 16
LONGEST = 40  # trials of a search beside other engines
MOST_SECONDS = 0.5  # a candidate


@dataclass(frozen=True)
class Claim:
    """A measurement and its requirement.

    `holds` is None for what is only shown, which must reach nothing, and where so few runs could
    not show it.
    """

    what: str
    must: str
    seen: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.holds is None:
            return "" if self.must == SHOWN else "cannot tell (too few runs)"
        return "holds" if self.holds else "falls short"


# -------------------------------------------------------------------- stalls


def stall_claims(num_trials: int) -> list[Claim]:
    """Compares raymeta's searcher with one that waits for Ax on Tune's loop."""
    ray.init(
        "local",
        num_cpus=CONCURRENT,
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    seen = {}
    for searcher_class in (AxSearcher, WaitingSearcher):
        searcher = searcher_class(SPACE, metric="value", mode="max", num_sobol=CONCURRENT)
        seen[searcher_class] = run_tune(searcher, num_trials)
    ray.shutdown()
    claims = []
    for searcher_class, clock in seen.items():
        steps = np.array(clock.steps)
        p99, longest, busy = np.quantile(steps, 0.99), steps.max(), clock.busy_share()
        ours = searcher_class is AxSearcher
        name = "raymeta" if ours else "the same, waiting in suggest"
        good = bool(p99 <= 0.3), bool(longest <= 1.0), bool(busy >= 0.95)
        measures = (
            ("p99 of the steps of Tune's loop", "≤ 0.3 s", f"{p99:.2f} s"),
            ("longest step", "≤ 1 s", f"{longest:.2f} s"),
            ("trial slots busy", "≥ 95 %", f"{100 * busy:.1f} %"),
        )
        claims += [
            Claim(f"{what}: {name}", must if ours else SHOWN, value, holds if ours else None)
            for (what, must, value), holds in zip(measures, good, strict=True)
        ]
    return claims


# -------------------------------------------------------------------- state


def state_claims() -> list[Claim]:
    """Measures the saving of 500 trials."""
    searcher = AxSearcher(SPACE, metric="value", mode="max")
    generator = np.random.default_rng(0)

    def record() -> TrialRecord:
        point = {p.name: float(generator.random()) for p in SPACE}
        curve: Curve = [(step, float(generator.random()), 0.01) for step in range(20)]
        return TrialRecord(point, "bo", "completed", curve)

    found = {}
    for count in (50, 500):
        searcher.records.update({f"trial{i}": record() for i in range(count)})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                searcher.save(str(path))
                seconds.append(time.perf_counter() - start)
            found[count] = statistics.median(seconds), path.stat().st_size / count
    (_, small), (seconds_500, large) = found[50], found[500]
    return [
        Claim(
            "state of 500 trials: time to write it",
            "≤ 50 ms",
            f"{1e3 * seconds_500:.0f} ms, {large * 500 / 1e3:.0f} kB",
            seconds_500 <= 0.05,
        ),
        Claim(
            "bytes a trial at 500 trials against 50",
            "no growth",
            f"{large / small:.2f} ×",
            large / small <= 1.02,
        ),
    ]


# -------------------------------------------------------------------- curves


def hartmann(point: dict[str, Any]) -> float:
    """Minus Hartmann-6, to be maximised; its best value is 3.322."""
    x = torch.tensor([[point[p.name] for p in SPACE]], dtype=torch.float64)
    return -float(Hartmann(dim=6)(x))


def value_at(point: dict[str, Any], budget: int) -> float:
    """Hartmann-6 as a trial comes near to it: quickly or slowly, as the first parameter says."""
    return hartmann(point) - 2.0 * float(np.exp(-budget / (1.0 + 3.0 * point["x0"])))


def curve_claims(seeds: int, num_trials: int = 30) -> list[Claim]:
    """Estimates of stopped trials against leaving them out."""
    found = {
        use: [
            asha(Space(tuple(SPACE)), value_at, seed, num_trials, use).best[-1]
            for seed in range(seeds)
        ]
        for use in ("extrapolate", "ignore")
    }
    differences = [a - b for a, b in zip(found["extrapolate"], found["ignore"], strict=True)]
    wins = sum(difference > 0 for difference in differences)
    gain = statistics.median(differences)
    return [
        Claim(
            f"Hartmann-6 with curves, {num_trials} trials: best with estimates against without",
            "better",
            f"median {gain:+.3f} ({min(differences):+.3f} to {max(differences):+.3f}), better with "
            f"{wins} of {seeds} seeds; {statistics.median(found['extrapolate']):.3f} against "
            f"{statistics.median(found['ignore']):.3f}",
            gain > 0 and wins > seeds / 2,
        )
    ]


# -------------------------------------------------------------------- thaw


def thaw_claims(seeds: int, num_trials: int = 30) -> list[Claim]:
    """Freeze and thaw at a share of the budget that ASHA with estimates takes."""
    space = Space(tuple(SPACE))
    rivals: dict[str, list[float]] = {"in its whole budget": [], "in the same budget": []}
    found, counts, seconds = [], [], []
    for seed in range(seeds):
        rival = asha(space, value_at, seed, num_trials)
        budget = round(SHARE * rival.steps[-1])
        rivals["in its whole budget"].append(rival.best[-1])
        rivals["in the same budget"].append(rival.best_within(budget))
        began = time.process_time()
        thaw = FreezeThaw(space, value_at, seed)
        found.append(thaw.run(budget).best[-1])
        seconds.append((time.process_time() - began) / budget)
        counts.append(len(thaw.points))
    claims = []
    for when, others in rivals.items():
        differences = [a - b for a, b in zip(found, others, strict=True)]
        gain, wins = statistics.median(differences), sum(value >= 0 for value in differences)
        claims.append(
            Claim(
                f"freeze and thaw, {SHARE:.0%} of the budget of ASHA with {num_trials} trials: "
                f"best final value against ASHA's {when}",
                "not below",
                f"median {gain:+.3f} ({min(differences):+.3f} to {max(differences):+.3f}), not "
                f"below with {wins} of {seeds} seeds; mean {statistics.mean(found):.3f} against "
                f"{statistics.mean(others):.3f}",
                gain >= 0,
            )
        )
    text = f"{min(counts)} to {max(counts)}; {statistics.median(seconds):.3f} s"
    what = "the same: trials begun; the processor's time a quantum"
    return [*claims, Claim(what, SHOWN, text, None)]


# -------------------------------------------------------------------- batches


def run_batches(seed: int, rounds: int = 8) -> float:
    """The regret of a search whose trials start and end together."""
    model = AxModel(
        Space(tuple(SPACE)), SearchSettings(objectives=OBJECTIVES, num_sobol=BATCH, seed=seed)
    )
    changes: dict[str, TrialRecord] = {}
    best = -np.inf
    for number in range(rounds):
        proposals = model.propose_several(changes, BATCH)
        values = [hartmann(proposal.point) for proposal in proposals]
        best = max(best, *values)
        changes = {
            f"t{number} {place}": TrialRecord(
                proposal.point, proposal.source, "completed", [(1, value, None)]
            )
            for place, (proposal, value) in enumerate(zip(proposals, values, strict=True))
        }
    return 3.32237 - float(best)


def seconds_of_a_batch(num_trials: int = 500, running: int = 48) -> float:
    """The seconds that one batch of proposals takes, the model's fit included."""
    rng = np.random.default_rng(0)
    records = {}
    for number in range(num_trials + running):
        point = {p.name: float(rng.random()) for p in SPACE}
        ended = number < num_trials
        curve: Curve = [(1, hartmann(point), None)] if ended else []
        records[f"t{number}"] = TrialRecord(point, "bo", "completed" if ended else "running", curve)
    model = AxModel(Space(tuple(SPACE)), SearchSettings(objectives=OBJECTIVES))
    model.learn(records)
    start = time.perf_counter()
    model.propose_several({}, BATCH)
    return time.perf_counter() - start


def batch_claims(seeds: int) -> list[Claim]:
    """Less search for each of many candidates against as much as for one."""
    torch.set_num_threads(1)
    times: dict[bool, list[float]] = {True: [], False: []}
    regrets: dict[bool, list[float]] = {True: [], False: []}
    for quick in (True, False):
        with patch.object(ax_model, "_MANY_AT_ONCE", BATCH if quick else BATCH + 1):
            times[quick] = [seconds_of_a_batch() for _ in range(3)]
            regrets[quick] = [run_batches(seed) for seed in range(seeds)]
    ratios = [b / a for a, b in zip(times[True], times[False], strict=True)]
    gain = statistics.median(ratios)
    ours, whole = statistics.median(regrets[True]), statistics.median(regrets[False])
    better = sum(a <= b for a, b in zip(regrets[True], regrets[False], strict=True))
    return [
        Claim(
            f"{BATCH} candidates at once, 500 trials behind: time saved by less search each",
            "> 1 ×",
            f"{gain:.1f} × ({min(ratios):.1f} to {max(ratios):.1f}); "
            f"{statistics.median(times[True]) / BATCH:.2f} s each",
            gain > 1,
        ),
        Claim(
            f"Hartmann-6, 128 trials in batches of {BATCH}: regret with it, and without",
            SHOWN,
            f"median {ours:.4f} and {whole:.4f}; not above with {better} of {seeds} seeds",
            None,
        ),
    ]


# -------------------------------------------------------------------- stop


def stop_claims(problems: Sequence[str], seeds: int, budget: int = 40) -> list[Claim]:
    """Searches that end when little is left to gain, against the same with all their trials."""
    torch.set_num_threads(1)
    lost, made = [], []
    claims = []
    for name in problems:
        problem = function(name)
        found = [stopped(problem, seed, budget, limit=1.0, num_sobol=8) for seed in range(seeds)]
        lost += [one.regret - one.regret_at_budget for one in found]
        made += [one.num_trials for one in found]
        claims.append(
            Claim(
                f"stop rule, {name}: trials made of {budget}; regret then and after all, in % of "
                "the range",
                SHOWN,
                "; ".join(
                    f"{x.num_trials}: {x.regret:.2f}, {x.regret_at_budget:.2f}" for x in found
                ),
                None,
            )
        )
    saved = 100 * (1 - statistics.mean(made) / budget)
    return [
        Claim(
            f"stop rule, {len(problems)} functions, {seeds} seeds: greatest regret lost",
            "≤ 1 % of the range",
            f"{max(lost):.2f} %, with {saved:.0f} % of the trials saved",
            max(lost) <= 1,
        ),
        *claims,
    ]


# -------------------------------------------------------------------- cost


def cost_claims(problems: Sequence[str], seeds: int, budget_s: float = 100.0) -> list[Claim]:
    """Whether to go by seconds pays: log10 of the regrets' ratio, paired by seed."""
    torch.set_num_threads(1)
    gains: dict[str, list[float]] = {}
    for name in problems:
        problem = function(name)
        for surface in ("growing", "falling"):
            gains[f"{name}, {surface}"] = [
                float(np.log10((blind + LEAST_REGRET) / (aware + LEAST_REGRET)))
                for seed in range(seeds)
                for aware, blind in [
                    [
                        regret_in_time(problem, surface, acquisition, seed, budget_s, num_sobol=6)
                        for acquisition in ("log_nei_per_second", "log_nei")
                    ]
                ]
            ]
    every = [gain for found in gains.values() for gain in found]
    mean = statistics.mean(every)
    p = float(wilcoxon(every, alternative="greater").pvalue)
    # One-sided, for each problem: worse by more than chance.
    worse = [
        name
        for name, found in gains.items()
        if any(found) and wilcoxon(found, alternative="less").pvalue < RISK / len(gains)
    ]
    # The least p that so few seeds can give: the row must be able to fail.
    tells_worse = 0.5**seeds < RISK / len(gains)
    tells_better = 0.5 ** len(every) < RISK
    means = ", ".join(f"{name} {statistics.mean(found):+.2f}" for name, found in gains.items())
    return [
        Claim(
            f"seconds 1 to 10: log10 of the regret saved by log_nei_per_second, {len(gains)} "
            f"problems, {seeds} seeds, {budget_s:g} s each",
            "> 0, p < 0.05",
            f"mean {mean:+.2f}, p {p:.1g} (Wilcoxon); {means}",
            (mean > 0 and p < RISK) if tells_better else None,
        ),
        Claim(
            "problems where going by seconds is worse by more than chance",
            "none",
            (", ".join(worse) or "none") if tells_worse else f"{seeds} seeds cannot tell",
            not worse if tells_worse else None,
        ),
    ]


# -------------------------------------------------------------------- failure, learning, ensemble


def failure_claims(problems: Sequence[str], seeds: int, num_trials: int = 25) -> list[Claim]:
    """How many trials fail, against what they were before failures had a model of their own."""
    torch.set_num_threads(1)
    claims = []
    for name in problems:
        problem = FAILING[name]()
        found = [failures(problem, seed, num_trials) for seed in range(seeds)]
        failed = [one.count for one in found]
        most = MOST_FAILED[name]
        claims.append(
            Claim(
                f"failing region, {name}: trials of {num_trials} that fail, {seeds} seeds",
                f"mean ≤ {most:g}",
                f"mean {statistics.mean(failed):.1f} ({min(failed)} to {max(failed)}); median "
                f"regret {statistics.median(one.regret for one in found):.3f}",
                statistics.mean(failed) <= most,
            )
        )
        after = [one.after_two for one in found]
        claims.append(
            Claim(
                "the same: trials that fail, of those begun when two had failed",
                "none",
                f"mean {statistics.mean(after):.1f} ({min(after)} to {max(after)})",
                max(after) == 0,
            )
        )
    return claims


def memory_claims(seeds: int, num_trials: int = 25) -> list[Claim]:
    """What does not fit is not tried, where an estimate of memory says so beforehand."""
    torch.set_num_threads(1)
    known = {"memory": FAILING["memory"](), "the plan of sinusoid's meta-step": planned()}
    claims = []
    for name, problem in known.items():
        found = [failures(problem, seed, num_trials, is_known=True) for seed in range(seeds)]
        claims.append(
            Claim(
                f"memory as a known limit, {name}: trials of {num_trials} begun above it, "
                f"{seeds} seeds",
                "none",
                f"{sum(one.count for one in found)}; points passed over in "
                f"{statistics.mean(one.passed_over for one in found):.1f} trials of a search; "
                f"median regret {statistics.median(one.regret for one in found):.3f}",
                all(one.count == 0 for one in found),
            )
        )
    return claims


def learning_claims(seeds: int, num_trials: int = 12) -> list[Claim]:
    """An earlier search that helps, and one that misleads, against none."""
    torch.set_num_threads(1)
    alone = [regret_with(None, seed, num_trials)[-1] for seed in range(seeds)]
    claims = []
    for source in ("helpful", "misleading"):
        regrets = [regret_with(source, seed, num_trials)[-1] for seed in range(seeds)]
        gains = paired(alone, regrets)
        mean = statistics.mean(gains)
        helps = source == "helpful"
        tells = 0.5**seeds < RISK
        p = float(wilcoxon(gains, alternative="greater" if helps else "less").pvalue)
        right = (mean > 0 and p < RISK) if helps else p >= RISK
        claims.append(
            Claim(
                f"learn_from, {source} run, Hartmann-6, {num_trials} trials, {seeds} seeds: log10 "
                "of the regret saved",
                "> 0, p < 0.05" if helps else "not below 0 by more than chance",
                f"mean {mean:+.2f}, p {p:.2g}; median regret {statistics.median(regrets):.2f} "
                f"against {statistics.median(alone):.2f} from nothing",
                right if tells else None,
            )
        )
    return claims


def ensemble_claims(names: Sequence[str], seeds: int, num_trials: int = 20) -> list[Claim]:
    """Whether to average over hyperparameters pays."""
    torch.set_num_threads(1)
    models: tuple[Model, ...] = ("gp", "gp-ensemble")
    gains: list[float] = []
    seconds: dict[str, list[float]] = {model: [] for model in models}
    for name in names:
        regrets: dict[str, list[float]] = {model: [] for model in models}
        for seed in range(seeds):
            for model in models:
                regret, one = regret_of(FUNCTIONS[name](), model, seed, num_trials)
                regrets[model].append(regret)
                seconds[model].append(one)
        gains += paired(regrets["gp"], regrets["gp-ensemble"])
    mean = statistics.mean(gains)
    p = float(wilcoxon(gains, alternative="greater").pvalue)
    took = {model: statistics.median(found) for model, found in seconds.items()}
    return [
        Claim(
            f"gp-ensemble against gp, {len(names)} functions, {num_trials} trials, {seeds} seeds: "
            "log10 of the regret saved",
            "> 0, p < 0.05, to become the default",
            f"mean {mean:+.2f}, p {p:.2g}",
            (mean > 0 and p < RISK) if 0.5 ** len(gains) < RISK else None,
        ),
        Claim(
            "gp-ensemble: processor time a candidate",
            "≤ 0.5 s",
            f"{took['gp-ensemble']:.2f} s; gp {took['gp']:.2f} s",
            took["gp-ensemble"] <= 0.5,
        ),
    ]


def packed_claims(names: Sequence[str], rounds: int, pack: int = 4, steps: int = 5) -> list[Claim]:
    """The gain that packed trials could have, for each experiment."""
    claims = []
    for name in names:
        gains = packing_gains(name, pack, rounds, steps)
        median = statistics.median(gains)
        claims.append(
            Claim(
                f"{pack} trials of {name} in one meta-step: meta-steps in the same time",
                f"≥ {WORTH_PACKING} ×, to be worth it",
                f"{median:.2f} × ({min(gains):.2f} to {max(gains):.2f})",
                median >= WORTH_PACKING,
            )
        )
    return claims


# -------------------------------------------------------------------- large


def large_claims(num_trials: int, seconds: float, slots: int = 64) -> list[Claim]:
    """A driver's calls to the searcher in real time; the trials are a function of the clock."""
    ray.init(
        "local",
        num_cpus=1,
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    searcher = AxSearcher(SPACE, metric="value", mode="max", num_sobol=20, max_steps=REPORTS)
    rng, driver = np.random.default_rng(0), psutil.Process()
    running: dict[str, tuple[float, float, float]] = {}  # start, seconds a report, value
    reported: dict[str, int] = {}
    calls: list[tuple[int, float]] = []  # trials ended, seconds of the call
    memory: dict[int, float] = {}  # MB by trials ended
    ended = 0

    def timed(call: Callable[..., Any], *args: Any) -> Any:
        began = time.perf_counter()
        answer = call(*args)
        calls.append((ended, time.perf_counter() - began))
        return answer

    with tempfile.TemporaryDirectory() as folder:
        saved = time.monotonic()
        patience = time.monotonic() + LONGEST_LARGE_SECONDS
        while ended < num_trials and time.monotonic() < patience:
            time.sleep(0.02)
            if time.monotonic() - saved > 1:
                timed(searcher.save, str(Path(folder) / "state"))
                saved = time.monotonic()
            for trial, (start, pace, value) in list(running.items()):
                due = min(int((time.monotonic() - start) / pace), REPORTS)
                while reported[trial] < due:
                    reported[trial] += 1
                    step = reported[trial]
                    result = {"training_iteration": step, "value": value * step / REPORTS}
                    timed(searcher.on_trial_result, trial, result)
                if due == REPORTS:
                    timed(searcher.on_trial_complete, trial, result)
                    del running[trial]
                    ended += 1
                    if ended % (num_trials // 4) == 0:
                        memory[ended] = driver.memory_info().rss / 1e6
            if len(running) < slots and len(reported) < num_trials:
                trial = f"trial{len(reported)}"
                point = timed(searcher.suggest, trial)
                if isinstance(point, dict):
                    pace = seconds / REPORTS * float(np.exp(0.25 * rng.standard_normal()))
                    running[trial] = (time.monotonic(), pace, hartmann(point))
                    reported[trial] = 0
    ray.shutdown()
    name = f"{num_trials} trials, {slots} at once"
    claims = [Claim(name, "completes", f"{ended} came to their end", ended == num_trials)]
    for part, (count, megabytes) in enumerate(memory.items()):
        times = np.array([t for at, t in calls if part == at // (num_trials // 4)])
        claims.append(
            Claim(
                f"{name}, up to trial {count}: time of a call; memory",
                SHOWN,
                f"median {1e6 * np.median(times):.0f} µs, longest {1e3 * times.max():.0f} ms; "
                f"{megabytes:.0f} MB",
                None,
            )
        )
    return claims


# -------------------------------------------------------------------- regret


def regret_claims(
    problems: Sequence[str] | None,
    concurrent: Sequence[int],
    seeds: int,
    num_trials: int,
    rows: Path | None,
    jobs: int,
    *,
    held_out: bool = False,
) -> list[Claim]:
    """Ranks, by regret at the end and by that in the time of the trials; None: all problems."""
    # The other engines are not needed for the other parts.
    from search_held_out import HELD_OUT  # noqa: PLC0415
    from search_problems import PROBLEMS  # noqa: PLC0415
    from search_regret import ENGINES, HELD_OUT_ALONE, run_all  # noqa: PLC0415
    from search_standings import standings  # noqa: PLC0415

    there = HELD_OUT if held_out else PROBLEMS
    problems = list(there) if problems is None else problems
    unknown = [name for name in problems if name not in there]
    if unknown:
        sys.exit(f"--problems must be among {', '.join(there)}, but got {', '.join(unknown)}")
    engines = [name for name in ENGINES if held_out or name not in HELD_OUT_ALONE]
    found = standings(run_all(engines, problems, concurrent, seeds, num_trials, rows, jobs))
    kind = "held-out " if held_out else ""
    what = f"{len(problems)} {kind}problems, {num_trials} trials, {seeds} seeds"
    return standing_claims(found, what, len(problems) * len(concurrent) * seeds, num_trials)


def standing_claims(
    found: Sequence[Standing], what: str, pairs: int, num_trials: int
) -> list[Claim]:
    """What the first engine must reach beside the others, and how each of them does.

    Args:
        found: of all engines.
        what: the problems, trials and seeds in words.
        pairs: of a problem and a seed.
        num_trials: of a search.
    """
    ours, *rivals = found
    is_best = all(ours.rank[0] < rival.rank[0] for rival in rivals)
    beaten = [rival.engine for rival in rivals if rival.is_beaten]
    others = [f"{rival.engine} (p {rival.p_value:.1g})" for rival in rivals if not rival.is_beaten]
    seen = "the best" if is_best else "not the best"
    if beaten:
        seen += f"; ahead by more than chance of {', '.join(beaten)}"
    if others:
        seen += f"; not of {', '.join(others)}"
    worse = ours.worse_than_random

    def words(rank: tuple[float, float, float]) -> str:
        mean, low, high = rank
        return f"{mean:.2f}" if low == high else f"{mean:.2f} ({low:.2f} to {high:.2f})"

    return [
        Claim(
            f"average rank of {ours.engine} among {len(found)}, {what}",
            f"the best, ahead of each other by more than chance (p < {RISK})",
            seen,
            (is_best and not others) if can_tell(pairs) else None,
        ),
        Claim(
            f"the processor's time a candidate of {ours.engine} at {LONGEST} trials, median run",
            f"≤ {MOST_SECONDS} s",
            f"{ours.seconds:.2f} s",
            ours.seconds <= MOST_SECONDS if num_trials >= LONGEST else None,
        ),
        Claim(
            "problems where its median regret is above that of random search",
            "none",
            ", ".join(worse) or "none",
            not worse if can_tell(pairs) else None,
        ),
        *(
            Claim(
                f"average rank, time a candidate: {standing.engine}",
                SHOWN,
                f"{words(standing.rank)}, with its own time counted "
                f"{words(standing.rank_in_time)}; {standing.seconds:.2f} s",
                None,
            )
            for standing in found
        ),
    ]


def claims_of(part: str, arguments: argparse.Namespace) -> list[Claim]:
    """Measures one part, at its full or quick size."""
    full, jobs, rows = arguments.full, arguments.processes, arguments.rows

    def seeds(of_full: int, of_quick: int) -> int:
        return arguments.seeds or (of_full if full else of_quick)

    functions = tuple(FUNCTIONS) if full else QUICK_FUNCTIONS
    length = LONGEST if full else QUICK_LENGTH
    match part:
        case "stalls":
            return stall_claims(60 if full else 24)
        case "state":
            return state_claims()
        case "curves":
            return curve_claims(seeds(10, 2))
        case "thaw":
            return thaw_claims(seeds(10, 1), 30 if full else 12)
        case "batches":
            return batch_claims(seeds(5, 1))
        case "stop":
            return stop_claims(functions, seeds(5, 1))
        case "cost":
            return cost_claims(functions, seeds(5, 1), 100.0 if full else 60.0)
        case "failure":
            count = seeds(10, 1)
            return [*failure_claims(list(FAILING), count), *memory_claims(count)]
        case "learning":
            return learning_claims(seeds(20, 1), 12 if full else 9)
        case "ensemble":
            return ensemble_claims(functions, seeds(10, 1))
        case "packed":
            return packed_claims(PACKED if full else PACKED[:1], rounds=5 if full else 3)
        case "large":
            return large_claims(*((1000, 60.0) if full else (120, 10.0)))
        case "regret":
            problems = arguments.problems or (None if full else QUICK_PROBLEMS)
            slots = (1, 4) if full else (4,)
            return regret_claims(problems, slots, seeds(10, 1), length, rows, jobs)
        case _:  # held-out
            problems = arguments.problems or (None if full else QUICK_HELD_OUT)
            return regret_claims(problems, (1,), seeds(10, 1), length, rows, jobs, held_out=True)


def print_claims(console: Console, claims: Sequence[Claim]) -> None:
    """The table."""
    table = Table(box=None)
    for name in ("what", "must reach", "seen", "verdict"):
        table.add_column(name, overflow="fold")
    for claim in claims:
        table.add_row(claim.what, claim.must, claim.seen, claim.verdict)
    console.print(table)


def main() -> None:
    """Measures, prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = (
        *("stalls", "state", "curves", "thaw", "batches", "stop", "cost", "failure", "learning"),
        *("ensemble", "packed", "large", "regret", "held-out"),
    )
    only_full = ("batches",)  # with 500 trials behind it has no quick form
    parser.add_argument(
        "--only", nargs="+", choices=parts, help=f"quick: all but {', '.join(only_full)}"
    )
    parser.add_argument("--full", action="store_true", help="all problems, 1,000 trials: hours")
    parser.add_argument("--seeds", type=int, help="of every part that has seeds")
    parser.add_argument("--processes", type=int, default=2, help="for the part on regret")
    parser.add_argument("--problems", nargs="+", help="of regret or held-out alone, by name")
    parser.add_argument("--rows", type=Path, help="where runs of the part on regret are kept")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    full = arguments.full
    if arguments.rows is not None and not full:
        parser.error(f"--rows keeps runs of {LONGEST} trials, those of --full; add --full")
    only = arguments.only or [part for part in parts if full or part not in only_full]
    console = Console(width=None if sys.stdout.isatty() else 150)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables, between ours
    claims, minutes = [], {}
    for part in (part for part in parts if part in only):
        began = time.monotonic()
        claims += claims_of(part, arguments)
        minutes[part] = (time.monotonic() - began) / 60
    print_claims(console, claims)
    took = ", ".join(f"{part} {count:.1f}" for part, count in minutes.items())
    console.print(f"minutes: {took}; {sum(minutes.values()):.1f} in all")
    if arguments.json is not None:
        content = {
            "command": " ".join(["python", *sys.argv]),
            "claims": [asdict(claim) | {"verdict": claim.verdict} for claim in claims],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
