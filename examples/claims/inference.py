"""Claim 3: at inference it uses moving averages accumulated in training, which makes predictions stable."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from claims import network as net
from claims.claim import NOT_SHOWN, PARTLY, SUPPORTED, Finding, Results, Setting, interval, scientific
from claims.drawing import INK, curve, panel
from claims.network import Network
from claims.training import Plan, Runs, evaluate, inputs, part_of, train

TITLE = "Moving averages at inference"
SENTENCE = "At inference it uses the moving averages of mean and variance, for stable predictions."
SUPPORT = (
    "in evaluation mode an image's prediction is the same alone and in any company, and in training mode it is not"
)
AGAINST = "it changes in evaluation mode too, or in neither"
LIMITS = (
    "Batches drawn from the same images: on images of another kind the averages are those of the wrong data, which "
    "this does not measure."
)
LOOK = (
    "First: how far a box reaches is what the company does to one image. Then: where the dotted line is above the blue "
    "one, the moving averages are behind."
)
NETWORK = Network()
IMAGES, BATCHES, BATCH = 64, 50, 16
RATE, RATE_OF_SMALL_BATCHES = 0.1, 0.01
"""none is compared with another: either trains"""
CASES = {
    # name: (momentum, batch size)
    "momentum 0.9, batches of 64": (0.9, 64),
    "momentum 0.99, batches of 64": (0.99, 64),
    "momentum 0.5, batches of 4": (0.5, 4),
}
LAGGING, NOISY = "momentum 0.99, batches of 64", "momentum 0.5, batches of 4"
EARLY = 10


def exact_accuracy(network: Network, look):
    """Validation accuracy with the statistics of all training images, as `jaxbn.recalibrate` gives them."""
    seen = look.seen
    out = net.apply(network, look.params, look.batch_stats, seen.train_x, train=True, momentum=0.0)
    return evaluate(network, look.params, out.batch_stats, seen.validation_x, seen.validation_y)[1]


def parts(setting: Setting):
    def predictions():
        """The probability of its class for each of some test images, alone and in random company, in both modes."""
        plan = Plan(setting.steps(400), evaluations=5, decay=False)
        runs = Runs.grid(range(setting.seeds), [RATE])
        out = train(NETWORK, plan, setting.images, runs)
        own = inputs(NETWORK, plan, setting.images, runs)
        count = len(own.test[0])
        images = min(IMAGES, count)
        company = np.random.default_rng(0).integers(0, count, (BATCHES, images, BATCH - 1))

        @jax.jit
        @jax.vmap
        def of_seed(params, batch_stats, own):
            test_x, test_y = part_of(setting.images, own, own.test)
            each = jnp.arange(images)

            def probabilities(x, train):
                logits = net.apply(NETWORK, params, batch_stats, x, train=train).logits
                return jax.nn.softmax(logits)

            def in_company(rows, image, train):
                return probabilities(jnp.concatenate([test_x[image][None], test_x[rows]]), train)[0]

            alone = probabilities(test_x[:images], False)
            mixed = [
                jax.vmap(jax.vmap(functools.partial(in_company, train=train)), (0, None))(company, each)
                for train in (False, True)
            ]
            right = test_y[:images]
            return alone, *mixed, right

        own = own._replace(params=None, batch_stats=None, batches=None)
        alone, evaluation, training, right = map(np.asarray, of_seed(out.params, out.batch_stats, own))

        def of_class(p):
            return np.take_along_axis(p[0], right[0][(None,) * (p.ndim - 3) + (slice(None), None)], -1)[..., 0]

        moving = np.argsort(of_class(training).std(0))[-8:]
        return {
            "difference": np.abs(evaluation - alone[:, None]).max((1, 2, 3)),
            "spread": np.take_along_axis(training, right[:, None, :, None], -1)[..., 0].std(1).mean(1),
            "flips": (training.argmax(-1) != training.argmax(-1)[:, :1]).any(1).mean(-1),
            "example": of_class(training).T[moving],
            "example alone": of_class(alone)[moving],
        }

    def curves(momentum, batch_size):
        def measure():
            runs = Runs.grid(range(setting.seeds), [RATE if batch_size > 8 else RATE_OF_SMALL_BATCHES])
            steps = setting.steps(400)
            plan = Plan(steps, batch_size, evaluations=10, momentum=momentum, decay=False)
            early = plan._replace(steps=10)
            found = [train(NETWORK, p, setting.images, runs, exact_accuracy) for p in (early, plan)]
            every = steps // plan.evaluations
            step = [*range(1, 11), *range(every, steps + 1, every)]
            order = np.unique(step, return_index=True)[1]
            return {
                "step": np.array(step)[order],
                "running": np.concatenate([f.validation_accuracy for f in found], 1)[:, order],
                "recalibrated": np.concatenate([f.probed for f in found], 1)[:, order],
            }

        return measure

    return {"predictions": predictions} | {name: curves(*case) for name, case in CASES.items()}


def finding(results: Results) -> Finding:
    p = results["predictions"]
    spread, flips, moved = interval(p["spread"]), interval(p["flips"]), float(np.max(p["difference"]))
    lag, noisy = results[LAGGING], results[NOISY]
    early = [interval(np.asarray(lag[k], float)[:, lag["step"].index(EARLY)]) for k in ("running", "recalibrated")]
    late = [interval(np.asarray(noisy[k], float)[:, -1]) for k in ("running", "recalibrated")]
    stable = moved < 1e-4
    if stable and flips.low > 0:
        verdict = SUPPORTED
        because = (
            "the company changes nothing; but averages that are young or noisy mislead until they are recalibrated"
        )
    elif stable:
        verdict, because = PARTLY, "predictions are stable, and were nearly so in training mode"
    else:
        verdict, because = NOT_SHOWN, "predictions depend on the company in evaluation mode too"
    return Finding(
        f"one image in {BATCHES} different batches of {BATCH}: how its probabilities move; validation accuracy with "
        "the moving averages and with the statistics of all training images",
        f"evaluation mode: by at most {scientific(moved)}; training mode: by {spread.number(3)} (standard deviation), "
        f"and {flips.percent()} of the images change their class; after {EARLY} steps at momentum 0.99 "
        f"{early[0].percent()} are right, recalibrated {early[1].percent()}; batches of 4 at momentum 0.5 "
        f"{late[0].percent()}, recalibrated {late[1].percent()}",
        verdict,
        because,
        {
            "moved": f"{scientific(moved)}",
            "flips": flips.percent(),
            "early": early[0].percent(),
            "early, recalibrated": early[1].percent(),
            "noisy": late[0].percent(),
            "noisy, recalibrated": late[1].percent(),
        },
    )


def seen(results: Results) -> str:
    f = finding(results).numbers
    return (
        f"In training mode {f['flips']} of the images change their class with their company, in evaluation mode none. "
        f"After {EARLY} steps at momentum 0.99 the moving averages get {f['early']} right, and "
        f"{f['early, recalibrated']} when recalibrated"
    )


def draw(results: Results):
    p = results["predictions"]
    example = np.asarray(p["example"])
    places = np.arange(len(example))
    first, axes = panel("one image in 50 batches, training mode", "the eight images that move most", "probability")
    shades: dict[str, Any] = {k: {"color": INK} for k in ("boxprops", "whiskerprops", "capprops", "medianprops")}
    axes.boxplot(list(example), positions=places, widths=0.6, flierprops={"markersize": 3, "markeredgecolor": INK},
                 **shades)  # fmt: skip
    axes.plot(places, p["example alone"], "D", color="#0072b2", label="evaluation mode")
    axes.set_ylim(-0.05, 1.25)
    axes.legend(loc="upper center")
    figures = [first]
    for name in CASES:
        figure, axes = panel(name, "step", "validation accuracy [%]", xscale="log", ylim=(0, 102))
        r = results[name]
        curve(axes, r["step"], 100 * np.asarray(r["running"], float), "batch", label="moving averages")
        curve(axes, r["step"], 100 * np.asarray(r["recalibrated"], float), "batch", color=INK, marker="d",
              linestyle=":", label="recalibrated")  # fmt: skip
        axes.legend(loc="lower right")
        figures.append(figure)
    return figures
