"""The compiled step against the step of torch's operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raymeta.nn.cells import Cell
from raymeta.nn.native import library
from raymeta.nn.native.step import AffineHead, Steps, serves
from raymeta.nn.networks import NetworkSpec, Params, Pooling, expand_params, init_params
from raymeta.nn.stepwise import first_state, next_features

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

N, C, H, OUTPUTS = 3, 2, 20, 4
MEAN, DEVIATION = np.array([5.0, -3.0]), np.array([2.0, 0.5])


def network_of(spec: NetworkSpec, seed: int, dtype: torch.dtype) -> Params:
    generator = torch.Generator().manual_seed(seed)
    params = init_params(spec, generator, torch.float64)
    return {
        name: (value + torch.randn(value.shape, generator=generator) / 5).to(dtype)
        for name, value in params.items()
    }


def head_of(params: Params, *, has_unit_length: bool = False) -> AffineHead:
    weight, bias = params["head.weight"].double().T.numpy(), params["head.bias"].double().numpy()
    return AffineHead(weight, bias, has_unit_length)


def steps_of(
    spec: NetworkSpec, networks: list[Params], heads: list[AffineHead], **options: Any
) -> Steps:
    chosen: dict[str, Any] = {
        "num_streams": N,
        "num_classes": None,
        "temperature": 1.0,
        "mean": MEAN,
    }
    return Steps(spec, networks, heads, **(chosen | {"deviation": DEVIATION} | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_step_is_that_of_torch(
    dtype: torch.dtype, cell: Cell, pooling: Pooling, num_layers: int
) -> None:
    spec = NetworkSpec(
        num_outputs=OUTPUTS,
        cell=cell,
        num_features=C,
        hidden_size=H,
        num_layers=num_layers,
        pooling=pooling,
    )
    networks = [network_of(spec, seed, dtype) for seed in (0, 1)]
    heads = [head_of(networks[0]), head_of(networks[1], has_unit_length=True)]
    steps = steps_of(spec, networks, heads, num_classes=3, temperature=1.7)
    states = [first_state(spec, expand_params(one, 1), N) for one in networks]
    rng = np.random.default_rng(0)
    for number in range(6):
        x = 5 * rng.normal(size=(N, C))
        now = torch.from_numpy(((x - MEAN) / DEVIATION).astype(np.float32))[None].to(dtype)
        wanted = torch.zeros(N, 3, dtype=torch.float64)
        for place, (params, head) in enumerate(zip(networks, heads, strict=True)):
            features, states[place] = next_features(
                spec, expand_params(params, 1), now, states[place]
            )
            seen = features[0].double()
            if head.has_unit_length:
                seen = torch.nn.functional.normalize(seen, dim=-1)
            logits = seen @ torch.from_numpy(head.weight) + torch.from_numpy(head.bias)
            wanted += (logits[:, :3] / 1.7).softmax(dim=-1) / 2
        found = steps.step(x)
        assert found is not None
        error = 1e-6 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(found, wanted, rtol=error, atol=error)
        assert steps.num_steps == number + 1


def test_values_are_the_mean_of_the_networks() -> None:
    spec = NetworkSpec(num_outputs=OUTPUTS, num_features=C, hidden_size=H)
    networks = [network_of(spec, seed, torch.float64) for seed in (0, 1)]
    heads = [head_of(one) for one in networks]
    x = np.ones((N, C))
    each: list[Any] = [
        steps_of(spec, [one], [head]).step(x) for one, head in zip(networks, heads, strict=True)
    ]
    found = steps_of(spec, networks, heads).step(x)
    assert found is not None
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-12)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    spec = NetworkSpec(num_outputs=OUTPUTS, num_features=C, hidden_size=H, pooling="attention")
    params = network_of(spec, 0, torch.float32)
    steps, untouched = (steps_of(spec, [params], [head_of(params)]) for _ in range(2))
    x = np.ones((N, C))
    both: list[Any] = [steps.step(x), untouched.step(x)]
    np.testing.assert_array_equal(*both)
    for bad in (np.nan, np.inf, 1e300):
        wrong = x.copy()
        wrong[1, 1] = bad
        assert steps.step(wrong) is None
    assert steps.num_steps == 1
    both = [steps.step(-x), untouched.step(-x)]
    np.testing.assert_array_equal(*both)
    infinite = AffineHead(np.full((H, OUTPUTS), np.inf), np.zeros(OUTPUTS))
    assert steps_of(spec, [params], [infinite]).step(x) is None


def test_what_does_not_fit_is_refused_before_memory_is_read() -> None:
    spec = NetworkSpec(num_outputs=OUTPUTS, num_features=C, hidden_size=H)
    params = network_of(spec, 0, torch.float32)
    head = head_of(params)
    changes: list[tuple[Params, str]] = [
        ({"rnn.weight_hh_l0": torch.zeros(3 * H, H + 1)}, r"weight_hh_l0 must be .* \[60, 20\]"),
        ({"rnn.bias_ih_l0": torch.zeros(3 * H, dtype=torch.float64)}, "bias_ih_l0 must be"),
    ]
    for change, said in changes:
        with pytest.raises(ValueError, match=said):
            steps_of(spec, [params | change], [head])
    choices: list[tuple[dict[str, Any], str]] = [
        ({"mean": np.zeros(3)}, r"mean must be \[2\]"),
        ({"num_streams": 0}, "0 streams"),
        ({"num_classes": 5}, "5 classes"),
    ]
    for options, said in choices:
        with pytest.raises(ValueError, match=said):
            steps_of(spec, [params], [head], **options)
    with pytest.raises(ValueError, match=r"head.weight must be \[20, 4\]"):
        steps_of(spec, [params], [AffineHead(np.zeros((H + 1, OUTPUTS)), np.zeros(OUTPUTS))])
    with pytest.raises(ValueError, match="as many heads"):
        steps_of(spec, [params], [])
    with pytest.raises(ValueError, match=r"shape|broadcast"):
        steps_of(spec, [params], [head]).step(np.zeros((N, C + 1)))
    both = NetworkSpec(num_outputs=OUTPUTS, num_features=C, hidden_size=H, bidirectional=True)
    assert not serves(both, torch.float32)
    assert not serves(spec, torch.bfloat16)
