"""What all claims share: how large an experiment is, a fair choice of the learning rate, differences and verdicts."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from data import Images

Results = dict[str, dict[str, Any]]
"""of each part of a claim: arrays, by name"""

MARGIN = 0.01
"""a difference in accuracy that is surely smaller is called no difference"""

SUPPORTED, PARTLY, NOT_THE_REASON, NOT_SHOWN = "supported", "partly", "not the reason", "not shown here"
SKETCH = "sketch"
"""the verdict of a fast run: none"""


class Setting(NamedTuple):
    """On what, and how thoroughly."""

    images: Images
    seeds: int
    fast: bool

    def steps(self, full: int) -> int:
        """A fifth of the steps where it must be fast; a multiple of ten."""
        return max(10, full // 50 * 10) if self.fast else full

    def some(self, values) -> list:
        """A grid of values, or every other one of them where it must be fast."""
        return list(values)[:: 2 if self.fast else 1]


class Finding(NamedTuple):
    """A line of the study's table."""

    measured: str
    effect: str
    verdict: str
    """SUPPORTED, PARTLY, NOT_THE_REASON or NOT_SHOWN"""
    because: str
    """the verdict's reason, in one sentence without its full stop"""
    numbers: dict[str, str]
    """what the page's text quotes, by name, as it is written there"""


class Interval(NamedTuple):
    """A mean over splits and seeds, and half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def percent(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f} %"

    def points(self) -> str:
        """A difference between accuracies, in percentage points."""
        return f"{100 * self.mean:+.1f} ± {100 * self.half:.1f} points".replace("-", "\N{MINUS SIGN}")

    def number(self, digits: int = 2) -> str:
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"

    def word(self, margin: float = MARGIN) -> str:
        """What a difference says: 'same' if it is surely within the margin, else 'higher', 'lower' or 'unclear'."""
        if max(abs(self.low), abs(self.high)) <= margin:
            return "same"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "unclear"


def interval(values) -> Interval:
    """The mean of values [seeds] with its interval; values that are not finite are left out."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else math.nan, math.nan)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean()), float(half))


def difference(a, b) -> Interval:
    """The mean of a - b, seed by seed, for two arms [seeds] that share split, seed and order."""
    return interval(np.asarray(a, float) - np.asarray(b, float))


class Ratio(NamedTuple):
    """How many times one is the other: the geometric mean over seeds, and its 95 % interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2g} times ({self.low:.2g} to {self.high:.2g})"


def ratio(a, b) -> Ratio:
    """The geometric mean of a / b, seed by seed, for two arms [seeds] of positive values."""
    logs = interval(np.log(np.asarray(a, float) / np.asarray(b, float)))
    return Ratio(*np.exp([logs.mean, logs.low, logs.high]).tolist())


def scientific(value: float) -> str:
    """A small number as a reader writes it: 4e-7 as 4 · 10⁻⁷."""
    if value == 0:
        return "0"
    digits, power = f"{value:.0e}".split("e")
    return f"{digits} · {power_of_ten(10.0 ** int(power))}"


def power_of_ten(value: float) -> str:
    """A size as a reader says it: 1e-17 as 10⁻¹⁷."""
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"10{str(round(math.log10(value))).translate(digits)}"
