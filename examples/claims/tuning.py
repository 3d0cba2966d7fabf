"""The same chance for each arm: the learning rate is chosen on validation images, the test images are looked at once.

Every arm is tried at the same rates, on the same splits, which serve nothing else. A rate counts as much as its
own validation accuracy or that at its double, whichever is lower, so that no arm is put where its training is about to
break down. The best is then trained on the splits and seeds that all arms share, and only these are reported.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from claims.claim import Results, Setting
from claims.network import Network
from claims.training import Plan, Probe, Runs, Trained, train

RATES = tuple(2.0**k for k in range(-8, 2))
LOW_RATES = tuple(2.0**k for k in range(-11, -1))
"""for all arms of a comparison that needs them: deep networks, or batches of 2"""
TUNING_SEEDS = (1000, 1001)
"""of splits and weights that serve the choice only"""


def tune(network: Network, plan: Plan, setting: Setting, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """The choice of a learning rate, and all that it rests on.

    Returns:
      'rates' [rates]; 'validation' [tuning seeds, rates], the accuracy at the end; 'diverged', of the same shape;
      'rate', the chosen one; 'at the edge', whether it is the lowest or highest that was tried.
    """
    rates, seeds = setting.some(rates), TUNING_SEEDS[: 1 if setting.fast else None]
    out = train(network, plan, setting.images, Runs.grid(seeds, rates))
    shape = (len(seeds), len(rates))
    diverged = out.diverged.reshape(shape)
    validation = np.where(diverged, 0.0, out.validation_accuracy[:, -1].reshape(shape))
    mean = validation.mean(0)
    chosen = int(np.minimum(mean[:-1], mean[1:]).argmax())
    return {
        "rates": rates,
        "validation": validation,
        "diverged": diverged,
        "rate": rates[chosen],
        "at the edge": chosen in (0, len(rates) - 2),
    }


def measure(network: Network, plan: Plan, setting: Setting, rate: float, probe: Probe | None = None) -> Trained:
    """The runs that are reported: one for each seed, at one rate."""
    return train(network, plan, setting.images, Runs.grid(range(setting.seeds), [rate]), probe)


def tuned(network: Network, plan: Plan, setting: Setting, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """An arm: the choice of its rate, and its runs at that rate.

    Returns:
      As `tune`; and 'test' [seeds], the accuracy, NaN where the run diverged; 'lost' [seeds], whether it did; 'step'
      [evaluations] and 'curve' [seeds, evaluations], the validation accuracy; 'gap' [seeds], test less training loss.
    """
    key = network, plan, setting.seeds, setting.fast, id(setting.images), tuple(rates)
    if key not in _known:
        choice = tune(network, plan, setting, rates)
        _known[key] = choice | arm(measure(network, plan, setting, choice["rate"]), plan)
    return _known[key]


_known: dict[Any, dict[str, Any]] = {}
"""arms that several claims share, measured once"""


def arm(out: Trained, plan: Plan) -> dict[str, Any]:
    """What is kept of the runs of an arm."""
    lost, every = out.diverged, plan.steps // plan.evaluations
    return {
        "test": np.where(lost, np.nan, out.test_accuracy),
        "lost": lost,
        "step": np.arange(every, plan.steps + 1, every),
        "curve": out.validation_accuracy,
        "gap": np.where(lost, np.nan, out.test_loss - out.train_loss),
    }


def chosen(results: Results, arms) -> str:
    """The rates of some arms, for the page."""
    edge = {True: " (the edge of what was tried)", False: ""}
    return "; ".join(f"{n}: {results[n]['rate']:.2g}{edge[results[n]['at the edge']]}" for n in arms)


def steps_to(result: dict[str, Any], target: float) -> np.ndarray:
    """[seeds]: the step of the first evaluation that reaches the target; NaN where none does."""
    reached = np.asarray(result["curve"], float) >= target
    step = np.asarray(result["step"], float)
    return np.where(reached.any(-1), step[reached.argmax(-1)], np.nan)
