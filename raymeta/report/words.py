"""The results of a run in words, the same on the terminal and on the page.

Lines that have a style carry it as a pair `(line, style)`, by Rich's names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raymeta.console.text import plus_minus, value_text
from raymeta.experiment.schema import Dimension, Experiment
from raymeta.run_folder import Run

if TYPE_CHECKING:  # these import Ray and torch, which `raymeta --help` must not wait for
    from raymeta.evaluation.scores import MetaTest, Score, Verdict
    from raymeta.search.records import Source
    from raymeta.search.trial_log import LoggedTrials

SHOWN_ERRORS = 5  # of trials
STATUS_WORDS = {
    "completed": "completed",
    "early_stopped": "stopped early",
    "failed": "failed",
    "abandoned": "without a finite result",
    "running": "unfinished",
}
_SOURCE_WORDS = {
    "given": "from the file",
    "sobol": "from the Sobol sequence",
    "bo": "from the model",
    "random": "random",
    "fallback": "random because the model failed",
    "earlier": "from an earlier run",
}


def trial_lines(trials: LoggedTrials) -> list[tuple[str, str]]:
    """Says how the trials of a run ended, where their points came from, and what went wrong.

    Returns:
        Lines with their styles.
    """
    records = trials.records.values()
    statuses = Counter(record.status for record in records)
    sources = Counter(record.source for record in records)
    noun = "trial" if len(records) == 1 else "trials"
    lines = [(f"{len(records)} {noun}: {_counts(statuses, STATUS_WORDS)}", "")]
    if trials.ended_by:
        lines.append((f"the search has ended by {trials.ended_by}", ""))
    if sources.keys() != {"given"}:
        lines.append((f"points: {_counts(sources, _SOURCE_WORDS)}", ""))
    if sources["fallback"]:
        failed = f"{sources['fallback']} of {len(records)} points were drawn at random"
        reason = next((record.reason for record in records if record.reason), "see the log")
        lines.append((f"{failed} because the search's model failed: {reason}", "yellow"))
    passed_over = [record.passed_over for record in records if record.passed_over]
    if passed_over:
        told = f"{len(passed_over)} of {len(records)} points took the place of one known to fail"
        lines.append((f"{told}, such as: {passed_over[0]}", "yellow"))
    lines += agreement_lines(trials)
    numbers = {trial_id: number for number, trial_id in enumerate(trials.records, start=1)}
    skipped = {i: count for i, count in trials.num_skipped.items() if count}
    if skipped:
        named = ", ".join(f"{count} of trial {numbers[i]}" for i, count in skipped.items())
        lines.append((f"meta-steps skipped because they were not finite: {named}", "yellow"))
    errors = list(trials.errors.items())
    for trial_id, error in errors[:SHOWN_ERRORS]:
        reason = (error.strip().splitlines() or ["no reason is known"])[-1]
        lines.append((f"trial {numbers.get(trial_id, '?')}: {reason}", "yellow"))
    if len(errors) > SHOWN_ERRORS:
        rest = len(errors) - SHOWN_ERRORS
        lines.append((f"and {rest} more trials with an error: see trials.json", "yellow"))
    lines += [(note, "yellow") for note in trials.notes]
    return lines


def agreement_lines(trials: LoggedTrials) -> list[tuple[str, str]]:
    """Says whether validation separates the finished trials, or the best of them was luck."""
    from raymeta.search.agreement import FEWEST_TRIALS, agreement  # noqa: PLC0415  (imports SciPy)

    found = agreement(trials)
    if found is None or found.num_trials < 2:
        return []
    ranked = f"ranked by halves of the validation's tasks: Spearman's ρ = {found.rho:.2f}"
    if found.num_trials < FEWEST_TRIALS:
        few = f"{found.num_trials} trials came to their end: too few to say that the best is better"
        return [(few, "dim")]
    if found.is_chance:
        ranked = f"no better than chance ({ranked})"
        return [(f"validation separates the {found.num_trials} finished trials {ranked}", "yellow")]
    return [(f"validation separates the {found.num_trials} finished trials ({ranked})", "dim")]


def refit_lines(run: Run) -> list[tuple[str, str]]:
    """Says how the refit ended, if there was one: lines with their styles."""
    experiment = run.experiment()
    if experiment.search.refit is None:
        return []
    from raymeta.evaluation.networks import Refitted  # noqa: PLC0415  (it imports torch)
    from raymeta.search.trial_log import logged_trials  # noqa: PLC0415  (it imports Ray)

    kept, trials, asked = Refitted.of(run), logged_trials(run.refit), experiment.search.refit.seeds
    steps = f"{experiment.refit_meta_steps} meta-steps each"
    lines = [(f"refit: {len(kept.seeds)} of {asked} trainings of the winner, {steps}", "")]
    if not kept.seeds:
        text = "refit: no training of the winner came to its end; the network is the search's own"
        lines = [(text, "yellow")]
    for trial_id, error in list(trials.errors.items())[:SHOWN_ERRORS]:
        reason = (error.strip().splitlines() or ["no reason is known"])[-1]
        record = trials.records.get(trial_id)
        seed = "?" if record is None else record.point.get("training.seed", "?")
        lines.append((f"refit, training.seed {seed}: {reason}", "yellow"))
    return [*lines, *((note, "yellow") for note in trials.notes)]


def _counts(found: Counter[Any], words: Mapping[Any, str]) -> str:
    return ", ".join(f"{found[key]} {word}" for key, word in words.items() if found[key])


def interval_lines(result: MetaTest) -> list[str]:
    """Says what the intervals of the meta-test are over, and what they leave out."""
    several = [f"{count} × {axis}" for axis, count in result.units.items() if count > 1]
    single = [axis for axis, count in result.units.items() if count == 1]
    lines = [f"only 1 × {axis}: nothing here holds for another {axis}" for axis in single]
    if not result.units:
        return ["intervals are over episodes: the tasks do not say what is new at deployment"]
    if not several:
        return ["no intervals: there are too few units", *lines]
    if num_seeds := len(result.rows[0].seeds):
        lines = [f"the first row's, and what it is ahead by, also over {num_seeds} seeds", *lines]
    spread = result.rows[0].over_episodes.half_width or 0.0
    return [
        f"intervals are over what is new to the network: {', '.join(several)}",
        *lines,
        f"for more episodes of the same, the first row's would be ± {spread:.3f}",
    ]


def verdict_lines(result: MetaTest) -> list[tuple[str, str]]:
    """Says which controls were beaten, the bad news first: lines with their styles."""
    named: dict[Verdict, list[str]] = {}
    for row in result.controls:
        named.setdefault(result.verdict(row), []).append(row.label)
    if set(named) == {"beaten"}:
        return [("every control is beaten: the network is ahead of each by more than 0", "green")]
    headings: dict[Verdict, tuple[str, str]] = {
        "better": ("NOT beaten, the control is better", "red"),
        "undecided": ("NOT beaten, the interval of the difference holds 0", "yellow"),
        "too few units": ("no verdict, too few units for an interval", "yellow"),
        "not finite": ("no verdict, a score is not finite", "yellow"),
        "beaten": ("beaten", "green"),
    }
    return [
        (f"{heading}: {'; '.join(named[verdict])}", style)
        for verdict, (heading, style) in headings.items()
        if verdict in named
    ]


def certainty_lines(result: MetaTest) -> list[str]:
    """Says how far probabilities, intervals and answers to unfamiliar tasks can be trusted."""
    lines = []
    if (classes := result.reliability) is not None:
        lines.append(
            f"probabilities: expected calibration error {classes.error:.3f} ({classes.num_bins} "
            f"bins) with temperature {classes.temperature:.2f} from meta-validation, "
            f"{classes.error_without:.3f} without"
        )
    if (sets := result.sets) is not None:
        share = plus_minus(sets.found.mean, sets.found.half_width)
        lines.append(
            f"sets of {100 * sets.wanted:.0f} %, from {sets.num_tasks} tasks of meta-validation"
            f"{_of_units(sets.val_units)}, hold {share} of the classes, and have "
            f"{_plain(sets.size, 3)} of {sets.num_classes} classes on average"
        )
    if (values := result.coverage) is not None:
        share = plus_minus(values.found.mean, values.found.half_width)
        unit = f" in {values.unit}" if values.unit else ""
        width = f"± {_plain(values.half_width, 3)}"
        if values.narrowest < values.widest:
            ends = f"{_plain(values.narrowest, 3)} to {_plain(values.widest, 3)}"
            width = f"{width} on average ({ends})"
        lines.append(
            f"intervals of {100 * values.wanted:.0f} %, from {values.num_tasks} tasks of "
            f"meta-validation{_of_units(values.val_units)}, hold {share} of the values, and are "
            f"{width} wide{unit}"
        )
    if (tasks := result.unlike) is not None:
        lines.append(
            f"support examples: {100 * tasks.of_test:.1f} % of {tasks.num_test} meta-test tasks "
            f"are called unlike meta-training, and {100 * tasks.of_validation:.1f} % of "
            f"{tasks.num_validation} meta-validation tasks, which set the threshold (distance "
            f"{_plain(tasks.threshold, 3)})"
        )
    return lines


def _of_units(counts: Mapping[str, int]) -> str:
    """Counts the units behind the tasks; tasks of few units depend on each other."""
    found = ", ".join(f"{count} × {axis}" for axis, count in counts.items())
    return f" ({found})" if found else ""


def score_table(result: MetaTest) -> tuple[list[str], list[list[str]]]:
    """The meta-test, a row for the network and each control: heading and rows."""
    rows = []
    for row in result.rows:
        details = [row.detail] if row.detail else []
        if row.seeds:
            details.append(f"{len(row.seeds)} seeds: {min(row.seeds):.3f} to {max(row.seeds):.3f}")
        name = f"{row.label} ({'; '.join(details)})" if details else row.label
        score = plus_minus(row.score.mean, row.score.half_width)
        steps = "" if row.steps is None else str(row.steps)
        ahead = "" if row.ahead is None else plus_minus(row.ahead.mean, row.ahead.half_width)
        verdict = result.verdict(row) if row in result.controls else ""
        rows.append([name, score, steps, ahead, verdict])
    return ["", result.metric, "adaptation steps", "ahead of it by", "verdict"], rows


def own_units_table(result: MetaTest) -> tuple[list[str], list[list[str]]]:
    """The measures in own units, of forecasts and numbers: heading and rows; empty for others."""
    names = list(result.rows[0].own_units)

    def text(score: Score) -> str:
        mean = _plain(score.mean, 4)
        if score.half_width is None:
            return f"{mean}, no ±"
        return f"{mean} ± {_plain(score.half_width, 2)}"

    rows = [[r.label, *map(text, r.own_units.values())] for r in result.rows if r.own_units]
    return ["", *names] if names else [], rows


def _plain(value: float, digits: int) -> str:
    """A number with so many significant digits, without an exponent while it is readable."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.10g}" if 1e-4 <= abs(rounded) < 1e9 else f"{rounded:g}"


def range_words(dimension: Dimension) -> str:
    """Describes the range or the choices of a searched key."""
    if dimension.choices is not None:
        text = ", ".join(map(value_text, dimension.choices))
    else:
        text = f"{value_text(dimension.low)} to {value_text(dimension.high)}"
        text += ", logarithmic" if dimension.log else ""
        text += f", in steps of {value_text(dimension.step)}" if dimension.step else ""
    for parent, values in (dimension.when or {}).items():
        text += f"; only while {parent} is {' or '.join(map(value_text, values))}"
    return text


def source_words(source: Source) -> str:
    """Says where a trial's point came from."""
    return _SOURCE_WORDS[source]


def answer(result: MetaTest) -> str:
    """A finished run in one sentence, and how it stands to the controls in another."""
    own = result.rows[0]
    score = plus_minus(own.score.mean, own.score.half_width)
    units = ", ".join(f"{n} × {axis}" for axis, n in result.units.items() if n > 1)
    interval = "no interval is known: there are too few units"
    if own.score.half_width is not None:
        interval = f"95 % interval over {units or 'episodes'}"
    after = ""
    if own.steps:
        after = f" after {own.steps} adaptation step{'s' * (own.steps != 1)}"
    first = f"On new tasks the {own.label} has {_an(result.metric)} of {score}{after} ({interval})."
    verdicts = [result.verdict(row) for row in result.controls]
    if not verdicts:
        return f"{first} There were no controls."
    beaten, better = verdicts.count("beaten"), verdicts.count("better")
    second = f"It beats {beaten} of {len(verdicts)} controls for sure"
    if beaten == len(verdicts):
        second = f"It beats all {len(verdicts)} controls for sure"
    if better:
        second += f"; {better} {'is' if better == 1 else 'are'} better than it"
    open_ = len(verdicts) - beaten - better
    if open_:
        second += f"; for {open_} the test cannot tell"
    return f"{first} {second}."


def _an(metric: str) -> str:
    return f"an {metric}" if metric[:1] in "aeiou" else f"a {metric}"


def problem_words(experiment: Experiment) -> str:
    """Describes a task in few words."""
    tasks = experiment.tasks
    if experiment.problem.name == "classification":
        return f"{tasks.num_ways}-way {tasks.num_shots}-shot classification"
    if experiment.problem.is_forecast:
        whole = f"forecasts of {experiment.value('tasks.horizon')} steps"
        levels = experiment.problem.levels
        return f"{whole}, each by {len(levels)} quantiles," if levels else whole
    return f"regression from {tasks.num_shots} points"


def asked(experiment: Experiment, *, names_data: bool = True) -> list[str]:
    """Describes an experiment, a line each; with the place of its data on this machine."""
    tasks, training, search = experiment.tasks, experiment.training, experiment.search
    lines = [f"{problem_words(experiment)} on tasks of the source {tasks.source}"]
    if names_data and tasks.data_dir is not None:
        lines.append(f"data: {tasks.data_dir}")
    steps = f"{training.meta_steps} meta-steps of {training.meta_batch_size} episodes"
    learner = f"learner {experiment.learner}, a network of {experiment.model.cell} cells; {steps}"
    if not search.space:
        return [*lines, f"{learner}; nothing is searched"]
    lines.append(f"in the file: {learner}")
    keys = f"{len(search.space)} key{'s' * (len(search.space) != 1)}"
    goal = f"the {'highest' if experiment.mode == 'max' else 'lowest'} {experiment.metric}"
    lines.append(f"searched: {keys} in up to {search.num_trials} trials, for {goal}")
    if search.refit is not None:
        again = f"{experiment.refit_meta_steps} meta-steps from {search.refit.seeds} seeds"
        lines.append(f"the winner is trained again: {again}")
    return lines
