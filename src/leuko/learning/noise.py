"""How many labels are wrong at all, seen from models that never saw the images.

The noise model: a label is right, or with one small probability it was swapped for any of the
other classes. That probability and the sharpness of the models, which is an inverse temperature,
are fitted together to out-of-fold answers: surprises that models which aren't sure would explain
are no wrong labels. What it assumes, and what follows where it doesn't hold:

- Models are wrong as often as their probabilities say once these are sharpened or flattened. Models
  that are sure and wrong, as those from another laboratory can be, make the share too high.
- Any other class is as likely on a wrong label. Labels that are confused between two classes that
  look alike, and so were learnt wrongly, make it too low.
- Images of different groups are independent. The interval takes the models as they are.

Knows scores and labels; knows nothing of images, or of what the models are.

Source: wrong labels as a noise of the observed label, Lawrence & Schölkopf 2001 (ICML 18).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEEWAY = 0.2  # deviation of the logarithm of a sharpness beyond the usual one
LEAST_RIGHT = 0.8  # share of the sound labels that models have to get right before they may accuse
BLOCK = 4096  # rows at a time, so that memory doesn't grow with the set
RESAMPLES = 200
SHARES = np.concatenate([[0.0], np.geomspace(1e-4, 0.5, 214)])  # 4 % from one to the next
SHARPNESSES = np.geomspace(2 / 9, 40 / 9, 41)  # times the usual one


@dataclass(frozen=True)
class Share:
    """A share, or a kappa, with its 95 % interval, low ≤ value ≤ high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """What was fitted: how sharp the models are, and the share of wrong labels in [0, 0.5]."""

    sharpness: float
    share: float
    usual: float


def sharpen(scores: FloatArray, sharpness: float) -> FloatArray:
    """Probabilities (N, K) from scores (N, K): a softmax of sharpness × scores."""
    powers = np.exp(sharpness * (scores - scores.max(axis=1, keepdims=True)))
    probabilities: FloatArray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def explain(own: FloatArray, share: NDArray[np.floating] | float, classes: int) -> FloatArray:
    """Likelihood of the given labels, of which `share` were swapped for any other class.

    Args:
        own: Probability that a cell is of the class on its label.
        share: Of wrong labels; broadcast against `own`.
        classes: K.
    """
    return np.asarray((1 - share) * own + share * (1 - own) / (classes - 1))


def fit_noise(scores: FloatArray, truth: IntArray, usual: float) -> Noise:
    """Sharpness of the models and share of wrong labels, together: the most probable pair.

    Few images can't tell models that are never wrong, and some wrong labels, from models that are
    sometimes wrong. An expectation decides there, and gives way where images are many.

    Args:
        scores: (N, K), out of fold.
        truth: (N,) the labels as given, in [0, K).
        usual: Sharpness that such models seldom exceed.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    rows, (count, classes) = np.arange(len(truth)), scores.shape

    def surprise(at: FloatArray) -> float:
        own = sharpen(scores, float(np.exp(at[0])))[rows, truth]
        likelihood = explain(own, 0.5 * float(expit(at[1])), classes)
        return -float((np.log(likelihood + 1e-12).sum() + _expect(np.exp(at[0]), usual)) / count)

    found = min(
        (
            minimize(
                surprise,
                (np.log(usual), start),
                method="Nelder-Mead",
                options={"xatol": 1e-3, "fatol": 1e-7},
            )
            for start in (-2.0, -5.0)
        ),
        key=lambda result: float(result.fun),
    )
    share = 0.5 * float(expit(found.x[1]))
    return Noise(float(np.exp(found.x[0])), share if share * count > 0.01 else 0.0, usual)


def _expect(sharpness: float, usual: float) -> float:
    """Logarithm of how probable a sharpness is before the answers are seen, up to a constant."""
    excess = max(0.0, float(np.log(sharpness / usual)))
    return -0.5 * (excess / LEEWAY) ** 2


def distrust(scores: FloatArray, truth: IntArray, noise: Noise) -> str:
    """Why models with these answers (N, K) may not accuse a label; empty if they may."""
    agreed = float((scores.argmax(axis=1) == truth).mean())
    commonest = float(np.bincount(truth).max()) / len(truth)
    if agreed <= commonest:
        return (
            f"The models agree with {agreed:.0%} of the labels, no more than always answering the "
            f"commonest class would ({commonest:.0%})."
        )
    if agreed < LEAST_RIGHT * (1 - noise.share):
        return (
            f"The models are right on {agreed / (1 - noise.share):.1%} of the cells; at least "
            f"{LEAST_RIGHT:.0%} are needed before their doubts mean anything."
        )
    return ""


def bound_share(
    scores: FloatArray, truth: IntArray, groups: Sequence[str], noise: Noise, seed: int
) -> Share:
    """The share of wrong labels with its 95 % interval: `fit_noise` on resampled groups, on a grid.

    Args:
        scores: (N, K), as they were fitted.
        truth: (N,) the labels as given.
        groups: N names; images of one group are drawn together.
        noise: From `fit_noise`.
        seed: Decides the resamples.
    """
    index = np.unique(np.asarray(list(groups), dtype=str), return_inverse=True)[1]
    count = int(index.max()) + 1
    rng = np.random.default_rng([seed, 95])
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights = drawn[:, index].astype(np.float32)  # (B, N)
    rows, best = np.arange(len(truth)), np.full(RESAMPLES, -np.inf)
    shares = np.zeros(RESAMPLES)
    for sharpness in SHARPNESSES * noise.usual:
        own = sharpen(scores, float(sharpness))[rows, truth]
        likelihood = np.full((RESAMPLES, len(SHARES)), _expect(float(sharpness), noise.usual))
        for start in range(0, len(own), BLOCK):
            part = slice(start, start + BLOCK)
            logs = np.log(explain(own[part, None], SHARES, scores.shape[1]) + 1e-12)
            likelihood += weights[:, part] @ logs.astype(np.float32)
        top = likelihood.argmax(axis=1)
        value = likelihood[np.arange(RESAMPLES), top]
        shares = np.where(value > best, SHARES[top], shares)
        best = np.maximum(best, value)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Share(noise.share, min(float(low), noise.share), max(float(high), noise.share))
