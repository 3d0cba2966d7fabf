"""Claim 4: internal covariate shift; the experiment that separates it from training well; and a smoother loss."""

import jax
import jax.numpy as jnp
import numpy as np

from claims import network as net
from claims.claim import (
    MARGIN,
    NOT_SHOWN,
    NOT_THE_REASON,
    PARTLY,
    SUPPORTED,
    Finding,
    Results,
    Setting,
    difference,
    interval,
    ratio,
)
from claims.drawing import COLOURS, LABELS, curve, differences, panel
from claims.network import Network
from claims.training import Plan, Runs, loss_of, train
from claims.tuning import arm, chosen, measure, tune

TITLE = "Internal covariate shift"
SENTENCE = "It reduces internal covariate shift: the distribution of each layer's inputs moves less in training."
SUPPORT = (
    "inputs move less with batch norm, and where noise makes them move more again, training gets worse "
    "(Ioffe & Szegedy 2015)"
)
AGAINST = (
    "with noise that moves them more than without any norm, training is as good as with batch norm "
    "(Santurkar et al. 2018, section 2.2)"
)
LIMITS = (
    "A dense network of six layers. Shift is measured as the distance that means move; that a smoother loss is why it "
    "trains better is consistent with the last panels, and not proved by them."
)
LOOK = (
    "Whose inputs move most? And is the noisy network left of the grey band, in which there is no difference, or right "
    "of it?"
)
ARMS = {"batch": Network(), "none": Network(norm="none"), "noise": Network(noise=True)}
STEPS, EVERY = 600, 6
LAYER = 4
"""counted from 0: whose inputs the page shows"""
MOVIE_RATES = (0.01, 0.03, 0.1, 0.3)
EDGES = np.linspace(-6, 6, 49)
LEVELS = (1.0, 0.5, 0.25)
"""losses at which the arms are compared with each other"""
REACH = tuple(0.03 * k for k in (0.5, 1.0, 2.0, 4.0))
"""how far along the gradient the loss is looked at, the same for all (Santurkar et al. 2018, figure 4)"""


def inputs_of(network: Network, look):
    """What each activation is given on the validation images, in evaluation mode, with the noise of the step."""
    x = look.seen.validation_x
    args = network, look.params, look.batch_stats, x
    return net.apply(*args, train=False, noise_key=look.noise_key).pre_activations


def shape_of_loss(network: Network, look):
    """Mean and deviation of the inputs, and how loss and gradient vary along the gradient."""
    before = inputs_of(network, look)
    x, y = look.seen.train_x[:256], look.seen.train_y[:256]
    value = jax.value_and_grad(
        lambda params: loss_of(network, params, look.batch_stats, x, y, noise_key=look.noise_key)[0]
    )
    loss, grads = value(look.params)

    def ahead(reach):
        moved = jax.tree.map(lambda p, g: p - reach * g, look.params, grads)
        loss_there, grads_there = value(moved)
        return loss_there, _norm(jax.tree.map(jnp.subtract, grads_there, grads))

    losses, changes = jax.lax.map(ahead, jnp.asarray(REACH))
    losses = jnp.append(losses, loss)
    return {
        "loss": loss,
        "mean": jnp.stack([z.mean(0) for z in before]),
        "deviation": jnp.stack([z.std(0) for z in before]),
        "loss range": losses.max() - losses.min(),
        "gradient change": changes.max() / _norm(grads),
    }


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def histogram(network: Network, look):
    """The distribution of the first unit's inputs in one layer; the first and last bins hold the rest."""
    z = inputs_of(network, look)[LAYER][:, 0]
    bins = jnp.clip(jnp.searchsorted(jnp.asarray(EDGES), z, side="right") - 1, 0, len(EDGES) - 2)
    return {
        "counts": jnp.zeros(len(EDGES) - 1, jnp.int32).at[bins].add(1),
        "mean": z.mean(),
        "deviation": z.std(),
    }


def parts(setting: Setting):
    steps = setting.steps(STEPS)

    def measured(network):
        def run():
            choice = tune(network, Plan(steps, evaluations=5), setting)
            plan = Plan(steps, evaluations=steps // EVERY)
            out = measure(network, plan, setting, choice["rate"], shape_of_loss)
            found = {k: np.asarray(v) for k, v in out.probed.items()}
            shift = np.abs(np.diff(found["mean"], axis=1)) / np.maximum(found["deviation"][:, :-1], 1e-6)
            kept = arm(out, plan)
            few = {k: np.asarray(kept[k])[..., 9::10] for k in ("step", "curve")}
            return choice | kept | few | {
                "looks": np.arange(1, plan.evaluations + 1) * EVERY,
                "shift": np.median(shift, (2, 3)),
                "loss": found["loss"],
                "loss range": found["loss range"],
                "gradient change": found["gradient change"],
            }  # fmt: skip

        return run

    def movie():
        """One run of each arm and rate, recorded for the page."""
        looks = 50 if not setting.fast else 10
        plan = Plan(looks * EVERY, evaluations=looks, decay=False)
        found = {}
        for name, network in ARMS.items():
            out = train(network, plan, setting.images, Runs.grid([0], MOVIE_RATES), histogram)
            found[name] = {k: np.asarray(v) for k, v in out.probed.items()} | {"accuracy": out.validation_accuracy}
        return {"rates": MOVIE_RATES, "edges": EDGES, "step": np.arange(1, looks + 1) * EVERY, "layer": LAYER} | found

    return {name: measured(network) for name, network in ARMS.items()} | {"movie": movie}


def _moved(results: Results, name: str) -> np.ndarray:
    """[seeds]: the median over training."""
    return np.median(np.asarray(results[name]["shift"], float), 1)


def at_equal_loss(results: Results, quantity: str):
    """How many times larger without batch norm, where the losses are the same: geometric mean over the levels."""
    logs = {}
    for name in ("batch", "none"):
        loss, value = (np.asarray(results[name][k], float) for k in ("loss", quantity))
        reached = loss[..., None] <= np.array(LEVELS)
        first = reached.argmax(1)
        there = np.take_along_axis(np.log(value), first, 1)
        logs[name] = np.where(reached.any(1), there, np.nan)
    apart = logs["none"] - logs["batch"]
    known = np.isfinite(apart).any(1)
    return ratio(np.exp(np.nanmean(apart[known], 1)), np.ones(known.sum()))


def finding(results: Results) -> Finding:
    moved = {name: interval(_moved(results, name)) for name in ARMS}
    less, more = (ratio(_moved(results, a), _moved(results, b)) for a, b in (("none", "batch"), ("noise", "none")))
    tests = {name: results[name]["test"] for name in ARMS}
    noisy, plain = difference(tests["noise"], tests["none"]), difference(tests["noise"], tests["batch"])
    smoother, steadier = (at_equal_loss(results, k) for k in ("loss range", "gradient change"))
    if more.low > 1 and noisy.word() in ("same", "higher"):
        verdict = NOT_THE_REASON
        because = f"with noise the inputs move {more.middle:.0f} times as far as without any norm, and it trains " + (
            "as well" if noisy.word() == "same" else "better than without"
        )
    elif less.low > 1 and noisy.word() == "lower":
        verdict, because = SUPPORTED, "inputs move less with it, and noise that moves them costs accuracy"
    elif less.low > 1:
        verdict, because = PARTLY, "inputs move less with it; whether that matters is not shown"
    else:
        verdict, because = NOT_SHOWN, "inputs do not move less with it"
    return Finding(
        f"how far the means of all layers' inputs move in {EVERY} steps, in standard deviations, in evaluation mode, "
        f"at each one's best rate ({chosen(results, ARMS)}); test accuracy; range of the loss along the gradient",
        f"inputs move {moved['batch'].number(3)} with batch norm, {moved['none'].number(3)} without, "
        f"{moved['noise'].number(3)} with batch norm and noise; test accuracy {interval(tests['batch']).percent()}, "
        f"{interval(tests['none']).percent()}, {interval(tests['noise']).percent()}; at equal loss, without batch norm "
        f"the loss varies {smoother} and the gradient {steadier} as much",
        verdict,
        because,
        {
            "moved with": moved["batch"].number(3),
            "moved without": moved["none"].number(3),
            "moved with noise": moved["noise"].number(3),
            "noise / none": str(more),
            "noise - none": noisy.points(),
            "noise - batch": plain.points(),
            "smoother": str(smoother),
            "steadier": str(steadier),
            "test with": interval(tests["batch"]).percent(),
            "test without": interval(tests["none"]).percent(),
            "test with noise": interval(tests["noise"]).percent(),
        },
    )


def seen(results: Results) -> str:
    n = finding(results).numbers
    return (
        f"Movement of the inputs over training: {n['moved with']} with, {n['moved without']} without, "
        f"{n['moved with noise']} with noise. Test accuracy with noise less without any norm: {n['noise - none']}"
    )


def draw(results: Results):
    moving, axes = panel("how far the inputs move", "step", f"deviations in {EVERY} steps", yscale="log")
    for name in ARMS:
        r = results[name]
        curve(axes, r["looks"][1:], np.asarray(r["shift"], float), name, marker="")
    axes.legend()
    between, axes = panel("test accuracy, less without", "points", "")
    names = ("batch", "noise")
    values = [difference(results[n]["test"], results["none"]["test"]) for n in names]
    differences(axes, ["batch\nnorm", "and\nnoise"], values, MARGIN, [COLOURS[n] for n in names])
    figures = [moving, between]
    for key, label in (("loss range", "range of the loss"), ("gradient change", "change of the gradient")):
        figure, axes = panel(f"{label} along the gradient", "training loss (falls to the right)", "")
        for name in ("batch", "none"):
            loss, value = (np.asarray(results[name][k], float) for k in ("loss", key))
            axes.plot(loss.ravel(), value.ravel(), ".", color=COLOURS[name], alpha=0.25, markersize=3)
            axes.plot([], [], ".", color=COLOURS[name], label=LABELS[name])
        axes.set(xscale="log", yscale="log", xlim=(3, 0.02))
        for level in LEVELS:
            axes.axvline(level, color="#1b1b1f", linewidth=0.6, alpha=0.5)
        axes.legend()
        figures.append(figure)
    return figures
