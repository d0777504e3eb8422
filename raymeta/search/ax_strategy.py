"""What Ax does at each step of a search: quasi-random points, then a model and its acquisition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ax.adapter.registry import MBM_X_trans, Mixed_transforms, Y_trans
from ax.adapter.torch import TorchAdapter
from ax.adapter.transforms.power_transform_y import PowerTransformY
from ax.api.utils.generation_strategy_dispatch import choose_generation_strategy
from ax.api.utils.structs import GenerationStrategyDispatchStruct
from ax.core.data_utils import DataLoaderConfig
from ax.core.trial_status import TrialStatus
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generators.torch.botorch_modular.surrogate import ModelConfig
from botorch.models.map_saas import EnsembleMapSaasSingleTaskGP
from torch import Tensor

from raymeta.acquisitions import BY_NAME
from raymeta.search.ax_parameters import AxSpace
from raymeta.search.categorical_gp import CategoricalGP
from raymeta.search.ensemble_gp import EnsembleGP
from raymeta.search.settings import SearchSettings, least_completed
from raymeta.search.space import Space
from raymeta.search.transfer import SourceModel, TransferGP

# More starts than these found no better points, only later.
ACQUISITION_SEARCH = {"num_restarts": 4, "raw_samples": 256}
QUICK_SEARCH = {"num_restarts": 1, "raw_samples": 64}  # with dozens of pending points
_MANY_PARAMETERS = 20  # from here on few of them matter, as a rule: SAAS's assumption


class _WithFailures(DataLoaderConfig):
    """Lets the model see the data of failed trials: that they failed."""

    @property
    def statuses_to_fit(self) -> set[TrialStatus]:
        return {*super().statuses_to_fit, TrialStatus.FAILED}


def strategy_of(
    space: Space,
    settings: SearchSettings,
    num_known: int,
    acquisition_search: Mapping[str, Any],
    log_seconds: Callable[[Tensor], Tensor],
    sources: Callable[[], Sequence[SourceModel]] | None,
) -> GenerationStrategy:
    """Ax's strategy for a search.

    Args:
        space: the search space.
        settings: of the search.
        num_known: trials that Ax is told of at its start.
        acquisition_search: options of the search for the best point; Ax reads them each time.
        log_seconds: the expected logarithms of the seconds of points, as the model sees them.
        sources: the models of earlier searches; None without any.
    """
    saas = settings.model == "saas" or (
        settings.model == "auto" and len(space.parameters) >= _MANY_PARAMETERS and sources is None
    )
    if sources is not None:
        metric = AxSpace(space, settings).metrics[settings.metrics[0]]
        options = {"sources": sources, "metric": metric, "seed": settings.seed}
        model = ModelConfig(
            botorch_model_class=TransferGP, model_options=options, name="transfer GP"
        )
    elif settings.model == "gp-ensemble":
        options = {"seed": settings.seed}
        model = ModelConfig(
            botorch_model_class=EnsembleGP, model_options=options, name="GP ensemble"
        )
    elif saas:
        model = ModelConfig(botorch_model_class=EnsembleMapSaasSingleTaskGP, name="SAAS")
    else:
        model = ModelConfig(botorch_model_class=CategoricalGP, name="GP")
    is_random = settings.method == "sobol"
    acquisition = BY_NAME.get(settings.acquisition)  # None leaves the choice to Ax
    strategy = choose_generation_strategy(
        GenerationStrategyDispatchStruct(
            method="random_search" if is_random else "custom",
            initialization_budget=settings.num_sobol,
            # A search that goes on after a restart needs Sobol points it has not seen.
            initialization_random_seed=settings.seed + num_known,
            min_observed_initialization_trials=least_completed(settings.num_sobol),
            initialize_with_center=False,
            use_existing_trials_for_initialization=True,
            allow_exceeding_initialization_budget=True,
            torch_device=settings.device,
        ),
        model_config=None if is_random else model,
        botorch_acqf_class=None if acquisition is None else acquisition.load(),
    )
    node = model_node(strategy)
    if node is None:
        return strategy
    for spec in node.generator_specs:  # there is no other way to these options
        spec.generator_kwargs["fit_tracking_metrics"] = False
        # SAAS has no kernel for unordered choices: it gets a column of each value.
        inputs = MBM_X_trans if saas else Mixed_transforms
        spec.generator_kwargs["transforms"] = [*inputs, *Y_trans, PowerTransformY]
        gen_options: dict[str, Any] = {"optimizer_kwargs": acquisition_search}
        if acquisition is not None and acquisition.needs_seconds:
            # A function, and not a model: Ax copies everything else.
            gen_options["acquisition_function_kwargs"] = {"log_seconds": log_seconds}
        spec.generator_gen_kwargs["model_gen_options"] = gen_options
    return strategy


def model_node(strategy: GenerationStrategy) -> GenerationNode | None:
    """The part of a strategy that has a model; None where there is none."""
    return next((node for node in strategy._nodes if node.name == "MBM"), None)  # noqa: SLF001


def fitted_adapter(strategy: GenerationStrategy) -> TorchAdapter:
    """The model of a strategy that has one, as it was last fitted."""
    node = model_node(strategy)
    assert node is not None
    adapter = node.generator_specs[0].fitted_adapter
    assert isinstance(adapter, TorchAdapter)
    return adapter


def show_failures(strategy: GenerationStrategy, ax_space: AxSpace) -> None:
    """Lets the model of a strategy see failed trials, of which 0 and 1 say that they failed."""
    node = model_node(strategy)
    for spec in node.generator_specs if node is not None else ():
        spec.generator_kwargs["data_loader_config"] = _WithFailures()
        # No power transform makes 0 and 1 normal: their noise becomes infinite.
        metrics = list(ax_space.metrics.values())
        spec.generator_kwargs["transform_configs"] = {"PowerTransformY": {"metrics": metrics}}
