"""The whole life of a batch-norm model: from PyTorch, adapted to new data, folded, exported.

    python examples/fine_tune.py                  # reads the network from digits_torch.safetensors, beside it
    python examples/fine_tune.py --train-torch    # trains it first, in PyTorch
    python examples/fine_tune.py --angle 90       # digits that are rotated further

1. Imports a network that PyTorch trained on handwritten digits, and compares its logits with those of PyTorch.
2. Adapts it to rotated digits, of which only a few have labels, in three ways:
   frozen   batch norms stay as imported (scale, bias, statistics) and evaluate; the other weights are trained
   adapted  nothing is trained: the running statistics are recalibrated on images without labels (AdaBN)
   trained  everything is trained, with the statistics of the batch; the running ones follow as PyTorch's would
3. Compares them in a figure.
4. Folds the batch norms of the trained network into its convolutions, and exports it with `jax.export`.
5. Loads the exported file in a fresh process, and compares the predictions.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import export
from scipy import ndimage
from tqdm import tqdm

import figures
import jaxbn
import jaxbn.linen
import torch_digits
from data import Dataset, load_digits
from fine_tune_figure import comparison
from jaxbn import interop

SHIPPED = Path(__file__).with_name("digits_torch.safetensors")


class Net(nn.Module):
    """[n, 8, 8, 1] images -> [n, 10] logits, with the names of the PyTorch network."""

    @nn.compact
    def __call__(self, x, train: bool):
        def norm(name):
            return jaxbn.linen.BatchNorm(not train, activation="relu", name=name, **interop.PYTORCH)

        x = norm("bn1")(nn.Conv(16, (3, 3), padding=1, use_bias=False, name="conv1")(x))
        x = norm("bn2")(nn.Conv(32, (3, 3), 2, padding=1, use_bias=False, name="conv2")(x))
        x = norm("bn3")(nn.Conv(32, (3, 3), padding=1, name="conv3")(x))
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


MODEL = Net()


@jax.jit
def evaluate(variables, x):
    """Logits [n, 10] with the running statistics."""
    return MODEL.apply(variables, x, train=False)


def accuracy(variables, x: np.ndarray, y: np.ndarray) -> float:
    """Fraction of images [n, 8, 8, 1] whose label [n] has the largest logit."""
    return float((evaluate(variables, x).argmax(-1) == y).mean())


def import_network(path: Path, data: Dataset):
    """The variables of a PyTorch network, checked to give the same logits as in PyTorch.

    Raises:
      ValueError: the file is that of a different network, or its logits differ.
    """
    arrays = interop.load(path)
    expected = arrays.pop("test_logits", None)
    if expected is None or expected.shape != (len(data.test_x), 10):
        raise ValueError(f"{path} must hold the logits of PyTorch, 'test_logits' [{len(data.test_x)}, 10]")
    like = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), data.test_x[:1], train=False))
    # PyTorch flattens the last image channels first.
    variables = interop.from_torch(arrays, like, layouts={"head": interop.AfterFlatten(4, 4, 32)})
    logits = np.asarray(evaluate(variables, data.test_x))
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    same = (logits.argmax(-1) == expected.argmax(-1)).all()
    if not same or difference > 1e-3:
        raise ValueError(
            f"the imported network predicts something else than PyTorch: logits differ by {difference:.1g}"
        )
    print(f"imported {path.name}: the predictions of PyTorch, logits to {difference:.1e}")
    return variables


def rotated(data: Dataset, angle: float) -> Dataset:
    """The images rotated counter-clockwise by `angle` degrees."""

    def turn(x):
        return ndimage.rotate(x, angle, axes=(2, 1), reshape=False, order=1, mode="nearest")

    return data._replace(train_x=turn(data.train_x), test_x=turn(data.test_x))


def adapt(variables, x: np.ndarray):
    """The variables with running statistics of the new images, which need no labels; nothing else changes."""

    def forward(variables, batch):
        return MODEL.apply(variables, batch, train=True, mutable=["batch_moments"])

    return jaxbn.recalibrate(forward, variables, np.array_split(x, 3), unbiased=True)


def train(variables, data: Dataset, args: argparse.Namespace, *, frozen: bool, name: str):
    """Variables after training on the first `args.labels` images, and the test accuracy before and after each epoch."""
    labels = jax.tree.map(lambda is_norm: "kept" if is_norm and frozen else "trained", jaxbn.batch_norm_mask(variables))
    optimizer = optax.multi_transform({"trained": optax.adam(args.learning_rate), "kept": optax.set_to_zero()}, labels)

    @jax.jit
    def step(variables, opt_state, x, y):
        def loss_fn(params):
            logits, updates = MODEL.apply({**variables, "params": params}, x, train=not frozen, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

        grads, updates = jax.grad(loss_fn, has_aux=True)(variables["params"])
        changes, opt_state = optimizer.update(grads, opt_state, variables["params"])
        return {**variables, **updates, "params": optax.apply_updates(variables["params"], changes)}, opt_state

    opt_state, rng = optimizer.init(variables["params"]), np.random.default_rng(args.seed)
    curve = [accuracy(variables, data.test_x, data.test_y)]
    for _ in (bar := tqdm(range(args.epochs), desc=name, unit="epoch")):
        for batch in np.array_split(rng.permutation(args.labels), max(1, args.labels // 50)):
            variables, opt_state = step(variables, opt_state, data.train_x[batch], data.train_y[batch])
        curve.append(accuracy(variables, data.test_x, data.test_y))
        bar.set_postfix(test=f"{curve[-1]:.1%}")
    return variables, curve


def export_folded(variables, x, path: Path) -> None:
    """Folds the batch norms into the convolutions, and writes the network as a function of any number of images."""
    folded = jaxbn.fold(MODEL, variables, x[:2], train=False)
    before, after = np.asarray(evaluate(variables, x)), np.asarray(evaluate(folded, x))
    print(f"folded: logits change by {np.abs(after - before).max() / np.abs(before).max():.1e} of the largest")
    shape = jax.ShapeDtypeStruct((*export.symbolic_shape("n"), 8, 8, 1), jnp.float32)
    program = export.export(jax.jit(lambda x: evaluate(folded, x)), platforms=["cpu", "cuda", "tpu"])(shape)
    path.write_bytes(program.serialize())
    print(f"exported: {path}, {path.stat().st_size / 1e3:.0f} kB")


def predict(path: Path, x: np.ndarray) -> str:
    """The digits that the exported network sees."""
    program = export.deserialize(bytearray(path.read_bytes()))
    return "".join(map(str, np.asarray(program.call(x)).argmax(-1)))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    add = parser.add_argument_group("network").add_argument
    add("--weights", type=Path, default=SHIPPED, metavar="FILE",
        help="safetensors file of the PyTorch network (default: the one beside this script)")
    add("--train-torch", action="store_true",
        help="train that network in PyTorch first, and write it to the output folder")
    add = parser.add_argument_group("fine-tuning").add_argument
    add("--angle", type=float, default=20.0, metavar="DEGREES",
        help="by which the new digits are rotated, counter-clockwise (default %(default)g)")
    add("--labels", type=int, default=100, metavar="N",
        help="rotated training images that have a label; `adapted` uses all images and no label (default %(default)s)")
    add("--epochs", type=int, default=40, metavar="N", help="passes over those (default %(default)s)")
    add("--learning-rate", type=float, default=1e-3, metavar="R", help="of Adam (default %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the order of the images (default %(default)s)")
    add("--fast", action="store_true", help="two epochs of everything, to see that it runs")
    add = parser.add_argument_group("files").add_argument
    add("--output", type=Path, default=Path("runs/fine_tune"), metavar="FOLDER",
        help="where figure and exported network go (default %(default)s)")
    add("--predict", type=Path, metavar="FILE",
        help="do nothing of the above: load an exported network, print what it sees in the rotated test images")
    # fmt: on
    args = parser.parse_args(arguments)
    if not 1 <= args.labels <= 1000:
        parser.error(f"argument --labels: must be in [1, 1000], got {args.labels}")
    if args.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, got {args.epochs}")
    args.epochs = 2 if args.fast else args.epochs
    return args


def run(args: argparse.Namespace) -> None:
    """The whole life, from import to export."""
    upright = load_digits()
    data = rotated(upright, args.angle)
    if args.predict:
        print(predict(args.predict, data.test_x))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    if args.train_torch:
        args.weights = args.output / "digits_torch.safetensors"
        torch_digits.train(upright, args.weights, epochs=2 if args.fast else 20, seed=args.seed)
    imported = import_network(args.weights, upright)
    print(f"upright test images: {accuracy(imported, upright.test_x, upright.test_y):.1%}")
    networks = {"imported": imported, "adapted": adapt(imported, data.train_x)}
    curves = {name: [accuracy(v, data.test_x, data.test_y)] for name, v in networks.items()}
    for name in ("frozen", "trained"):
        networks[name], curves[name] = train(imported, data, args, frozen=name == "frozen", name=name)
    for name, curve in curves.items():
        print(f"rotated test images, {name:8}: {curve[-1]:.1%}")
    seen = {name: np.asarray(evaluate(v, data.test_x)).argmax(-1) for name, v in networks.items()}
    title = f"Digits rotated by {args.angle:g} degrees, {args.labels} of them with labels for frozen and trained"
    figures.save(comparison(curves, data, seen, title), args.output / "fine_tune.png")
    path = args.output / "network.jax"
    export_folded(networks["trained"], data.test_x, path)
    command = [sys.executable, __file__, "--predict", str(path), "--angle", str(args.angle)]
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if again != "".join(map(str, seen["trained"])):
        raise ValueError("the exported network predicts something else in a fresh process")
    print("a fresh process predicts the same with it")


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    try:
        run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
