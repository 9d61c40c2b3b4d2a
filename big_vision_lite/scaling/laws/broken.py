"""The broken neural scaling law of Caballero, Gupta, Rish and Krueger, "Broken Neural Scaling Laws" (2022), eq. 1."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from big_vision_lite.scaling.laws.law import Law, clip, line, sigmoid, softplus

MAX_SLOPE = 5.0
WIDTHS = (np.log(0.05), np.log(4.0))
"""Bounds of the logarithm of a break's width in ln x."""


@dataclasses.dataclass(frozen=True)
class Broken(Law):
    """Power laws above an asymptote, joined smoothly at breaks.

    Theta holds the level at z = 0, the first slope, e_inf, and per break the slope after it, its place in z and the
    logarithm of its width. Slopes, unlike the paper's differences of slopes, have the bound that keeps errors from
    rising: 0. Between two wide breaks they still may rise a little; `prediction` leaves such fits out.
    """

    breaks: int = 1

    @property
    def name(self) -> str:  # type: ignore[override]
        return "broken" if self.breaks == 1 else f"broken ({self.breaks} breaks)"

    @property
    def formula(self) -> str:  # type: ignore[override]
        return "e = e_inf + beta x^c prod_i (1 + (x/d_i)^(1/f_i))^(c_i f_i)"

    @property
    def parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("beta", "c", "e_inf", *(f"{name}{i + 1}" for i in range(self.breaks) for name in "cdf"))

    def predict(self, theta, z):
        level, slope, e_inf = (theta[:, i:i + 1] for i in range(3))
        log_fall = level - slope * z
        by_slopes, by_breaks = [-z * np.ones_like(level)], []
        for i in range(self.breaks):
            after, place, log_width = (theta[:, j:j + 1] for j in range(3 + 3 * i, 6 + 3 * i))
            width = np.exp(log_width)
            beyond = (z - place) / width
            passed, share = softplus(beyond), sigmoid(beyond)
            change = after - slope
            log_fall = log_fall - change * width * passed
            by_slopes[-1] = by_slopes[-1] + width * passed
            by_slopes.append(-width * passed)
            by_breaks.append((change * share, -change * width * (passed - beyond * share)))
            slope = after
        fall = np.exp(clip(log_fall))
        slopes = [fall, fall * by_slopes[0], np.ones_like(fall)]
        for by_slope, (by_place, by_width) in zip(by_slopes[1:], by_breaks, strict=True):
            slopes += [fall * by_slope, fall * by_place, fall * by_width]
        return e_inf + fall, np.stack(slopes, axis=-1)

    def bounds(self, z, error):
        level = np.log(error).mean()
        low, high = [level - 20, 0.0, 0.0], [level + 20, MAX_SLOPE, np.median(error)]
        for _ in range(self.breaks):  # a break that the data end in cannot be told from noise
            low += [0.0, z.min() - 1, WIDTHS[0]]
            high += [MAX_SLOPE, z.max() - 0.3, WIDTHS[1]]
        return np.array(low), np.array(high)

    def starts(self, z, error):
        starts = []
        places = np.quantile(z, (0.15, 0.4, 0.7))
        for share in (0.0, 0.5, 0.9):
            e_inf = share * error.min()
            level, slope = line(z, np.log(error - e_inf))
            slope = max(-slope, 1e-3)
            for at, log_width, (before, after) in itertools.product(
                    itertools.combinations(places, self.breaks), np.log((0.5, 1.5)), ((0.3, 1.5), (1.0, 0.7))):
                breaks = [(after * slope, place, log_width) for place in at]
                starts.append((level, before * slope, e_inf, *itertools.chain.from_iterable(breaks)))
        return np.array(starts)

    def natural(self, theta, log_x0):
        values = {"beta": np.exp(clip(theta[:, 0] + theta[:, 1] * log_x0)), "c": -theta[:, 1], "e_inf": theta[:, 2]}
        slope = theta[:, 1]
        for i in range(self.breaks):
            after, place, log_width = theta[:, 3 + 3 * i:6 + 3 * i].T
            values |= {f"c{i + 1}": slope - after, f"d{i + 1}": np.exp(clip(place + log_x0)),
                       f"f{i + 1}": np.exp(log_width)}
            slope = after
        return values
