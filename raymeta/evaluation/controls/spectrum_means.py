"""Control for periodic signals: the nearest class mean among spectra, without learning."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raymeta.episodes import Examples, TaskDistribution
from raymeta.evaluation.controls.class_means import class_mean_scores
from raymeta.evaluation.controls.contract import Contest, Control, Judgement


class SpectrumMeans(Control):
    """A query gets the class whose support examples have the nearest mean spectrum.

    It compares the amplitudes of all frequencies of the examples as they were recorded, where the
    network reads some of them.
    """

    name = "spectrum_mean"
    label = "class-mean nearest neighbour on |FFT|"
    problems = frozenset({"classification"})
    inputs = frozenset({"features"})

    def serves(self, tasks: TaskDistribution) -> bool:
        """Whether the tasks say that the signal is periodic: `tasks.spectrum`."""
        return super().serves(tasks) and tasks.recorded is not None

    def judge(self, contest: Contest) -> Judgement:
        """The accuracy of the nearest class mean."""
        recorded = contest.own.tasks.recorded
        assert recorded is not None, "`serves` was asked"
        tasks = replace(recorded, class_mean_features=amplitudes)
        return Judgement(class_mean_scores(tasks, "test", contest.num_episodes))


def amplitudes(examples: Examples) -> Tensor:
    """The amplitudes of all frequencies of every feature, `[E, N, F * D]`; zero behind the end."""
    return torch.fft.rfft(examples.x.double(), dim=2).abs().flatten(2)
