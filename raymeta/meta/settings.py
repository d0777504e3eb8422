"""The settings of every learner: names, defaults, ranges; nothing else has them a second time.

The schema of experiments makes a section of each; `raymeta.meta.learners` has what they do.  This
module imports no torch, so that a file is checked at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

# `learner` -> the class of its settings.
SETTINGS: dict[str, type[LearnerSettings]] = {}


def _setting(default: Any, **rules: Any) -> Any:
    """Makes a field with pydantic's rules: `ge`, `gt`, `le`, `lt`, `description`."""
    return field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """The settings of every learner; `refuses` maps problems that it cannot serve to the reason.

    A subclass that names its `learner` registers itself in `SETTINGS`.
    """

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init_subclass__(cls, learner: str = "") -> None:
        if learner:
            assert learner not in SETTINGS, f"two settings classes are of the learner {learner!r}"
            SETTINGS[learner] = cls

    @property
    def adaptation_steps(self) -> int:
        """Gradient steps on the support set; 0 for a learner that takes none."""
        return 0

    @classmethod
    def check_problem(cls, name: str, problem: str) -> None:
        """Refuses a problem that the learner called `name` does not serve.

        Raises:
            ValueError: with the reason.
        """
        if problem in cls.refuses:
            raise ValueError(f"learner {name} does not serve {problem}: {cls.refuses[problem]}")

    def check_labels(self, are_fixed: bool) -> None:
        """Refuses settings that need labels of one meaning in all tasks, unless they `are_fixed`.

        Raises:
            ValueError: with the reason.
        """


@dataclass(frozen=True, kw_only=True)
class StepSettings(LearnerSettings):
    """The settings of learners that adapt by gradient steps.

    `inner_lr` is their rate, or the start of learned ones.  `inner_clip` bounds the norm of each
    episode's inner gradient over all adapted parameters; None leaves it.
    """

    adaptation_steps: int = _setting(5, ge=1, le=1000)
    inner_lr: float = _setting(0.1, gt=0)
    inner_clip: float | None = _setting(None, gt=0)

    @property
    def shared_head(self) -> bool:
        """Whether the head of every way starts from one learned row."""
        return False

    @property
    def first_order(self) -> bool:
        """Whether meta-gradients drop the derivative of the inner gradient."""
        return False


@dataclass(frozen=True, kw_only=True)
class GradientSettings(StepSettings):
    """The settings of learners that adapt a head by gradient steps.

    With `shared_head` the head of every way starts from one learned row, zero at first: which class
    got which label then makes no difference (Ye and Chao 2022, "How to Train Your MAML to Excel",
    UNICORN-MAML).
    """

    shared_head: bool = _setting(False, description="one learned start of the head for all ways")


@dataclass(frozen=True, kw_only=True)
class MamlSettings(GradientSettings, learner="maml"):
    """MAML and its relatives.

    `learn_inner_lr` learns one rate per parameter tensor and step, kept positive as a logarithm.
    `first_order` drops the derivative of the inner gradient (FOMAML); `adapt: head` adapts the head
    alone (ANIL), `adapt: body` everything else (BOIL).
    """

    learn_inner_lr: bool = False
    first_order: bool = False
    adapt: Literal["all", "head", "body"] = "all"

    def __post_init__(self) -> None:
        if self.adapt == "body" and self.shared_head:
            raise ValueError(
                "maml.shared_head must be false with maml.adapt: body, but got true: the rows of a "
                "shared head stay alike unless it adapts; set one of the two otherwise"
            )


@dataclass(frozen=True, kw_only=True)
class ReptileSettings(GradientSettings, learner="reptile"):
    """Reptile; the settings mean what they mean for MAML."""


@dataclass(frozen=True, kw_only=True)
class MetaSgdSettings(GradientSettings, learner="meta_sgd"):
    """Meta-SGD: one learned rate per element of a parameter, the same at every step.

    `inner_lr` is the start of all rates, which may become negative.
    """


@dataclass(frozen=True, kw_only=True)
class MamlPlusPlusSettings(GradientSettings, learner="maml_plus_plus"):
    """MAML++ without batch normalisation: a learned rate per parameter tensor and step.

    In the first `multi_step_share` of meta-training the meta-loss has the query's loss after every
    step, equally at first and the last one's alone in the end.  In the first `first_order_share`
    meta-gradients drop the derivative of the inner gradient.  `training.cuda_graph` serves the rest
    of meta-training, after both.
    """

    multi_step_share: float = _setting(
        0.3, ge=0, le=1, description="of meta-steps, until the loss is that after the last step"
    )
    first_order_share: float = _setting(
        0.3, ge=0, le=1, description="of meta-steps, until meta-gradients are of second order"
    )


@dataclass(frozen=True, kw_only=True)
class ProtoMamlSettings(StepSettings, learner="proto_maml"):
    """Proto-MAML: MAML whose head starts, in every episode, as that of a prototypical network."""

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(
            ("regression", "forecast", "quantiles"),
            "its head starts from the prototypes of classes; choose maml or meta_sgd",
        )
    )

    first_order: bool = False


@dataclass(frozen=True, kw_only=True)
class CaviaSettings(StepSettings, learner="cavia"):
    """CAVIA: the network has `context_size` further inputs, which alone adapt, from zero."""

    inner_lr: float = _setting(1.0, gt=0)
    context_size: int = _setting(5, ge=1, le=4096, description="context parameters of an episode")
    first_order: bool = False


@dataclass(frozen=True, kw_only=True)
class ImamlSettings(GradientSettings, learner="imaml"):
    """Implicit MAML: the meta-gradient depends on the end of adaptation, not on the path.

    `proximity` (λ) pulls adapted parameters to their start; more adaptation steps come nearer to
    the optimum.  `solver_steps` are iterations of conjugate gradients.
    """

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "quantiles": "its meta-gradient takes the curvature of the support's loss, and the "
            "pinball loss is piecewise linear; choose maml or meta_sgd"
        }
    )

    adaptation_steps: int = _setting(16, ge=1, le=1000)
    proximity: float = _setting(
        2.0, gt=0, description="weight of half the squared distance from the start"
    )
    solver_steps: int = _setting(5, ge=1, le=1000, description="of conjugate gradients")


@dataclass(frozen=True, kw_only=True)
class PrototypesSettings(LearnerSettings, learner="prototypes"):
    """Prototypical networks: a query gets the class whose mean of features is the nearest.

    `distance` is the squared Euclidean one (Snell et al. 2017), or 1 - cosine.
    """

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(
            ("regression", "forecast"), "it gives classes, not numbers; choose ridge or matching"
        )
        | {"quantiles": "it gives classes, not numbers; choose maml or meta_sgd"}
    )

    distance: Literal["euclidean", "cosine"] = "euclidean"
    scale: float | None = _setting(
        None, gt=0, description="learned factor of distances at first; null: 1, or 10 for cosine"
    )


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings(LearnerSettings, learner="alignment"):
    """Alignment: a query gets the class whose steps are the nearest to its own, and its to theirs.

    With `model.pooling: attention` it is learned how much each step counts, else all count alike.
    The comparison takes memory for each step of a query times each of a support example, which
    `model.stacked_steps` lowers by its square.
    """

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(
            ("regression", "forecast"), "it gives classes, not numbers; choose ridge or matching"
        )
        | {"quantiles": "it gives classes, not numbers; choose maml or meta_sgd"}
    )

    scale: float = _setting(1.0, gt=0, description="learned factor of distances at first")
    sharpness: float = _setting(
        1.0, gt=0, description="learned at first: the larger, the more a step heeds the nearest one"
    )


@dataclass(frozen=True, kw_only=True)
class MatchingSettings(LearnerSettings, learner="matching"):
    """Matching networks: a query's answer is a mean of the support's, weighted by attention.

    With `full_context` every support example is seen in the light of the whole support set, and a
    query after `read_steps` readings of it (Vinyals et al. 2016, appendix A).
    """

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "quantiles": "its answer is a mean of the support's values, one a step; "
            "choose maml or meta_sgd"
        }
    )

    full_context: bool = True
    read_steps: int = _setting(5, ge=1, le=100, description="readings of the support by a query")
    scale: float = _setting(10.0, gt=0, description="learned factor of cosines at first")


@dataclass(frozen=True, kw_only=True)
class RidgeSettings(LearnerSettings, learner="ridge"):
    """Ridge regression on the support's features, solved in closed form (R2-D2).

    With `learned_prior` the penalty is of the distance from learned weights, not from zero: where
    every task has the same labels, what all have in common needs no example.
    """

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "quantiles": "it fits the support's values by squared errors, which have no levels; "
            "choose maml or meta_sgd"
        }
    )

    learned_prior: bool = _setting(
        False,
        description="weights are drawn to learned ones, not to zero; for tasks with the same "
        "labels, or numbers",
    )
    penalty: float = _setting(1.0, gt=0, description="learned penalty of weights at first")
    scale: float = _setting(10.0, gt=0, description="learned factor of class scores at first")

    def check_labels(self, are_fixed: bool) -> None:
        """A label has no weights of its own that could be learned where its class changes."""
        if self.learned_prior and not are_fixed:
            raise ValueError(
                "ridge.learned_prior must be false where every episode has classes of its own, but "
                "got true: a label then means something else each time; leave it out, or take "
                "tasks whose labels stay (tasks.kind: groups)"
            )


@dataclass(frozen=True, kw_only=True)
class AlpacaSettings(LearnerSettings, learner="alpaca"):
    """Bayesian linear regression on the support's features, with a learned prior (ALPaCA)."""

    refuses: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "classification": "its posterior is of numbers, not classes; choose ridge or "
            "prototypes",
            "quantiles": "it learns a normal distribution by its density, not quantiles by the "
            "pinball loss; choose maml or meta_sgd",
        }
    )

    noise: float = _setting(0.1, gt=0, description="learned variance of targets at first")
    prior: float = _setting(1.0, gt=0, description="learned variance of weights at first")
