"""Answers of adapted networks as an affine function of the features.

Shape legend: F features, O outputs.
"""

from __future__ import annotations

import numpy as np
import torch

from raymeta.meta.learner import Learner
from raymeta.meta.learners.matching import Matching
from raymeta.meta.learners.prototypes import Prototypes
from raymeta.nn.native.step import AffineHead
from raymeta.nn.networks import NetworkSpec, Params


def affine_head(learner: Learner, spec: NetworkSpec, params: Params) -> AffineHead | None:
    """The weights and biases of an adapted network's answers; None where they are no such function.

    The answers of most learners are an affine function of the features (of prototypes by cosine: of
    the normalised ones), so that those to the unit vectors and to zero tell all of it.
    """
    if isinstance(learner, Matching) or learner.reads_steps:
        return None
    exact = {k: v.double() if v.is_floating_point() else v for k, v in params.items()}
    size = spec.output_size
    probes = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
    found = learner.adapted_answers(spec, exact, probes[None])[0].detach().numpy()
    weights, bias = found[1:] - found[0], found[0]
    other = torch.linspace(-1, 1, size, dtype=torch.float64)
    told = learner.adapted_answers(spec, exact, other[None, None])[0, 0].detach().numpy()
    is_cosine = needs_unit_length(learner)
    scaled = other / other.norm() if is_cosine else other
    if not np.allclose(scaled.numpy() @ weights + bias, told, rtol=1e-8, atol=1e-8):
        return None
    return AffineHead(weights, bias, is_cosine)


def needs_unit_length(learner: Learner) -> bool:
    """Whether answers are affine in the normalised features."""
    return isinstance(learner, Prototypes) and learner.distance == "cosine"
