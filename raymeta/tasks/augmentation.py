"""Random variation of meta-training episodes of pen strokes; `Augmentation` explains each kind.

Shape legend: W ways, M examples of a class, T time steps.
"""

from __future__ import annotations

import numpy as np

from raymeta.tasks.settings import Augmentation

BLEND_SHARES = 0.25, 0.6  # of the other class in a blend


def blend(
    paths: np.ndarray, others: np.ndarray, blended: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Moves paths `[W, M, T, 2]` of the `blended` classes (bool `[W]`) towards `others`.

    One random share in `BLEND_SHARES` holds for all examples of a class.
    """
    share = np.where(blended, rng.uniform(*BLEND_SHARES, len(paths)), 0.0)
    return paths + share[:, None, None, None] * (others - paths)


def reverse(
    paths: np.ndarray, pens: np.ndarray, reversed_: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the `reversed_` classes (bool `[W]`) backwards: `[W, M, T, 2]` and `[W, M, T]`."""
    return (
        np.where(reversed_[:, None, None, None], paths[..., ::-1, :], paths),
        np.where(reversed_[:, None, None], pens[..., ::-1], pens),
    )


def augment(
    paths: np.ndarray,
    augmentation: Augmentation,
    mirrored: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Applies `augmentation` to the paths `[W, M, T, 2]` of an episode; same shape.

    Classes in `mirrored` (bool `[W]`) become their mirror image.
    """
    a = augmentation
    ways, examples, steps, _ = paths.shape
    class_map = _random_affine(rng, (ways, 1), a.class_rotation_deg, a.class_scale, a.class_shear)
    class_map[..., 0] *= np.where(mirrored, -1.0, 1.0)[:, None, None]
    example_map = _random_affine(
        rng, (ways, examples), a.example_rotation_deg, a.example_scale, a.example_shear
    )
    bent = paths @ (class_map @ example_map).swapaxes(-1, -2)
    if a.example_bend > 0:
        # A random trigonometric displacement of the path, smooth in time: low frequencies only.
        time = np.linspace(0.0, 1.0, steps)
        waves = np.stack([np.cos(np.pi * k * time) for k in range(1, 5)])  # [4, T]
        weights = rng.normal(0.0, a.example_bend, (ways, examples, 2, 4)) / np.arange(1, 5)
        bent = bent + (weights @ waves).swapaxes(-1, -2)
    bent = bent - bent.mean(axis=-2, keepdims=True)
    radius = np.sqrt((bent**2).sum(axis=-1).mean(axis=-1))[..., None, None]
    return np.asarray(bent / np.maximum(radius, 1e-6))


def _random_affine(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    rotation_deg: float,
    scale: float,
    shear: float,
) -> np.ndarray:
    """Random maps `[*shape, 2, 2]`: rotation × shear × scale."""
    angle = np.deg2rad(rng.uniform(-rotation_deg, rotation_deg, shape))
    rotation, slant = np.empty((*shape, 2, 2)), np.empty((*shape, 2, 2))
    rotation[..., 0, 0] = rotation[..., 1, 1] = np.cos(angle)
    rotation[..., 1, 0] = np.sin(angle)
    rotation[..., 0, 1] = -rotation[..., 1, 0]
    stretch = np.exp(rng.normal(0.0, scale, (*shape, 2)))
    slant[...] = np.eye(2)
    slant[..., 0, 1] = rng.normal(0.0, shear, shape)
    return np.asarray(rotation @ slant * stretch[..., None, :])
