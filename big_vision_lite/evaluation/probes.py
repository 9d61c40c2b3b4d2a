"""How good features are, told by simple classifiers on top of them: few-shot ridge, nearest neighbours, linear probe.

Only arrays here: features float32 ``[n, d]`` and labels int ``[n]``. All is exact and repeatable; random choices of
shots come from a seed alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from big_vision_lite.errors import UserError

RIDGES = tuple(2.0**k for k in range(-10, 21, 2))
"""Regularisers tried, for standardised features."""
BLOCK = 2048
"""Test images whose distances to all training images are held at a time."""


@dataclasses.dataclass(frozen=True)
class Features:
    """Features and labels of a set of images.

    Raises:
      UserError: features that are not finite, labels out of range, or other numbers of both.
    """

    values: np.ndarray  # float32 [n, d]
    labels: np.ndarray  # int [n]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.labels):
            raise UserError(f"features {self.values.shape} and labels {self.labels.shape}; expected [n, d] and [n]")
        if not np.isfinite(self.values).all():
            rows = np.flatnonzero(~np.isfinite(self.values).all(1))
            raise UserError(f"the features of {len(rows):,} images, such as number {rows[0]}, are not finite; the "
                            "network is damaged or has diverged")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            least, most = self.labels.min(), self.labels.max()
            raise UserError(f"labels from {least} to {most}; there are {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.labels)


def shots_of(labels: np.ndarray, classes: Sequence[str], seed: int) -> np.ndarray:
    """For each class the numbers of its rows, in a random order: the first s of each are the s shots, so that fewer
    shots are among more."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    found = np.empty(len(classes), object)
    for c in range(len(classes)):
        found[c] = order[labels[order] == c]
    return found


def few_shot(train: Features, test: Features, shots: Sequence[int] = (1, 5, 10, 25), seeds: Sequence[int] = (0, 1, 2),
             held_out: int = 10) -> dict[int, list[float]]:
    """Top-1 on ``test`` of ridge regression to one-hot targets from a few training images a class.

    Features are standardised by mean and standard deviation of the shots; the intercept is not regularised. The
    regulariser is chosen by accuracy on up to ``held_out`` further training images a class, never on ``test``; where
    nothing is left, on the shots themselves by leave-one-out.

    Returns:
      For each number of shots the accuracies, a seed each, in [0, 1].

    Raises:
      UserError: a class has fewer training images than shots, or no training image.
    """
    most = max(shots)
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if counts.min() < most:
        c = int(counts.argmin())
        raise UserError(f"class {train.classes[c]!r} has {counts[c]} training images, fewer than {most} shots; take "
                        "fewer shots or more images")
    results: dict[int, list[float]] = {s: [] for s in shots}
    for seed in seeds:
        order = shots_of(train.labels, train.classes, seed)
        chosen = [rows[most : most + held_out] for rows in order]
        validation = np.concatenate(chosen) if all(len(rows) for rows in chosen) else None
        for s in shots:
            rows = np.concatenate([rows[:s] for rows in order])
            solver = Ridge(train.values[rows], np.eye(len(train.classes))[train.labels[rows]])
            if validation is None:
                right = [np.mean(solver.left_out(ridge).argmax(1) == train.labels[rows]) for ridge in RIDGES]
            else:
                right = [np.mean(scores.argmax(1) == train.labels[validation])
                         for scores in solver.scores(train.values[validation], RIDGES)]
            best = max(i for i, value in enumerate(right) if value == max(right))  # of equals, the strongest
            scores = next(solver.scores(test.values, (RIDGES[best],)))
            results[s].append(float(np.mean(scores.argmax(1) == test.labels)))
    return results


class Ridge:
    """Ridge regression with an intercept on standardised features, for many regularisers at the price of one.

    Args:
      x: float ``[n, d]``.
      y: float ``[n, k]``.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        x = x.astype(np.float64)
        self.mean, scale = x.mean(0), x.std(0)
        self.scale = np.where(scale > 0, scale, 1.0)
        z = (x - self.mean) / self.scale
        self.offset = y.mean(0)
        # Singular values of the smaller Gram matrix: with few shots n is far below d.
        if len(z) <= z.shape[1]:
            squares, left = np.linalg.eigh(z @ z.T)
            keep = squares > squares[-1] * 1e-12
            self._squares, self._left = squares[keep], left[:, keep]
            self._basis = z.T @ self._left / np.sqrt(self._squares)
        else:
            squares, self._basis = np.linalg.eigh(z.T @ z)
            keep = squares > squares[-1] * 1e-12
            self._squares, self._basis = squares[keep], self._basis[:, keep]
            self._left = z @ self._basis / np.sqrt(self._squares)
        self._y = y - self.offset
        self._projected = self._left.T @ self._y

    def scores(self, x: np.ndarray, ridges: Sequence[float]) -> Iterator[np.ndarray]:
        """Predictions ``[n, k]`` for each regulariser: the minimum of ``|zW - y|^2 + ridge |W|^2``."""
        z = (x - self.mean) / self.scale
        # Whichever is multiplied first, images by directions or directions by classes, the result is the same.
        many = len(ridges) * self._y.shape[1] > len(z)
        places = z @ self._basis if many else None
        for ridge in ridges:
            weights = (np.sqrt(self._squares) / (self._squares + ridge))[:, None] * self._projected
            yield (places @ weights if many else z @ (self._basis @ weights)) + self.offset

    def left_out(self, ridge: float) -> np.ndarray:
        """Predictions ``[n, k]`` for each training row by the fit to all others, with the means of all."""
        shrink = self._squares / (self._squares + ridge)
        fitted = self._left @ (shrink[:, None] * self._projected)
        leverage = 1 / len(self._left) + (self._left**2 * shrink).sum(1)
        residual = (self._y - fitted) / np.maximum(1 - leverage, 1e-12)[:, None]
        return self._y - residual + self.offset


def nearest_neighbours(train: Features, test: Features, k: int = 20, temperature: float = 0.07) -> float:
    """Top-1 of a vote among the k nearest training images by cosine, each with weight exp(cosine / temperature)
    (Wu et al., 2018, section 3.4).

    Raises:
      UserError: fewer than k training images.
    """
    if len(train) < k:
        raise UserError(f"{len(train)} training images are fewer than k={k} neighbours")
    bank, queries = (_normalized(f.values) for f in (train, test))
    hot = np.eye(len(train.classes), dtype=np.float32)[train.labels]
    right = 0
    for start in range(0, len(queries), BLOCK):
        similarity = queries[start : start + BLOCK] @ bank.T
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(similarity, near, 1) - 1) / temperature)
        votes = (weight[..., None] * hot[near]).sum(1)
        right += int((votes.argmax(1) == test.labels[start : start + BLOCK]).sum())
    return right / len(test)


def _normalized(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def linear_probe(train: Features, test: Features, penalties: Sequence[float] = (1e-6, 1e-4, 1e-2, 1.0),
                 held_out: float = 0.1, seed: int = 0, iterations: int = 300) -> float:
    """Top-1 of multinomial logistic regression by L-BFGS on standardised features.

    Args:
      penalties: half of each, times the squared weights, is added to the mean loss; chosen on held-out training images.
      held_out: their share; the fit with the chosen penalty then uses all.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    split = max(1, round(held_out * len(train)))
    validation, rest = order[:split], order[split:]
    best = penalties[0]
    if len(penalties) > 1:
        right = [np.mean(LogisticRegression(train.values[rest], train.labels[rest], len(train.classes), p, iterations)(
            train.values[validation]).argmax(1) == train.labels[validation]) for p in penalties]
        best = penalties[max(i for i, value in enumerate(right) if value == max(right))]
    model = LogisticRegression(train.values, train.labels, len(train.classes), best, iterations)
    return float(np.mean(model(test.values).argmax(1) == test.labels))


class LogisticRegression:
    """Multinomial logistic regression; the intercept is not penalised."""

    def __init__(self, x: np.ndarray, labels: np.ndarray, classes: int, penalty: float, iterations: int = 300):
        from scipy.optimize import minimize

        scale = x.std(0)
        self.mean, self.scale = x.mean(0), np.where(scale > 0, scale, 1.0)
        z = ((x - self.mean) / self.scale).astype(np.float32)
        hot = np.eye(classes, dtype=np.float32)[labels]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights, bias = flat[:-classes].reshape(-1, classes).astype(np.float32), flat[-classes:].astype(np.float32)
            logits = z @ weights + bias
            logits -= logits.max(1, keepdims=True)
            probability = np.exp(logits)
            total = probability.sum(1, keepdims=True)
            value = float(np.mean(np.log(total[:, 0]) - (logits * hot).sum(1)))
            slope = (probability / total - hot) / len(z)
            gradient = np.concatenate([(z.T @ slope + penalty * weights).ravel(), slope.sum(0)])
            return value + 0.5 * penalty * float((weights**2).sum()), gradient.astype(np.float64)

        start = np.zeros((z.shape[1] + 1) * classes)
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
        self.weights, self.bias = found.x[:-classes].reshape(-1, classes), found.x[-classes:]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Logits ``[n, classes]``."""
        return ((x - self.mean) / self.scale) @ self.weights + self.bias
