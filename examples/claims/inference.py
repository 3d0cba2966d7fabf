"""Claim 3: at inference it uses moving averages accumulated in training, which makes predictions stable."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from claims import network as net
from claims.claim import Finding, Results, Setting, interval
from claims.network import Network
from claims.training import Plan, Runs, evaluate, train
from figures import BLUE, ORANGE

TITLE = "Moving averages at inference"
CLAIM = "At inference it uses the moving averages accumulated in training, which makes predictions stable."
NETWORK = Network()
RATE = 0.1
IMAGES, BATCHES, BATCH = 64, 50, 16
CASES = {
    # name: (momentum, batch size, learning rate)
    "momentum 0.9, batches of 64": (0.9, 64, RATE),
    "momentum 0.99, batches of 64": (0.99, 64, RATE),
    "momentum 0.9, batches of 4": (0.9, 4, RATE / 10),
    "momentum 0.5, batches of 4": (0.5, 4, RATE / 10),
}


def exact_statistics(network: Network, data, params, batch_stats):
    """The statistics of all training images, as `jaxbn.recalibrate` gives them; here they fit into one batch."""
    return net.apply(network, params, batch_stats, data.train_x, train=True, momentum=0.0).batch_stats


def exact_accuracy(network: Network, data, params, batch_stats):
    """Test accuracy after recalibration."""
    batch_stats = exact_statistics(network, data, params, batch_stats)
    return evaluate(network, params, batch_stats, data.test_x, data.test_y)[1]


def parts(setting: Setting):
    data = setting.data

    def predictions():
        """Of each of some test images: the probability of its class, alone and in random company, in both modes."""
        out = train(NETWORK, Plan(setting.steps(200)), data, Runs.grid(setting.seeds, [RATE]))
        images = min(IMAGES, len(data.test_x))
        rng = np.random.default_rng(0)
        test_x = jnp.asarray(data.test_x)
        company = rng.integers(0, len(data.test_x), (BATCHES, images, BATCH - 1))

        @jax.jit
        @functools.partial(jax.vmap, in_axes=(0, 0))
        def of_seed(params, batch_stats):
            def probabilities(x, train):
                logits = net.apply(NETWORK, params, batch_stats, x, train=train).logits
                return jax.nn.softmax(logits)

            def in_company(rows, image, train):
                x = jnp.concatenate([test_x[image][None], test_x[rows]])
                return probabilities(x, train)[0]

            each = jnp.arange(images)
            alone = probabilities(test_x[:images], False)
            mixed = {
                train: jax.vmap(jax.vmap(functools.partial(in_company, train=train)), (0, None))(company, each)
                for train in (False, True)
            }
            return alone, mixed[False], mixed[True]

        alone, evaluation, training = (np.asarray(v) for v in of_seed(out.params, out.batch_stats))
        true = data.test_y[:images]

        def of_class(p):
            return p[..., np.arange(images), true]

        return {
            "difference": np.abs(evaluation - alone[:, None]).max((1, 2, 3)),
            "spread": of_class(training).std(1),
            "flips": (training.argmax(-1) != training.argmax(-1)[:, :1]).any(1).mean(-1),
            "example": of_class(training)[0].T[np.argsort(of_class(training)[0].std(0))[-8:]],
            "example alone": of_class(alone)[0][np.argsort(of_class(training)[0].std(0))[-8:]],
        }

    def curves(momentum, batch_size, rate):
        def measure():
            runs = Runs.grid(setting.seeds, [rate])
            steps = setting.steps(400)
            plan = Plan(steps, min(batch_size, len(data.train_x)), evaluations=10, momentum=momentum)
            early = Plan(10, plan.batch_size, evaluations=10, momentum=momentum)
            found = [train(NETWORK, p, data, runs, exact_accuracy) for p in (early, plan)]
            every = steps // plan.evaluations
            step = [*range(1, 11), *range(every, steps + 1, every)]
            order = np.argsort(step)
            return {
                "step": np.array(step)[order],
                "running": np.concatenate([np.asarray(f.test_accuracy) for f in found], 1)[:, order],
                "recalibrated": np.concatenate([np.asarray(f.probed) for f in found], 1)[:, order],
            }

        return measure

    return {"predictions": predictions} | {name: curves(*case) for name, case in CASES.items()}


def finding(results: Results) -> Finding:
    p = results["predictions"]
    spread, flips = interval(np.mean(p["spread"], 1)), interval(p["flips"])
    lag = results["momentum 0.99, batches of 64"]
    step = lag["step"].index(10)
    early = [interval(np.asarray(lag[k])[:, step]) for k in ("running", "recalibrated")]
    noisy = results["momentum 0.5, batches of 4"]
    late = [interval(np.asarray(noisy[k])[:, -1]) for k in ("running", "recalibrated")]
    return Finding(
        f"one image in {BATCHES} different batches of {BATCH}: how its probability moves; test accuracy with moving "
        "averages and after recalibration",
        f"evaluation mode: moves by at most {np.max(p['difference']):.0e}; training mode: by {spread.number(3)} "
        f"(standard deviation), the class of {flips.percent()} of images flips; after 10 steps at momentum 0.99 "
        f"{early[0].percent()}, recalibrated {early[1].percent()}; batches of 4 at momentum 0.5 {late[0].percent()}, "
        f"recalibrated {late[1].percent()}",
        "holds; but averages that are too young or too noisy mislead, and recalibration repairs them"
        if flips.mean > 0 and np.max(p["difference"]) < 1e-4 and early[1].mean > early[0].mean
        else "holds in part",
    )


def draw(results: Results):
    figure, grid = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
    box, legend, cases = grid[0, 0], grid[1, 0], grid[:, 1:].ravel()
    p = results["predictions"]
    example = np.asarray(p["example"])
    places = np.arange(len(example))
    box.boxplot(
        list(example), positions=places, widths=0.6, flierprops={"markersize": 3}, medianprops={"color": "gray"}
    )
    box.plot(places, p["example alone"], "D", color=ORANGE)
    box.set(
        xlabel="test image: the eight that move most",
        ylabel="probability of its class",
        title="one image in 50 batches",
    )
    for ax, name in zip(cases, CASES, strict=True):
        r = results[name]
        for key, colour, style in (("running", ORANGE, "s--"), ("recalibrated", BLUE, "o-")):
            values = [interval(100 * v) for v in np.asarray(r[key]).T]
            mean, half = (np.array([getattr(v, k) for v in values]) for k in ("mean", "half"))
            ax.plot(r["step"], mean, style, color=colour, label=key, markersize=4)
            ax.fill_between(r["step"], mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        ax.set(xscale="log", xlabel="step", title=name, ylim=(0, 102), ylabel="test accuracy [%]")
    legend.set_axis_off()
    running, recalibrated = cases[0].get_lines()
    handles = {"evaluation mode: moving averages": running, "recalibrated on all training images": recalibrated}
    handles["training mode: box and whiskers"] = Line2D([], [], color="black", marker="s", mfc="white", linestyle="")
    legend.legend(handles.values(), handles, loc="center")
    return figure
