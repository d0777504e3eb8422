"""The controls of the meta-test: what a user could do instead of meta-training.

To add a control, write one file with a subclass of `Control` and name it in `CONTROLS`.
"""

from __future__ import annotations

from raymeta.evaluation.controls.class_means import ClassMeans
from raymeta.evaluation.controls.contract import Control
from raymeta.evaluation.controls.encoder_regression import EncoderRegression
from raymeta.evaluation.controls.file_configuration import FileConfiguration
from raymeta.evaluation.controls.joint import JointTraining
from raymeta.evaluation.controls.kernel_ridge import KernelRidge
from raymeta.evaluation.controls.minirocket import MiniRocketRidge
from raymeta.evaluation.controls.naive import MovedSeason, Naive, SeasonalNaive
from raymeta.evaluation.controls.random_start import RandomStart
from raymeta.evaluation.controls.smoothing import ExponentialSmoothing, Theta
from raymeta.evaluation.controls.spectrum_means import SpectrumMeans
from raymeta.evaluation.controls.summary_ridge import SummaryRidge
from raymeta.evaluation.controls.support_mean import SupportMean
from raymeta.evaluation.controls.time_warping import TimeWarping
from raymeta.evaluation.controls.unadapted import Unadapted
from raymeta.evaluation.controls.word_regression import WordRegression

# In the order of the table's rows.
CONTROLS: tuple[Control, ...] = (
    Unadapted(),
    FileConfiguration(),
    RandomStart(),
    JointTraining(),
    ClassMeans(),
    SpectrumMeans(),
    TimeWarping(),
    MiniRocketRidge(),
    WordRegression(),
    EncoderRegression(),
    SupportMean(),
    SummaryRidge(),
    KernelRidge(),
    Naive(),
    SeasonalNaive(),
    MovedSeason(),
    ExponentialSmoothing(),
    Theta(),
)
