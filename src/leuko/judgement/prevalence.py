"""What a slide holds, given what a model answered and how often it takes one class for another.

Knows counts and a confusion; knows no cells, no files and no names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leuko.errors import ShapeError

Float64 = NDArray[np.float64]

DRAWS = 1000  # of the confusion and the sample, for each limit
STEPS = 200  # of expectation and maximisation; a usable model is still after about 30
SMALLEST = 1e-6  # share from which a class may grow again: from 0 it never would


@dataclass(frozen=True)
class Prevalence:
    """Shares of the true classes among the counted ones.

    Attributes:
        value: (K,), at least 0. Those of the counted classes sum to 1; a class that isn't counted
            has its ratio to them all, which has no upper bound.
        low: Lower 95 % limits, (K,).
        high: Upper ones.
    """

    value: Float64
    low: Float64
    high: Float64


def correct_prevalence(
    answers: ArrayLike,
    confusion: ArrayLike,
    counted: ArrayLike,
    rng: np.random.Generator | int,
    draws: int = DRAWS,
) -> Prevalence:
    """Undoes the model's own errors in the counts of one slide.

    The shares are those under which the answers are the likeliest, never below 0: the model's
    errors are taken to be those of the test, whatever the mixture of classes. Each row of the
    confusion has one more cell spread over all columns, because an error that wasn't seen isn't
    one that can't happen.

    The limits hold both the chance of which cells are on the slide and that of which were in the
    test: the confusion is drawn anew, row by row, from its Dirichlet distribution, and the answers
    from the one that gives the exact (Clopper–Pearson) limits. So they are the exact limits, but
    for the noise of drawing, where the model makes no error.

    Args:
        answers: How often each class is the answer to a cell of the slide, (K,), 0 or more. All
            cells belong here, doubtful ones too, as in the test.
        confusion: Cells of the test by true class (rows) and answer (columns), (K, K).
        counted: Which classes make up the whole, (K,) of bool: the leukocytes.
        rng: Generator or seed.
        draws: For each limit.

    Raises:
        ShapeError: Shapes that don't fit; no answer of a counted class; a class without a cell in
            the test.

    Source: expectation–maximisation for shifted priors, Saerens et al. 2002,
    doi:10.1162/089976602753284446, on answers rather than on probabilities.
    """
    seen, table, among = _check(answers, confusion, counted)
    generator = np.random.default_rng(rng)
    K = len(seen)
    smoothed = table + 1 / K
    value = _invert(
        (seen / seen.sum())[None], (smoothed / smoothed.sum(axis=1, keepdims=True))[None]
    )[0]
    gammas = generator.standard_gamma(smoothed, size=(draws, K, K))
    tables = gammas / gammas.sum(axis=2, keepdims=True)
    low, high = np.zeros(K), np.zeros(K)
    for k in range(K):
        drawn = [
            _relate(_invert(_draw_shares(seen + more, draws, generator), tables), among)[:, k]
            for more in (_spread(seen, among, k), np.eye(K)[k])
        ]
        low[k], high[k] = np.quantile(drawn[0], 0.025), np.quantile(drawn[1], 0.975)
    return Prevalence(_relate(value[None], among)[0], low, high)


def _check(
    answers: ArrayLike, confusion: ArrayLike, counted: ArrayLike
) -> tuple[Float64, Float64, NDArray[np.bool_]]:
    seen, table = np.asarray(answers, np.float64), np.asarray(confusion, np.float64)
    among = np.asarray(counted, np.bool_)
    K = len(seen) if seen.ndim == 1 else 0
    if K < 2 or table.shape != (K, K) or among.shape != (K,):
        raise ShapeError(
            f"Found answers of shape {seen.shape}, a confusion of shape {table.shape} and counted "
            f"classes of shape {among.shape}; expected (K,), (K, K) and (K,) with K of 2 or more."
        )
    if (
        not (np.isfinite(seen).all() and np.isfinite(table).all())
        or min(seen.min(), table.min()) < 0
    ):
        raise ShapeError("Found a count that is negative or no number; expected 0 or more.")
    if not seen[among].sum() > 0:
        raise ShapeError("Found no answer of a class that is counted; there is nothing to correct.")
    if not (table.sum(axis=1) > 0).all():
        k = int(np.flatnonzero(table.sum(axis=1) == 0)[0])
        raise ShapeError(
            f"Class {k} has no cell in the confusion; expected at least one, or its errors are "
            "unknown. Test the model on cells of every class."
        )
    return seen, table, among


def _spread(seen: Float64, among: NDArray[np.bool_], k: int) -> Float64:
    """One more cell for the counted classes other than k: what lowers the share of k."""
    others = among & (np.arange(len(seen)) != k)
    weights: Float64 = np.where(others, seen, 0.0)
    if not weights.any():
        weights = others.astype(np.float64)
    weights /= max(weights.sum(), SMALLEST)  # nothing, where k alone is counted
    return weights


def _draw_shares(alpha: Float64, draws: int, generator: np.random.Generator) -> Float64:
    """Shares of answers (B, K) from a Dirichlet distribution, in which 0 stays 0."""
    gammas = generator.standard_gamma(alpha, size=(draws, len(alpha)))
    return np.asarray(gammas / gammas.sum(axis=1, keepdims=True))


def _relate(shares: Float64, among: NDArray[np.bool_]) -> Float64:
    """Shares (B, K) of all cells as shares of the counted ones."""
    return np.asarray(shares / np.maximum(shares[:, among].sum(axis=1, keepdims=True), SMALLEST))


def _invert(shares: Float64, tables: Float64) -> Float64:
    """The likeliest true shares (B, K) behind shares of answers (B, K).

    Where the linear solution has no negative share it is the likeliest one; elsewhere, and where
    there is none because two classes are answered alike, it is searched for.

    Args:
        shares: Of the answers, rows sum to 1.
        tables: Chance of each answer (columns) for each true class (rows), (B, K, K).
    """
    try:
        solved = np.linalg.solve(tables.transpose(0, 2, 1), shares[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        solved = np.full_like(shares, -1.0)  # the search begins with equal shares
    found: Float64 = np.maximum(solved, 0.0)
    rest = np.flatnonzero((solved < 0).any(axis=1))
    if rest.size:
        found[rest] = _search(found[rest].T, shares[rest].T, tables[rest].transpose(1, 2, 0)).T
    return found


def _search(start: Float64, seen: Float64, tables: Float64) -> Float64:
    """Expectation and maximisation, from (K, B) to (K, B); tables are (K, K, B)."""
    chance = np.ascontiguousarray(tables)  # the draws lie side by side: five times as fast
    x = np.maximum(start, SMALLEST)
    x /= x.sum(axis=0)
    for _ in range(STEPS):
        expected = (x[:, None, :] * chance).sum(axis=0)
        ratio = seen / np.maximum(expected, 1e-300)
        new = x * (chance * ratio[None]).sum(axis=1)
        moved = np.abs(new - x).max()
        x = new
        if moved < SMALLEST:
            break
    return np.where(x < SMALLEST, 0.0, x)
