"""Measures jaxbn against the batch norms of Flax, Haiku, Equinox, Keras and PyTorch, on this device or for another.

    python examples/benchmark.py                        # times, memory traffic and accuracy on the device that is here
    python examples/benchmark.py --compile-for h100     # memory traffic on an H100 that is not here; no times
    python examples/benchmark.py --only layers --shapes dense-tall --repeats 50

Batch norm does almost no arithmetic: its time goes into reading and writing the activation. So beside the time, which
is noisy, there is the traffic of the compiled program, in bytes per element of the activation, which is exact.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE = "flax.linen"
"""whose time is 1"""
PARTS = ("layers", "steps", "accuracy", "collectives")
Row = dict[str, Any]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    from bench.workloads import DTYPES, SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # fmt: off
    add("--compile-for", choices=("h100", "tpu"), metavar="DEVICE",
        help="compile for an 'h100' or a 'tpu' and count, instead of measuring the device that is here")
    add("--only", choices=PARTS, nargs="+", default=PARTS, metavar="PART",
        help="layers: one alone; steps: whole training steps; accuracy: of the variance; collectives: of synchronized "
        "batch norm, on eight simulated devices (default: all)")
    add("--peers", nargs="+", metavar="NAME",
        help="jaxbn, flax.linen, flax.nnx, haiku, equinox, keras, torch (default: all that are installed)")
    add("--shapes", choices=SHAPES, nargs="+", default=tuple(SHAPES), metavar="NAME",
        help=f"of the layers: {', '.join(SHAPES)} (default: all)")
    add("--dtypes", choices=DTYPES, nargs="+", default=DTYPES, metavar="NAME", help="float32, bfloat16 (default: both)")
    add("--fused", choices=("none", "relu", "residual"), nargs="+", default=("none", "relu", "residual"),
        metavar="NAME", help="what follows the layer: none, relu, residual and relu (default: all)")
    add("--repeats", type=int, default=15, metavar="N", help="rounds of each timing (default %(default)s)")
    add("--output", type=Path, default=Path("runs/benchmark"), metavar="FOLDER",
        help="for benchmark.json, benchmark.md and benchmark.png (default %(default)s)")
    # fmt: on
    args = parser.parse_args(arguments)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    args.fused = ["" if f == "none" else f for f in args.fused]
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.compile_for:
        os.environ["JAX_PLATFORMS"] = "cpu"  # the device is not looked for
    from bench import report

    try:
        args.output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        about, measured = measure_all(args)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    tables = tabulate(measured)
    for title, rows in tables.items():
        report.show(title, rows)
    report.write(args.output, about, measured, tables)
    if "layers" in measured:
        quantity, limit = ("both [B/element]", "limit") if args.compile_for else (f"time / that of {BASE}", None)
        rows = [row | ({quantity: row["time ratio"]} if "time ratio" in row else {}) for row in measured["layers"]]
        report.figure(args.output, f"one layer in training, {about['device']}", rows, quantity, limit)


def tabulate(measured: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The tables that are printed, by title."""
    from bench.report import by_peer, geometric_means

    tables = {}
    if rows := measured.get("layers"):
        tables["one layer, memory traffic, forward + backward, bytes per element"] = by_peer(
            rows, lambda r: f"{r['forward [B/element]']:.3g} + {r['backward [B/element]']:.3g}", "limit"
        )
        tables["one layer, kernels; bytes per element kept for the backward pass, x and parameters aside"] = by_peer(
            rows, lambda r: f"{r['kernels']}; {r['kept [B/element]']:.3g}"
        )
    if rows := measured.get("steps"):
        tables["whole training step, memory traffic outside matrix products, bytes per element and layer"] = by_peer(
            rows, lambda r: f"{r['outside products [B/element]']:.3g}"
        )
        tables["the same, matrix products included"] = by_peer(rows, lambda r: f"{r['all [B/element]']:.3g}")
        tables["whole training step, temporary memory, in activations"] = by_peer(
            rows, lambda r: f"{r['memory [activations]']:.3g}"
        )
    for kind, what in (("layers", "one layer, forward and backward"), ("steps", "whole training step")):
        if any("time ratio" in row for row in measured.get(kind, [])):
            tables[f"{what}, time as a multiple of {BASE}'s: median of the rounds (quartiles)"] = by_peer(
                measured[kind],
                lambda r: f"{r['time ratio']:.2f} ({r['first quartile']:.2f} to {r['third quartile']:.2f})",
            )
            if kind == "layers":
                tables["the same, geometric mean over the shapes"] = geometric_means(measured[kind])
    if "accuracy" in measured:
        tables["relative error of the variance, float32, first step"] = measured["accuracy"]
    if "collectives" in measured:
        tables["synchronized: collectives of a layer, forward and backward, and the largest error of its output"] = (
            measured["collectives"]
        )
    return tables


def measure_all(args: argparse.Namespace) -> tuple[Row, dict[str, list[Row]]]:
    """What it was measured on, and the rows of numbers of each part."""
    import jax
    from tqdm import tqdm

    from bench import collectives, measure, peers, timing
    from bench.networks import NETWORKS
    from bench.workloads import workloads

    known = [*peers.PEERS, "torch"]
    unknown = [name for name in args.peers or [] if name not in known]
    if unknown:
        raise ValueError(f"--peers must be of {known}, got {unknown}")
    wanted = args.peers or known
    versions = peers.installed([name for name in wanted if name in peers.PEERS])
    names, device = list(versions), args.compile_for or "here"
    torch = timing.Torch.start() if "torch" in wanted and device == "here" else None
    missing = [name for name in args.peers or [] if name not in versions and not (name == "torch" and torch)]
    if missing:
        raise ValueError(f"--peers names {missing}, which are not installed, or not for this device")
    here = f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} CPU cores"
    about = {
        "device": {"h100": "compiled for an H100", "tpu": "compiled for a TPU v5e", "here": here}[device],
        "command": " ".join(["python examples/benchmark.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "jax": jax.__version__,
        **versions,
        **({"torch": torch.version} if torch else {}),
    }

    def times(timers: dict[str, Callable[[], float]]) -> dict[str, dict[str, float]]:
        if not timers:
            return {}
        return timing.compare(list(timing.rounds(timers, args.repeats)), BASE if BASE in timers else next(iter(timers)))

    layers = workloads(args.shapes, args.dtypes, args.fused) if "layers" in args.only else []
    steps = [(n, d) for n in NETWORKS for d in args.dtypes] if "steps" in args.only else []
    offsets = (0, 10, 100, 1000) if "accuracy" in args.only and device == "here" else ()
    of_steps = [name for name in names if name != "equinox"]  # which wants channels first
    found: dict[str, list[Row]] = {"layers": [], "steps": [], "accuracy": [], "collectives": []}
    with tqdm(total=len(layers) + len(steps) + len(offsets) + ("collectives" in args.only), unit="workload") as bar:
        for w in layers:
            bar.set_description(w.label)
            timers = {} if device != "here" else {n: timing.timer(measure.timed_layer(n, w)) for n in names}
            timers |= {"torch": torch.layer(w)} if torch else {}
            seconds = times(timers)
            for name in [*names, *(["torch"] if torch else [])]:
                row = {"workload": w.label, "peer": name} | seconds.get(name, {})
                found["layers"].append(row | (measure.layer_traffic(device, name, w) if name != "torch" else {}))
            bar.update()
        for network, dtype in steps:
            bar.set_description(f"{network}, {dtype}")
            timers = {n: timing.timer(measure.timed_step(n, network, dtype)) for n in of_steps if device == "here"}
            seconds = times(timers)
            for name in of_steps:
                row = {"workload": f"{network}, {dtype}", "peer": name} | seconds.get(name, {})
                found["steps"].append(row | measure.step_traffic(device, name, network, dtype))
            bar.update()
        for offset in offsets:
            bar.set_description(f"accuracy at {offset} standard deviations")
            errors = {name: measure.variance_error(name, offset) for name in names}
            found["accuracy"].append({"mean / standard deviation": offset} | errors)
            bar.update()
        if "collectives" in args.only:
            bar.set_description("collectives")
            found["collectives"] = collectives.rows()
            bar.update()
    if torch:
        torch.close()
    return about, {kind: rows for kind, rows in found.items() if rows}


if __name__ == "__main__":
    main()
