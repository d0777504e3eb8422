"""Builds Ax's generation strategy: quasi-random points, then a model with its acquisition."""

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

# More restarts took longer and found no better points.
ACQUISITION_SEARCH = {"num_restarts": 4, "raw_samples": 256}
QUICK_SEARCH = {"num_restarts": 1, "raw_samples": 64}  # with dozens of pending points
AX_SEEDS = 2**32  # those that Ax takes; others count modulo this number
_MANY_PARAMETERS = 20  # from here on SAAS's assumption usually holds: few parameters matter


class _WithFailures(DataLoaderConfig):
    """An adapter that shows the model failed trials, with the success metric 0."""

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
    """Builds Ax's strategy for a search.

    Args:
        space: the search space.
        settings: of the search.
        num_known: trials attached at the start.
        acquisition_search: options of the acquisition's optimiser; Ax reads them at each proposal.
        log_seconds: predicts the log duration of points in the model's space.
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
            # A search that continues after a restart needs new Sobol points.
            initialization_random_seed=(settings.seed + num_known) % AX_SEEDS,
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
    for spec in node.generator_specs:  # Ax has no other way to pass these options
        spec.generator_kwargs["fit_tracking_metrics"] = False
        # SAAS has no kernel for unordered choices: each value gets a column.
        inputs = MBM_X_trans if saas else Mixed_transforms
        spec.generator_kwargs["transforms"] = [*inputs, *Y_trans, PowerTransformY]
        gen_options: dict[str, Any] = {"optimizer_kwargs": acquisition_search}
        if acquisition is not None and acquisition.needs_seconds:
            # Pass a function, not a model: Ax would copy the model.
            gen_options["acquisition_function_kwargs"] = {"log_seconds": log_seconds}
        spec.generator_gen_kwargs["model_gen_options"] = gen_options
    return strategy


def model_node(strategy: GenerationStrategy) -> GenerationNode | None:
    """Finds the strategy's node with a model; None without one."""
    return next((node for node in strategy._nodes if node.name == "MBM"), None)  # noqa: SLF001


def fitted_adapter(strategy: GenerationStrategy) -> TorchAdapter:
    """Gets the last fitted model of a strategy that has one."""
    node = model_node(strategy)
    assert node is not None
    adapter = node.generator_specs[0].fitted_adapter
    assert isinstance(adapter, TorchAdapter)
    return adapter


def show_failures(strategy: GenerationStrategy, ax_space: AxSpace) -> None:
    """Makes a strategy's model see failed trials through the success metric (0 or 1)."""
    node = model_node(strategy)
    for spec in node.generator_specs if node is not None else ():
        spec.generator_kwargs["data_loader_config"] = _WithFailures()
        # A power transform of 0 and 1 makes their noise infinite: leave it out.
        metrics = list(ax_space.metrics.values())
        spec.generator_kwargs["transform_configs"] = {"PowerTransformY": {"metrics": metrics}}
