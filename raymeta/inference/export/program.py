"""An adapted network as a program of `torch.export`, which plain torch runs without raymeta.

torch's own recurrent layers have one number of time steps once they are exported; a `scan` over
time has any.

Shape legend: N examples, T time steps, C channels, D directions, H hidden units, G gates times
units, F features, K classes, O outputs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.export import Dim

from raymeta.errors import DataError
from raymeta.inference.heads import affine_head
from raymeta.inference.trained import Trained
from raymeta.nn.networks import NetworkSpec, Params

NOTES_FILE = "raymeta.json"  # in the .pt2 file: its labels and versions


def program_bytes(
    trained: Trained, networks: Sequence[Params], labels: np.ndarray | None, *, temperature: float
) -> bytes:
    """The content of a .pt2 file: `(x, lengths)` to probabilities `[N, K]`, or values `[N, O]`.

    `x` is float64 `[N, T, C]` in the user's units, padded by anything; `lengths` int64 `[N]` are
    the valid steps; N and T are free.  The file `raymeta.json` in it has the labels, in the order
    of the probabilities.

    `torch.export.load(FILE).module()` opens it.  torch may unpickle what is in such a file: load
    none that comes from somebody whom you do not trust.

    Raises:
        DataError: the network has no such form; with the reason.
    """
    spec = trained.recipe.spec
    if trained.inputs.scaling is None or trained.inputs.prepared_by:
        raise DataError(
            "this network cannot be written as .pt2: the preparation of its examples has no such "
            "form; networks of numbers in tables have one, without missing values, times, "
            "categories and spectra; it has an ONNX form: -o FILE.onnx"
        )
    if spec.layer_dtype is not None:
        raise DataError(
            "a network with training.precision bfloat16 cannot be written as .pt2: float32 would "
            "give other answers; use raymeta predict"
        )
    if spec.stacked_steps > 1:
        raise DataError(
            "a network with model.stacked_steps above 1 cannot be written as .pt2: torch.export "
            "cannot prove that stacks fit any number of time steps; it has an ONNX form: -o "
            "FILE.onnx"
        )
    program = _Program(trained, networks, None if labels is None else len(labels), temperature)
    # Sizes of 1 would be taken for fixed.
    x = torch.zeros(3, 4, len(trained.inputs.channels), dtype=torch.float64)
    count = Dim("examples")
    shapes = ({0: count, 1: Dim("steps")}, {0: count})
    with torch.no_grad():
        exported = torch.export.export(program, (x, torch.tensor([4, 1, 2])), dynamic_shapes=shapes)
    notes = {
        "labels": None if labels is None else labels.tolist(),
        "channels": list(trained.inputs.channels),
        "versions": {"raymeta": version("raymeta"), "torch": torch.__version__},
    }
    content = io.BytesIO()
    torch.export.save(exported, content, extra_files={NOTES_FILE: json.dumps(notes)})
    return content.getvalue()


class _Program(nn.Module):
    """Raw examples to the mean answers of networks."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        trained: Trained,
        networks: Sequence[Params],
        num_classes: int | None,
        temperature: float,
    ) -> None:
        super().__init__()
        assert trained.inputs.scaling is not None, "others were refused"
        mean, deviation = trained.inputs.scaling
        self.register_buffer("mean", torch.from_numpy(np.array(mean, dtype=np.float64)))
        self.register_buffer("deviation", torch.from_numpy(np.array(deviation, dtype=np.float64)))
        self.networks = nn.ModuleList(_Network(trained, params) for params in networks)
        self._dtype, self._num_classes = trained.recipe.dtype, num_classes
        self._temperature, self._scale = temperature, trained.inputs.target_scale

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        # float32 in between, as in training
        x = ((x - self.mean) / self.deviation).float().to(self._dtype)
        answers = torch.stack([network(x, lengths) for network in self.networks]).double()
        if self._num_classes is not None:
            answers = (answers[..., : self._num_classes] / self._temperature).softmax(dim=-1)
        answers = answers.mean(dim=0)
        if self._num_classes is None and self._scale is not None:
            answers = self._scale[0] + self._scale[1] * answers
        return answers


class _Network(nn.Module):
    """Prepared examples to the answers of one network."""

    weight: Tensor
    bias: Tensor
    attention: Tensor

    def __init__(self, trained: Trained, adapted: Params) -> None:
        super().__init__()
        recipe = trained.recipe
        head = affine_head(recipe.learner, recipe.spec, adapted)
        if head is None:
            raise DataError(
                f"a network of the learner {recipe.learner.name} cannot be written as .pt2: its "
                "answers are no affine function of its features; it has an ONNX form: -o FILE.onnx"
            )
        params = {k: v[0] for k, v in recipe.learner.adapted_network(recipe.spec, adapted).items()}
        self.spec, self._has_unit_length = recipe.spec, head.has_unit_length
        self.register_buffer("weight", torch.tensor(head.weight, dtype=recipe.dtype))
        self.register_buffer("bias", torch.tensor(head.bias, dtype=recipe.dtype))
        if self.spec.pooling == "attention":
            self.register_buffer("attention", params["attention.weight"][0].clone())
        self.layers = nn.ModuleList(
            _Layer(self.spec, params, layer) for layer in range(self.spec.num_layers)
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Answers `[N, O]` to `x` `[N, T, C]`."""
        sequence = x.transpose(0, 1)
        valid = _valid(sequence, lengths)
        sequence = torch.where(valid, sequence, torch.zeros_like(sequence))
        for layer in self.layers:
            sequence = layer(sequence, lengths)
        features = self._pooled(sequence, valid, lengths)
        if self._has_unit_length:
            features = nn.functional.normalize(features, dim=-1)
        return features @ self.weight + self.bias

    def _pooled(self, sequence: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """Features `[N, F]` of states `[T, N, F]`; those of padding hold anything."""
        match self.spec.pooling:
            case "last":
                last = _at(sequence, (lengths - 1)[None])[0]
                size = self.spec.hidden_size  # the way back ends at the first step
                return torch.cat([last[:, :size], sequence[0, :, size:]], dim=-1)
            case "mean":
                kept = torch.where(valid, sequence, torch.zeros_like(sequence))
                return kept.sum(dim=0) / lengths.unsqueeze(-1)
            case "attention":
                score = (sequence @ self.attention).masked_fill(~valid[..., 0], -torch.inf)
                return (score.softmax(dim=0).unsqueeze(-1) * sequence).sum(dim=0)


class _Layer(nn.Module):
    """One recurrent layer, both directions in one scan."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor

    def __init__(self, spec: NetworkSpec, params: Params, layer: int) -> None:
        super().__init__()
        self.cell, self.num_directions = spec.cell, len(spec.suffixes)

        def stacked(name: str) -> Tensor:
            return torch.stack([params[f"rnn.{name}_l{layer}{end}"] for end in spec.suffixes])

        self.register_buffer("w_ih", stacked("weight_ih").transpose(1, 2).contiguous())  # [D, C, G]
        self.register_buffer("w_hh", stacked("weight_hh").transpose(1, 2).contiguous())  # [D, H, G]
        self.register_buffer("b_ih", stacked("bias_ih").unsqueeze(1))  # [D, 1, G]
        self.register_buffer("b_hh", stacked("bias_hh").unsqueeze(1))

    def forward(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        """States `[T, N, D * H]` of a sequence `[T, N, C]`."""
        backwards = lengths - 1 - torch.arange(sequence.shape[0])[:, None]  # [T, N]
        backwards = backwards.clamp(min=0)
        ways = [sequence, _at(sequence, backwards)][: self.num_directions]
        gates = torch.stack(ways, dim=1) @ self.w_ih + self.b_ih  # [T, D, N, G]
        start = torch.zeros_like(gates[0, ..., : self.w_hh.shape[1]])
        w_hh, b_hh, cell = self.w_hh, self.b_hh, self.cell

        def gru(state: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
            r, z, n = given.chunk(3, dim=-1)
            own_r, own_z, own_n = (state @ w_hh + b_hh).chunk(3, dim=-1)
            new = torch.tanh(n + torch.sigmoid(r + own_r) * own_n)
            state = new + torch.sigmoid(z + own_z) * (state - new)
            return state, state.clone()

        def rnn(state: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.tanh(given + state @ w_hh + b_hh)
            return state, state.clone()

        def lstm(
            state: tuple[Tensor, Tensor], given: Tensor
        ) -> tuple[tuple[Tensor, Tensor], Tensor]:
            i, f, g, o = (given + state[0] @ w_hh + b_hh).chunk(4, dim=-1)
            cells = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cells)
            return (hidden, cells), hidden.clone()

        if cell == "lstm":
            _, states = scan(lstm, (start, start.clone()), gates)
        else:
            _, states = scan(gru if cell == "gru" else rnn, start, gates)
        found = [states[:, 0]]
        if self.num_directions > 1:
            found.append(_at(states[:, 1], backwards))
        return torch.cat(found, dim=-1)


def _valid(sequence: Tensor, lengths: Tensor) -> Tensor:
    """Whether each step `[T, N, 1]` is within its example."""
    return (torch.arange(sequence.shape[0])[:, None] < lengths).unsqueeze(-1)


def _at(sequence: Tensor, steps: Tensor) -> Tensor:
    """The steps `[S, N]` of each example of a sequence `[T, N, F]`: `[S, N, F]`."""
    return sequence.gather(0, steps.unsqueeze(-1).expand(-1, -1, sequence.shape[2]))
