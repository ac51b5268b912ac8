"""Least squares with coefficients of 0 and more, which is all that is needed of scipy."""

import numpy as np

TOLERANCE = 1e-10


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return ``x >= 0`` with the smallest ``|matrix @ x - target|``.

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23).

    Args:
        matrix: Equations x coefficients.
        target: One value per equation.
    """
    scale = np.linalg.norm(matrix, axis=0)
    matrix = matrix / np.where(scale > 0, scale, 1.0)
    count = matrix.shape[1]
    x, free = np.zeros(count), np.zeros(count, dtype=bool)
    limit = TOLERANCE * max(1.0, float(np.linalg.norm(target)))
    for _ in range(10 * count):
        gradient = matrix.T @ (target - matrix @ x)
        gradient[free] = -np.inf
        if gradient.max(initial=-np.inf) <= limit:
            break
        free[int(gradient.argmax())] = True
        x = _solve_free(matrix, target, x, free)
    return x / np.where(scale > 0, scale, 1.0)


def _solve_free(matrix: np.ndarray, target: np.ndarray, x: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Minimize over the free coefficients; those that would become negative are fixed to 0. Changes ``free``."""
    while True:
        best = np.zeros_like(x)
        best[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        negative = free & (best <= 0)
        if not negative.any():
            return best
        step = (x[negative] / np.maximum(x[negative] - best[negative], 1e-300)).min()
        x = x + step * (best - x)
        free &= x > 1e-14 * max(1.0, float(np.abs(x).max()))
        x = np.where(free, x, 0.0)
