"""Meta-test of a network beside the controls that it must beat.

All are judged on the same meta-test episodes.  What a control has to choose (its learning rate, how
long it fine-tunes) is chosen on meta-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import TaskDistribution
from raymeta.errors import RunError
from raymeta.evaluation import controls
from raymeta.evaluation.controls.contract import Contest, Judgement, Network, TrainedControl
from raymeta.evaluation.ensemble import ensemble_curves
from raymeta.evaluation.own_units import forecasts_of, in_own_units
from raymeta.evaluation.query_scores import DrawnQueries, QueryScores
from raymeta.evaluation.scores import ENSEMBLE, MetaTest, Row, Score
from raymeta.training.curves import adaptation_curves
from raymeta.uncertainty import Units


def controls_to_train(tasks: TaskDistribution) -> Iterator[TrainedControl]:
    """The controls that serve these tasks and need a network trained."""
    for control in controls.CONTROLS:
        if isinstance(control, TrainedControl) and control.serves(tasks):
            yield control


def meta_test(
    own: Network,
    networks: Mapping[str, Network],
    *,
    label: str,
    num_episodes: int,
    further: Sequence[Network] = (),
    progress: Callable[[str], None] = lambda _: None,
    keep: Callable[[QueryScores], object] = lambda _: None,
    keep_forecasts: Callable[[dict[str, Tensor]], object] = lambda _: None,
) -> MetaTest:
    """Judges a network and all controls that serve its tasks on the same meta-test episodes.

    Args:
        own: the run's network.
        networks: the networks that controls need, by the control's name.  A control whose network
            is missing is left out.
        label: what the table calls the run's network.
        num_episodes: meta-test episodes.
        further: more trainings of the same configuration, of a refit.
        progress: told what is being judged.
        keep: receives the score of every query.
        keep_forecasts: receives, of forecasts alone, the answers `[E, M, O]` of the first training
            and of each control that forecasts, by label.

    Raises:
        RunError: the network's scores are not finite.
    """
    tasks, recipe, steps = own.tasks, own.recipe, own.recipe.num_steps
    trainings = [own, *further]
    units = tasks.query_units("test", num_episodes)
    of_trainings = units.of_trainings(len(trainings))
    progress(label)
    curves = torch.stack([_curves(network, num_episodes, label) for network in trainings])
    scores, every = curves.mean(dim=0), curves[..., steps]  # [E, M, S + 1] and [R, E, M]
    row = _row("tuned", label, Judgement(scores[..., steps], steps, scores), units)
    if further:
        seeds = tuple(every.mean(dim=(1, 2)).tolist())
        row = replace(row, score=Score.over(every, of_trainings), seeds=seeds)
    note, forecasts = tasks.note, dict[str, Tensor]()
    has_own_units = tasks.season is not None or tasks.target_scale is not None
    if has_own_units:
        outputs = forecasts_of(trainings, num_episodes, steps)
        row = replace(row, own_units=in_own_units(tasks, recipe.problem, outputs, of_trainings))
        if tasks.season is not None:
            forecasts[label] = outputs[0]
    rows, judged = [row], dict[str, np.ndarray]()

    def judge(name: str, title: str, judgement: Judgement) -> None:
        lead = recipe.problem.sign * (every - judgement.scores)
        row = _row(name, title, judgement, units)
        judged[name] = judgement.scores.double().numpy()
        if judgement.outputs is not None and has_own_units:
            measures = in_own_units(tasks, recipe.problem, judgement.outputs[None], units)
            row = replace(row, own_units=measures)
            if tasks.season is not None:
                forecasts[title] = judgement.outputs
        rows.append(replace(row, ahead=Score.over(lead, of_trainings)))

    if further:
        title = f"ensemble of {len(trainings)} seeds"
        progress(title)
        together = ensemble_curves(trainings, num_episodes, steps)
        judge(ENSEMBLE, title, Judgement(together[..., steps], steps, together))
    contest = Contest(own, scores, networks)
    for control in controls.CONTROLS:
        is_ready = {"nothing": True, "steps": steps > 0}.get(
            control.needs, control.name in networks
        )
        if is_ready and control.serves(tasks):
            if (lacking := control.lacks()) is not None:
                note += f"; without the control {control.label!r}: {lacking}"
                continue
            progress(control.label)
            judge(control.name, control.label, control.judge(contest))
    drawn = DrawnQueries.of(tasks, num_episodes)
    keep(QueryScores(every.numpy(), scores[..., 0].numpy(), judged, drawn))
    if forecasts:
        keep_forecasts(forecasts)
    return MetaTest(
        metric=recipe.problem.metric,
        higher_is_better=recipe.problem.higher_is_better,
        num_episodes=num_episodes,
        units=units.counts,
        note=note,
        rows=tuple(rows),
    )


def _curves(network: Network, num_episodes: int, label: str) -> Tensor:
    """The scores `[E, M, S + 1]` of a network after 0 … S steps."""
    recipe, steps = network.recipe, network.recipe.num_steps
    scores = adaptation_curves(
        network.tasks, recipe, network.params, "test", num_episodes=num_episodes, num_steps=steps
    )
    bad = int((~scores[..., steps].isfinite()).any(dim=1).sum())
    if bad:
        raise RunError(
            f"meta-test: {bad} of {num_episodes} episodes of the {label} have no finite score "
            f"after {steps} adaptation steps; lower evaluation.adaptation_steps, or train again: "
            f"{recipe.learner.remedy}"
        )
    return scores


def _row(name: str, label: str, judgement: Judgement, units: Units) -> Row:
    curves = judgement.curves
    return Row(
        name=name,
        label=label,
        score=Score.over(judgement.scores, units),
        over_episodes=Score.of(judgement.scores.mean(dim=1)),
        steps=judgement.steps,
        curve=() if curves is None else tuple(map(Score.of, curves.mean(dim=1).unbind(1))),
        detail=judgement.detail,
    )
