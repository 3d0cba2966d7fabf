"""What all claims share: how large an experiment is, what is found, and intervals over the seeds."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from data import Dataset

Results = dict[str, dict[str, Any]]
"""of each part of a claim: arrays, by name"""


class Setting(NamedTuple):
    """On what, and how thoroughly."""

    data: Dataset
    seeds: int
    fast: bool

    def steps(self, full: int) -> int:
        """A fifth of the steps where it must be fast; a multiple of ten."""
        return max(10, full // 50 * 10) if self.fast else full

    def some(self, values) -> list:
        """Of a grid every other value where it must be fast."""
        return list(values)[:: 2 if self.fast else 1]


class Finding(NamedTuple):
    """A line of the study's table."""

    measured: str
    effect: str
    verdict: str
    """starts with 'holds', 'holds in part' or 'does not hold'"""


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    half: float

    def percent(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f} %"

    def number(self, digits: int = 2) -> str:
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def interval(values) -> Interval:
    """Of values [seeds]."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return Interval(float(values.mean()), float("nan"))
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean()), float(half))


def ratio(a, b) -> str:
    """How many times `a` is `b`, both [seeds] and positive: the geometric mean and its interval."""
    logs = interval(np.log(np.asarray(a, float) / np.asarray(b, float)))
    low, middle, high = np.exp([logs.mean - logs.half, logs.mean, logs.mean + logs.half])
    return f"{middle:.3g} times ({low:.3g} to {high:.3g})"


def best(accuracy) -> int:
    """Which learning rate is best for an accuracy [seeds, rates], on average over the seeds."""
    return int(np.nanmean(np.asarray(accuracy, float), 0).argmax())
