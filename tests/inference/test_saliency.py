"""Integrated gradients and occlusion against closed forms and independent references."""

from __future__ import annotations

from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from raymeta.errors import DataWarning
from raymeta.inference import saliency
from raymeta.inference.saliency import Answer, integrated_gradients, occlusion
from raymeta.nn.cells import Cell
from raymeta.nn.networks import NetworkSpec, Pooling, expand_params, forward, init_params

Setting = tuple[Cell, int, bool, Pooling]
SETTINGS: list[Setting] = list(product(get_args(Cell), (1, 2), (False, True), get_args(Pooling)))
SPECS = [
    NetworkSpec(
        num_outputs=2,
        num_features=2,
        cell=cell,
        hidden_size=4,
        num_layers=layers,
        bidirectional=bidirectional,
        pooling=pooling,
    )
    for cell, layers, bidirectional, pooling in SETTINGS
]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def network_params(spec: NetworkSpec) -> dict[str, Tensor]:
    """Random parameters, large enough to be far from linear, with biases."""
    params = init_params(spec, torch.Generator().manual_seed(3), torch.float64)
    return {k: 1.5 * v + 0.1 * random(*v.shape, seed=4) for k, v in params.items()}


def answer_of(spec: NetworkSpec, params: dict[str, Tensor], lengths: Tensor) -> Answer:
    """The probability of class 1 by raymeta's layers."""

    def answer(x: Tensor, rows: Tensor) -> Tensor:
        outputs = forward(spec, expand_params(params, 1), x[None], lengths[rows][None])
        return outputs[0].softmax(dim=-1)[:, 1]

    return answer


def reference_answer(spec: NetworkSpec, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same by `torch.nn`, for sequences of one length."""
    kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[spec.cell]
    rnn = kind(
        spec.input_size,
        spec.hidden_size,
        spec.num_layers,
        bidirectional=spec.bidirectional,
        batch_first=True,
        dtype=torch.float64,
    )
    own = {k.removeprefix("rnn."): v for k, v in params.items() if k.startswith("rnn.")}
    rnn.load_state_dict(own)
    with torch.no_grad():
        states, _ = rnn(x)
        match spec.pooling:
            case "last":
                size = spec.hidden_size
                pooled = torch.cat([states[:, -1, :size], states[:, 0, size:]], dim=-1)
            case "mean":
                pooled = states.mean(dim=1)
            case "attention":
                weights = (states @ params["attention.weight"][0]).softmax(dim=1)
                pooled = (weights[..., None] * states).sum(dim=1)
        outputs = pooled @ params["head.weight"].T + params["head.bias"]
        return outputs.softmax(dim=-1)[:, 1]


def reference_integral(
    spec: NetworkSpec, params: dict[str, Tensor], x: Tensor, b: Tensor
) -> Tensor:
    """Sums central differences on a fine grid by Simpson's rule, `[T, D]`."""
    num, step = 401, 1e-5
    alphas = torch.linspace(0, 1, num, dtype=torch.float64)
    weights = torch.ones(num, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    weights /= 3 * (num - 1)
    points = b + alphas[:, None, None] * (x - b)
    found = torch.zeros_like(x)
    for place in np.ndindex(*x.shape):
        moved = torch.zeros_like(x)
        moved[place] = step
        up = reference_answer(spec, params, points + moved)
        down = reference_answer(spec, params, points - moved)
        found[place] = (weights * (up - down)).sum() / (2 * step) * (x - b)[place]
    return found


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "spec",
    SPECS,
    ids=lambda s: f"{s.cell}-{s.num_layers}-{'both' if s.bidirectional else 'one'}-{s.pooling}",
)
def test_every_layer_has_the_integral_of_its_finite_differences(spec: NetworkSpec) -> None:
    params = network_params(spec)
    lengths = torch.tensor([5, 3])
    x, baseline = 2 * random(2, 5, 2, seed=1), random(2, seed=2)
    x[1, 3:] = 7.0  # padding may hold anything
    answer = answer_of(spec, params, lengths)
    found = integrated_gradients(answer, x, baseline)
    for row, length in enumerate(lengths.tolist()):
        wanted = reference_integral(spec, params, x[row, :length], baseline)
        torch.testing.assert_close(found[row, :length], wanted, rtol=0, atol=2e-7)
    assert (found[1, 3:] == 0).all()


def test_a_linear_function_has_its_own_terms() -> None:
    weights, x, baseline = random(4, 3), random(5, 4, 3, seed=1), random(3, seed=2)

    def answer(x: Tensor, rows: Tensor) -> Tensor:
        return (x * weights).sum(dim=(1, 2))

    lengths = torch.full((5,), 4)
    wanted = weights * (x - baseline)
    for nodes in (1, 2, None):
        found = integrated_gradients(answer, x, baseline, num_nodes=nodes)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    lost = occlusion(
        answer,
        x,
        baseline,
        lengths,
        window=1,
        channels=[slice(d, d + 1) for d in range(x.shape[2])],
    )
    torch.testing.assert_close(lost, wanted, rtol=1e-12, atol=1e-12)
    together = occlusion(answer, x, baseline, lengths, window=1, channels=[slice(None)])
    torch.testing.assert_close(together[..., 0], wanted.sum(dim=2), rtol=1e-12, atol=1e-12)


def test_a_product_is_shared_equally_from_zero() -> None:
    """∫ x₂ α dα = x₂ / 2: each factor of x₁ x₂ has half of it."""
    x = random(6, 1, 2)

    def answer(x: Tensor, rows: Tensor) -> Tensor:
        return x[:, 0, 0] * x[:, 0, 1]

    found = integrated_gradients(answer, x, torch.zeros(2).double())
    half = x.prod(dim=2, keepdim=True) / 2
    torch.testing.assert_close(found, half.expand(-1, -1, 2), rtol=1e-12, atol=1e-12)


def test_more_nodes_come_nearer_and_as_many_are_taken_as_are_needed() -> None:
    x = torch.tensor([[[3.0, -1.0]], [[0.2, 0.1]]], dtype=torch.float64)
    zero = torch.zeros(2).double()
    counts: list[int] = []

    def answer(x: Tensor, rows: Tensor) -> Tensor:
        counts.append(len(x))
        return (6 * (x[:, 0, 0] + x[:, 0, 1]) - 5).sigmoid()

    ends = answer(x, torch.arange(2)) - answer(torch.zeros_like(x), torch.arange(2))
    gaps = []
    for nodes in (2, 8, 32, 128):
        values = integrated_gradients(answer, x, zero, num_nodes=nodes)
        gaps.append((values.sum(dim=(1, 2)) - ends).abs().max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 1e-3
    assert gaps[-1] < 1e-12
    counts.clear()
    values = integrated_gradients(answer, x, zero)
    torch.testing.assert_close(values.sum(dim=(1, 2)), ends, rtol=0, atol=1e-6)
    assert counts[2:5] == [2 * 16, 2 * 32, 64]  # of the second example 32 are enough


def test_an_abrupt_answer_is_warned_of_by_name() -> None:
    def answer(x: Tensor, rows: Tensor) -> Tensor:
        return (1e6 * (x[:, 0, 0] - 0.34567)).sigmoid()

    with pytest.warns(DataWarning, match=r"^the second: .*with 512 nodes"):
        integrated_gradients(
            answer,
            torch.tensor([[[0.1]], [[1.0]]], dtype=torch.float64),
            torch.zeros(1).double(),
            names=["the first", "the second"],
        )


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[0]
    lengths, baseline = torch.tensor([4, 2, 3, 4, 1]), random(2, seed=5)
    x = random(5, 4, 2)
    answer = answer_of(spec, network_params(spec), lengths)
    wanted = integrated_gradients(answer, x, baseline)
    for at_once in (1, 20, 100):
        monkeypatch.setattr(saliency, "_AT_ONCE", at_once)
        found = integrated_gradients(answer, x, baseline)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("window", [1, 2, 3, 9])
@pytest.mark.parametrize("together", [True, False])
def test_occlusion_is_the_mean_loss_over_the_windows_with_a_step(
    cell: Cell, window: int, together: bool
) -> None:
    spec = NetworkSpec(num_outputs=2, num_features=2, cell=cell, hidden_size=4)
    params = network_params(spec)
    lengths = torch.tensor([5, 2, 4])
    x, baseline = random(3, 5, 2), random(2, seed=2)
    parts = [slice(None)] if together else [slice(0, 1), slice(1, 2)]
    found = occlusion(
        answer_of(spec, params, lengths), x, baseline, lengths, window=window, channels=parts
    )
    for row, length in enumerate(lengths.tolist()):
        own = x[row, :length]
        whole = reference_answer(spec, params, own[None])[0]
        channels = [[0, 1]] if together else [[0], [1]]
        for step, (number, channel) in product(range(length), enumerate(channels)):
            losses = []
            for start in range(max(1, length - window + 1)):
                if not start <= step < start + window:
                    continue
                occluded = own.clone()
                occluded[start : start + window, channel] = baseline[channel]
                losses.append(whole - reference_answer(spec, params, occluded[None])[0])
            wanted = torch.stack(losses).mean()
            torch.testing.assert_close(found[row, step, number], wanted, rtol=0, atol=1e-12)
        assert (found[row, length:] == 0).all()
