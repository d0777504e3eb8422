"""Writes run folders as a search leaves them, by raymeta's own writers, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raymeta.evaluation.drawings import (
    Bin,
    Confusion,
    Drawings,
    DrawnEpisode,
    DrawnFit,
    DrawnForecast,
    Example,
)
from raymeta.evaluation.query_scores import DrawnQueries, QueryScores
from raymeta.evaluation.scores import MetaTest, Row, Score
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.search.records import Curve, Status, TrialRecord
from raymeta.search.trial_log import TrialLog

EPISODES, QUERIES = 24, 6
COSTS = (3000.0, 4000.0, 9000.0, 1000.0, 6000.0)  # of each trial, beside the metric
STATUSES: tuple[Status, ...] = ("completed", "early_stopped", "completed", "failed", "completed")


def query_scores(seed: int = 0, *, trainings: int = 1, episodes: int = EPISODES) -> QueryScores:
    """Draws scores of 0 and 1 of a network that is a little better than its control."""
    rng = np.random.default_rng(seed)
    shape = (episodes, QUERIES)
    own = (rng.random((trainings, *shape)) < 0.8).astype("float64")
    units = {
        "writer": (np.arange(episodes)[:, None] % 4 + np.zeros(shape)).astype("int64"),
        "shape": (np.arange(QUERIES)[None] + np.zeros(shape)).astype("int64"),
    }
    drawn = DrawnQueries(units, np.arange(episodes, dtype="int64"))
    control = (rng.random(shape) < 0.6).astype("float64")
    return QueryScores(own, np.zeros(shape), {"random": control}, drawn)


def meta_test(scores: QueryScores, text: str = "random initialisation") -> MetaTest:
    """Makes the meta-test of these scores; `text` stands wherever a file has text."""
    own, control = scores.own, scores.controls["random"]
    units = scores.units

    def estimate(values: np.ndarray) -> Score:
        found = units.estimate(values)
        return Score(found.mean, found.half_width)

    mean = own.mean(axis=0)
    curve = tuple(Score(0.2 + 0.2 * step, 0.02) for step in range(4))
    first = Row("tuned", "tuned network", estimate(mean), Score(0.8, 0.01), 3, curve)
    lead = estimate(mean - control)
    second = Row("random", text, estimate(control), Score(0.6, 0.01), 3, curve[:3], lead, text)
    counts = {axis: len(np.unique(ids)) for axis, ids in scores.queries.units.items()}
    return MetaTest("accuracy", True, len(own[0]), counts, text, (first, second))


def drawings(text: str) -> Drawings:
    """Makes one drawing of every kind, with `text` wherever a file has text."""
    strokes = ((0.0, 0.0, 1.0, 1.0), (0.5, 0.0, 0.5, 1.0))
    signals = ((1.0, 2.0, 3.0), (-1.0, 0.0, -1.0))
    episodes = tuple(
        DrawnEpisode(
            (Example(text, words, lines), Example("b", words, lines)),
            (Example(text, words, lines, "b", 0.7), Example("b", words, lines, "b", 0.9)),
            channels,
            are_strokes,
        )
        for words, lines, channels, are_strokes in (
            ("", strokes, (), True),
            ("", signals, (text, "second"), False),
            (text, (), (), False),
        )
    )
    return Drawings(
        episodes=episodes,
        forecasts=(
            DrawnForecast(
                text, (1.0, 2.0), (3.0, 4.0), {text: (2.5, 3.5)}, ((2.0, 3.0), (3.0, 4.5)), 80.0
            ),
        ),
        fits=(DrawnFit(((0.0, 1.0),), ((0.0, 1.0, 1.1), (1.0, 2.0, 1.9))),),
        confusion=Confusion((text, "b"), ((3.0, 1.0), (0.0, 4.0)), 2),
        reliability=(Bin(3, 0.5, 0.4), Bin(5, 0.9, 0.8)),
        units={"writer": (text, "v", "w", "x")},
    )


def finished_run(
    folder: Path,
    *,
    name: str = "one",
    seed: int = 0,
    text: str = "plain",
    overrides: Sequence[str] = (),
) -> Run:
    """Writes a search of `pen-maml` with five trials, one of which failed, and its meta-test.

    With `search.against=num_parameters` the first and the last trial are on the Pareto front.
    """
    run = Run.create(folder, load_experiment("pen-maml", overrides), name, fingerprint="the data")
    log = TrialLog(run)
    rng = np.random.default_rng(seed)
    keys = list(run.experiment().search.space)
    for number, status in enumerate(STATUSES):
        point = {key: _value(run, key, rng) for key in keys}
        count = 0 if status == "failed" else 2 if status == "early_stopped" else 4
        curve: Curve = [
            (100 * step, 0.5 + 0.05 * step + 0.01 * number, 0.02) for step in range(count)
        ]
        began = 10.0 * number
        others: dict[str, Curve] = {
            name: [(step, COSTS[number], None) for step, _, _ in curve]
            for name, _ in run.experiment().objectives[1:]
        }
        ended = began + 5 * (count + 1)
        record = TrialRecord(point, "sobol", status, curve, others, "", began, ended)
        error = f"Traceback\n  {text}\nRuntimeError: {text}" if status == "failed" else None
        log.set(f"trial{number}", record, error=error)
    log.end("num_trials: all 5 were made")
    run.keep_best(point)
    scores = query_scores(seed)
    scores.write(run)
    drawings(text).write(run)
    run.write_json("results.json", {"meta_test": meta_test(scores, text).to_json()})
    run.add_seconds(75)
    return run


def _value(run: Run, key: str, rng: np.random.Generator) -> object:
    dimension = run.experiment().search.space[key]
    if dimension.choices is not None:
        return dimension.choices[int(rng.integers(len(dimension.choices)))]
    low, high = float(dimension.low or 0), float(dimension.high or 0)
    value = low + (high - low) * float(rng.random())
    if run.experiment().is_integer(key):
        return round(value)
    return low if dimension.step else value


def explained(run: Run, text: str = "") -> None:
    """Writes files as `raymeta explain` does, with `text` in a title."""
    keys = list(run.experiment().search.space)[:2]
    run.write_json("search/importance.json", {keys[0]: 0.7, keys[1]: 0.4})
    grid = [(x / 4, y / 4, 0.6 + x * y / 40) for x in range(1, 5) for y in range(1, 5)]
    tables = {
        f"slice val_accuracy {keys[0]}{text}": [
            f"{keys[0]},val_accuracy_mean,val_accuracy_sem,sampled",
            *(f"{x / 8},{0.6 + x / 80},0.02,{x == 3}" for x in range(1, 8)),
        ],
        f"contour val_accuracy {keys[0]} {keys[1]}": [
            f"{keys[0]},{keys[1]},val_accuracy_mean,val_accuracy_sem,sampled",
            *(f"{x},{y},{z},0.01,{x == y}" for x, y, z in grid),
        ],
        "cross_validation val_accuracy": [
            "arm_name,observed,predicted,observed_95_ci,predicted_95_ci",
            *(f"{n}_0,{0.5 + n / 20},{0.52 + n / 25},0.03,0.05" for n in range(4)),
        ],
    }
    analyses = []
    for number, (shows, lines) in enumerate(tables.items()):
        file = f"table-{number}.csv"
        (Path(str(run.search_dir)) / file).write_text("\n".join(lines) + "\n")
        analyses.append({"file": file, "shows": shows})
    run.write_json("search/analyses.json", {"analyses": analyses, "missing": {"front": "one"}})
