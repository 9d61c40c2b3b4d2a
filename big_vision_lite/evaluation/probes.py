"""Simple classifiers that measure features: few-shot ridge regression, nearest neighbours, linear probe.

They work on arrays, features float32 ``[n, d]`` and labels int ``[n]``, and are deterministic given a seed. Written
here because the ridge solves for all regularisers and for leave-one-out from one decomposition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from big_vision_lite.errors import UserError

RIDGES = tuple(2.0**k for k in range(-10, 21, 2))
"""Regularisers to choose from, for standardised features."""
PENALTIES = (1e-6, 1e-4, 1e-2, 1.0)
"""L2 penalties of the linear probe to choose from."""
HELD_OUT = 0.1
"""Share of the training images on which the linear probe's penalty is chosen."""
BLOCK = 2048
"""Test images compared with all training images at a time."""


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features and labels of a set of images.

    Raises:
      UserError: features are not finite, labels are out of range, or their numbers differ.
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
            raise UserError(f"labels from {self.labels.min()} to {self.labels.max()}; there are {len(self.classes)} "
                            "classes")

    def __len__(self) -> int:
        return len(self.labels)


def shots_of(labels: np.ndarray, classes: Sequence[str], seed: int) -> list[np.ndarray]:
    """The row indices of each class in random order. The first s are its s shots, so fewer shots are a subset of
    more."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return [order[labels[order] == c] for c in range(len(classes))]


def few_shot(train: FeatureSet, test: FeatureSet, shots: Sequence[int] = (1, 5, 10, 25),
             seeds: Sequence[int] = (0, 1, 2), held_out: int = 10) -> dict[int, list[float]]:
    """Top-1 on ``test`` of ridge regression to one-hot targets from a few training images per class.

    Features are standardised by mean and standard deviation of the shots; the intercept is not regularised. The
    regulariser is chosen by accuracy on up to ``held_out`` further training images per class, never on ``test``; if
    there are none, by leave-one-out on the shots.

    Returns:
      Accuracies in [0, 1] by number of shots, one per seed.

    Raises:
      UserError: a class has fewer training images than shots.
    """
    max_shots = max(shots)
    counts = np.bincount(train.labels, minlength=len(train.classes))
    if counts.min() < max_shots:
        c = int(counts.argmin())
        raise UserError(f"class {train.classes[c]!r} has {counts[c]} training images, fewer than {max_shots} shots; "
                        "take fewer shots or more images")
    results: dict[int, list[float]] = {s: [] for s in shots}
    for seed in seeds:
        order = shots_of(train.labels, train.classes, seed)
        further = [rows[max_shots : max_shots + held_out] for rows in order]
        validation = np.concatenate(further) if all(len(rows) for rows in further) else None
        for s in shots:
            rows = np.concatenate([rows[:s] for rows in order])
            solver = Ridge(train.values[rows], np.eye(len(train.classes))[train.labels[rows]])
            if validation is None:
                accuracy = [np.mean(solver.left_out(ridge).argmax(1) == train.labels[rows]) for ridge in RIDGES]
            else:
                accuracy = [np.mean(scores.argmax(1) == train.labels[validation])
                            for scores in solver.scores(train.values[validation], RIDGES)]
            scores = next(solver.scores(test.values, (RIDGES[_last_best(accuracy)],)))
            results[s].append(float(np.mean(scores.argmax(1) == test.labels)))
    return results


def _last_best(accuracies: Sequence[float]) -> int:
    """Index of the best; among equals the last, which is the strongest regulariser."""
    return max(i for i, accuracy in enumerate(accuracies) if accuracy == max(accuracies))


class Ridge:
    """Ridge regression with an intercept on standardised features, for many regularisers at the cost of one.

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
        # Decompose the smaller Gram matrix: with few shots, n is far below d.
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
        # The order of the two products changes only their cost.
        many = len(ridges) * self._y.shape[1] > len(z)
        projected = z @ self._basis if many else None
        for ridge in ridges:
            weights = (np.sqrt(self._squares) / (self._squares + ridge))[:, None] * self._projected
            yield (projected @ weights if many else z @ (self._basis @ weights)) + self.offset

    def left_out(self, ridge: float) -> np.ndarray:
        """Leave-one-out predictions ``[n, k]`` for the training rows, standardised by the mean of all of them."""
        shrink = self._squares / (self._squares + ridge)
        fitted = self._left @ (shrink[:, None] * self._projected)
        leverage = 1 / len(self._left) + (self._left**2 * shrink).sum(1)
        residual = (self._y - fitted) / np.maximum(1 - leverage, 1e-12)[:, None]
        return self._y - residual + self.offset


def nearest_neighbours(train: FeatureSet, test: FeatureSet, k: int = 20, temperature: float = 0.07) -> float:
    """Top-1 of a vote among the k nearest training images by cosine similarity, weighted by exp(similarity /
    temperature) (Wu et al. 2018, section 3.4).

    Raises:
      UserError: fewer than k training images.
    """
    if len(train) < k:
        raise UserError(f"{len(train)} training images are fewer than k={k} neighbours")
    bank, queries = (s.values / np.maximum(np.linalg.norm(s.values, axis=1, keepdims=True), 1e-12)
                     for s in (train, test))
    one_hot = np.eye(len(train.classes), dtype=np.float32)[train.labels]
    correct = 0
    for start in range(0, len(queries), BLOCK):
        similarity = queries[start : start + BLOCK] @ bank.T
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(similarity, near, 1) - 1) / temperature)
        votes = (weight[..., None] * one_hot[near]).sum(1)
        correct += int((votes.argmax(1) == test.labels[start : start + BLOCK]).sum())
    return correct / len(test)


def linear_probe(train: FeatureSet, test: FeatureSet) -> float:
    """Top-1 of multinomial logistic regression by L-BFGS on standardised features.

    The penalty is chosen on held-out training images; the final fit uses all of them.
    """
    def fit(rows: np.ndarray | slice, penalty: float) -> LogisticRegression:
        return LogisticRegression(train.values[rows], train.labels[rows], len(train.classes), penalty)

    order = np.random.default_rng(0).permutation(len(train))
    split = max(1, round(HELD_OUT * len(train)))
    validation, rest = order[:split], order[split:]
    accuracy = [np.mean(fit(rest, p)(train.values[validation]).argmax(1) == train.labels[validation])
                for p in PENALTIES]
    penalty = PENALTIES[_last_best(accuracy)]
    return float(np.mean(fit(slice(None), penalty)(test.values).argmax(1) == test.labels))


class LogisticRegression:
    """Multinomial logistic regression. Half of ``penalty`` times the squared weights is added to the mean loss; the
    intercept is not penalised."""

    def __init__(self, x: np.ndarray, labels: np.ndarray, num_classes: int, penalty: float):
        from scipy.optimize import minimize

        scale = x.std(0)
        self.mean, self.scale = x.mean(0), np.where(scale > 0, scale, 1.0)
        z = ((x - self.mean) / self.scale).astype(np.float32)
        one_hot = np.eye(num_classes, dtype=np.float32)[labels]

        def unpacked(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return flat[:-num_classes].reshape(-1, num_classes), flat[-num_classes:]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights, bias = unpacked(flat.astype(np.float32))
            logits = z @ weights + bias
            logits -= logits.max(1, keepdims=True)
            probability = np.exp(logits)
            total = probability.sum(1, keepdims=True)
            value = float(np.mean(np.log(total[:, 0]) - (logits * one_hot).sum(1)))
            slope = (probability / total - one_hot) / len(z)
            gradient = np.concatenate([(z.T @ slope + penalty * weights).ravel(), slope.sum(0)])
            return value + 0.5 * penalty * float((weights**2).sum()), gradient.astype(np.float64)

        start = np.zeros((z.shape[1] + 1) * num_classes)
        fit = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
        self.weights, self.bias = unpacked(fit.x)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Logits ``[n, num_classes]``."""
        return ((x - self.mean) / self.scale) @ self.weights + self.bias
