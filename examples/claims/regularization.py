"""Claim 8: a regularizing effect, and whether the noise of the batch's statistics is what has it."""

from claims.claim import MARGIN, NOT_SHOWN, PARTLY, SUPPORTED, Finding, Results, Setting, difference, interval
from claims.drawing import COLOURS, differences, panel
from claims.network import Network
from claims.training import Plan
from claims.tuning import chosen, tuned

TITLE = "Regularization"
SENTENCE = "It can improve accuracy by a regularizing effect."
IMAGES = 160
STEPS = 300
CASES = {
    # All take the gradient of all training images at once: only the noise of the statistics differs.
    "none": Network(norm="none", depth=4),
    "whole": Network(depth=4),
    "chunks of 40": Network(depth=4, virtual_batch_size=40),
    "chunks of 8": Network(depth=4, virtual_batch_size=8),
    "chunks of 4": Network(depth=4, virtual_batch_size=4),
}
NOISIEST = "chunks of 8"
SUPPORT = "with few images, statistics of random chunks of 8 give a higher test accuracy than those of all images"
AGAINST = f"both are the same to {100 * MARGIN:g} point, or the chunks are worse"
LIMITS = (
    f"A dense network, {IMAGES} training images and their gradient all at once, so that nothing but the statistics is "
    "noisy. With small batches the gradient is noisy too, and with many images there is less to regularize."
)
LOOK = "Is 'chunks of 8' right of the grey band? Then the noise helps. Is 'no norm' left of it? Then the norm does too."


def parts(setting: Setting):
    available = int(0.6 * len(setting.images.y)) // 40 * 40
    images = min(IMAGES, max(available, 8))
    plan = Plan(setting.steps(STEPS), images, train_images=images, evaluations=5)

    def measured(network):
        def measure():
            size = network.virtual_batch_size
            if size and images % size:
                raise ValueError(f"{images} training images are no multiple of chunks of {size}")
            return tuned(network, plan, setting) | {"images": images}

        return measure

    return {name: measured(network) for name, network in CASES.items()}


def _over_whole(results: Results, name: str):
    return difference(results[name]["test"], results["whole"]["test"])


def finding(results: Results) -> Finding:
    over = {name: _over_whole(results, name) for name in results if name != "whole"}
    noise, none = over[NOISIEST].word(), over["none"].word()
    if noise == "higher":
        verdict = SUPPORTED
        because = "the noise of the statistics is what helps" + (
            "; without it, the norm is no better than none" if none in ("same", "unclear", "higher") else
            "; but the norm without noise helps too"
        )  # fmt: skip
    elif none == "lower":
        verdict, because = PARTLY, "it does better than no norm, but not through the noise of its statistics"
    elif noise == "same":
        verdict, because = NOT_SHOWN, "noisy statistics make no difference"
    else:
        verdict, because = NOT_SHOWN, "the difference is within the noise of splits and seeds"
    tests = {name: interval(r["test"]) for name, r in results.items()}
    return Finding(
        f"test accuracy after training on {results['none']['images']} images, the gradient of all at once, statistics "
        f"of all or of random chunks (rates: {chosen(results, results)})",
        "; ".join(f"{name.replace('none', 'no norm')} {tests[name].percent()}" for name in results)
        + f"; {NOISIEST} less whole {over[NOISIEST].points()}, no norm less whole {over['none'].points()}",
        verdict,
        because,
        {
            "chunks - whole": over[NOISIEST].points(),
            "none - whole": over["none"].points(),
            "whole": tests["whole"].percent(),
            "chunks": tests[NOISIEST].percent(),
            "none": tests["none"].percent(),
        },
    )


def seen(results: Results) -> str:
    n = finding(results).numbers
    return f"Less the statistics of all images: chunks of 8 {n['chunks - whole']}, no norm {n['none - whole']}"


def draw(results: Results):
    names = [name for name in results if name != "whole"]
    first, axes = panel("test accuracy, less statistics of all images", "points", "")
    colours = [COLOURS["none"] if name == "none" else COLOURS["batch"] for name in names]
    labels = [name.replace("none", "no norm") for name in names]
    differences(axes, labels, [_over_whole(results, name) for name in names], MARGIN, colours)
    second, axes = panel("test loss less training loss", "", "")
    gaps = [interval(r["gap"]) for r in results.values()]
    axes.bar(
        range(len(results)), [v.mean for v in gaps], yerr=[v.half for v in gaps],
        color=[COLOURS["none"] if name == "none" else COLOURS["batch"] for name in results],
        error_kw={"linewidth": 1, "ecolor": "#1b1b1f"},
    )  # fmt: skip
    axes.set_xticks(range(len(results)), [n.replace("none", "no\nnorm").replace(" of ", "\nof ") for n in results])
    return [first, second]
