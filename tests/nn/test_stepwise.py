"""Step by step, a network has the features that it has of whole sequences."""

from __future__ import annotations

import pytest
import torch

from raymeta.nn.networks import NetworkSpec, expand_params, forward, init_params
from raymeta.nn.stepwise import first_state, next_features


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_outputs_after_every_step_are_those_of_the_sequence_so_far(cell, pooling, num_layers):
    spec = NetworkSpec(
        num_outputs=3,
        cell=cell,
        num_features=2,
        hidden_size=5,
        num_layers=num_layers,
        pooling=pooling,
    )
    generator = torch.Generator().manual_seed(0)
    params = expand_params(init_params(spec, generator, torch.float64), 2)
    params = {
        k: v + torch.randn(v.shape, generator=generator, dtype=v.dtype) / 5
        for k, v in params.items()
    }
    x = 3 * torch.randn(2, 4, 7, 2, generator=generator, dtype=torch.float64)
    state = first_state(spec, params, 4)
    for step in range(7):
        features, state = next_features(spec, params, x[:, :, step], state)
        found = features @ params["head.weight"].mT + params["head.bias"].unsqueeze(1)
        wanted = forward(spec, params, x[:, :, : step + 1])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert state.num_steps == step + 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"bidirectional": True}, "bidirectional"),
        ({"layer_dtype": torch.bfloat16}, "compute in bfloat16 .*training.precision: float32"),
        ({"stacked_steps": 2}, "2 time steps at once"),
    ],
)
def test_what_has_no_steps_is_refused(setting, said):
    spec = NetworkSpec(num_outputs=3, num_features=2, hidden_size=5, **setting)
    params = expand_params(init_params(spec, torch.Generator()), 1)
    with pytest.raises(ValueError, match=said):
        first_state(spec, params, 1)
