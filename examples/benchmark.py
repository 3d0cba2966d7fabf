"""Measures jaxbn against the batch norms of Flax, Haiku, Equinox, Keras and PyTorch, on this device or for another.

    python examples/benchmark.py                        # times, memory traffic and accuracy on the device that is here
    python examples/benchmark.py --compile-for h100     # memory traffic on an H100 that is not here; no times
    python examples/benchmark.py --only layers --shapes dense-tall --repeats 50
    python examples/benchmark.py --compile-for tpu --write examples/PERFORMANCE.md      # tables of that page

Batch norm does almost no arithmetic: its time goes into reading and writing the activation. So beside the time, which
is noisy, there is the traffic of the compiled program, in bytes per element of the activation, which is exact.
"""

import argparse
import functools
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = {
    "layers": "one alone",
    "odd": "the same at sizes that no block divides",
    "options": "of jaxbn, what they cost",
    "steps": "whole training steps",
    "memory": "of a step of 20 layers, with and without checkpoints",
    "devices": "collectives of a layer on eight devices",
    "compile": "the time before the first step",
    "accuracy": "of the variance",
    "collectives": "of synchronized batch norm, on eight simulated devices",
}
DEFAULT = {
    "here": ("layers", "steps", "accuracy", "collectives"),
    "h100": ("layers", "odd", "options", "steps", "memory", "devices", "compile"),
    "tpu": ("steps", "devices", "compile"),
}
"""Parts that are measured on a device, unless --only names others."""
Row = dict[str, Any]
Job = tuple[str, str, Callable[[], list[Row]]]
"""part, what the progress bar says, the work"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    from bench.workloads import DTYPES, SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    networks = ("bottleneck-stack", "conv-stack", "dense-stack", "resnet50")
    # fmt: off
    add("--compile-for", choices=("h100", "tpu"), metavar="DEVICE", dest="device", default="here",
        help="compile for an 'h100' or a 'tpu' and count, instead of measuring the device that is here")
    add("--only", choices=PARTS, nargs="+", metavar="PART",
        help="; ".join(f"{part}: {what}" for part, what in PARTS.items()) + " (default: " +
        "; ".join(f"{device}: {' '.join(parts)}" for device, parts in DEFAULT.items()) + ")")
    add("--peers", nargs="+", metavar="NAME",
        help="jaxbn, flax.linen, flax.nnx, haiku, equinox, keras, torch (default: all that are installed)")
    add("--shapes", choices=SHAPES, nargs="+", default=tuple(SHAPES), metavar="NAME",
        help=f"of the layers: {', '.join(SHAPES)} (default: all)")
    add("--networks", choices=networks, nargs="+", metavar="NAME",
        help=f"of the steps: {', '.join(networks)} (default: all; on a CPU without resnet50, which takes minutes)")
    add("--dtypes", choices=DTYPES, nargs="+", default=DTYPES, metavar="NAME", help="float32, bfloat16 (default: both)")
    add("--fused", choices=("none", "relu", "residual"), nargs="+", default=("none", "relu", "residual"),
        metavar="NAME", help="what follows the layer: none, relu, residual and relu (default: all)")
    add("--repeats", type=int, default=15, metavar="N", help="rounds of each timing (default %(default)s)")
    add("--read", type=Path, metavar="FILE", help="show the benchmark.json of an earlier run; nothing is measured")
    add("--write", type=Path, metavar="PAGE",
        help="put the tables into their places in this page: between <!-- device: title --> and <!-- end -->")
    add("--output", type=Path, default=Path("runs/benchmark"), metavar="FOLDER",
        help="for benchmark.json, benchmark.md and benchmark.png (default %(default)s)")
    # fmt: on
    args = parser.parse_args(arguments)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    args.only = args.only or DEFAULT[args.device]
    if args.device != "here" and (here := {"accuracy", "collectives"}.intersection(args.only)):
        parser.error(f"{', '.join(sorted(here))}: only on the device that is here, without --compile-for")
    args.fused = ["" if f == "none" else f for f in args.fused]
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.device != "here":
        os.environ["JAX_PLATFORMS"] = "cpu"  # the device is not looked for
    from bench import report, tables

    try:
        args.output.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        if args.write:
            args.write.read_text()
        about, measured = report.read(args.read) if args.read else measure_all(args)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    shown = tables.tabulate(measured)
    for title, rows in shown.items():
        report.show(title, rows)
    if args.write:
        page = args.write.read_text()
        args.write.write_text(tables.filled(page, tables.place_of(about), shown, tables.note(about)))
    if args.read:
        return
    report.write(args.output, about, measured, shown)
    if "layers" in measured:
        here = args.device == "here"
        quantity, limit = (f"time / that of {tables.BASE}", None) if here else ("both [B/element]", "limit")
        rows = [row | ({quantity: row["time ratio"]} if "time ratio" in row else {}) for row in measured["layers"]]
        report.figure(args.output, f"one layer in training, {about['device']}", rows, quantity, limit)


def measure_all(args: argparse.Namespace) -> tuple[Row, dict[str, list[Row]]]:
    """What it was measured on, and the rows of numbers of each part."""
    import jax
    from tqdm import tqdm

    import jaxbn
    from bench import collectives, compile_cost, measure, peers, tables, timing
    from bench.networks import NETWORKS
    from bench.process import answer_of
    from bench.workloads import ODD_SHAPES, OPTION_SHAPES, Workload, workloads

    known = [*peers.PEERS, "torch"]
    unknown = [name for name in args.peers or [] if name not in known]
    if unknown:
        raise ValueError(f"--peers must be of {known}, got {unknown}")
    wanted = args.peers or known
    versions = peers.installed([name for name in wanted if name in peers.PEERS])
    names, device = list(versions), args.device
    of_steps = [name for name in names if name != "equinox"]  # which wants channels first
    timed = device == "here"
    torch = timing.Torch.start() if "torch" in wanted and timed and "layers" in args.only else None
    missing = [name for name in args.peers or [] if name not in versions and not (name == "torch" and torch)]
    if missing:
        raise ValueError(f"--peers names {missing}, which are not installed, or not for this device")
    here = f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} CPU cores"
    allocator = os.environ.get("GLIBC_TUNABLES")
    about = {
        "device": tables.ABSENT.get(device, here),
        **({"GLIBC_TUNABLES": allocator} if timed and allocator else {}),
        "command": " ".join(["python examples/benchmark.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "jax": jax.__version__,
        **versions,
        **({"torch": torch.version} if torch else {}),
    }
    networks = args.networks or list(NETWORKS)
    if not args.networks and timed and jax.default_backend() == "cpu":
        networks.remove("resnet50")
        if "steps" in args.only:
            print("without a whole ResNet-50, which takes minutes here: --networks resnet50")

    def times(timers: dict[str, Callable[[], float]]) -> dict[str, dict[str, float]]:
        if not timers:
            return {}
        base = tables.BASE if tables.BASE in timers else next(iter(timers))
        return timing.compare(list(timing.rounds(timers, args.repeats)), base)

    def layer(w: Workload) -> list[Row]:
        timers = {n: timing.timer(measure.timed_layer(n, w)) for n in names if timed}
        seconds = times(timers | ({"torch": torch.layer(w)} if torch else {}))
        rows = [{"peer": n} | seconds.get(n, {}) | measure.layer_traffic(device, n, w) for n in names]
        return rows + ([{"peer": "torch"} | seconds["torch"]] if torch else [])

    def odd(w: Workload) -> list[Row]:
        return [{"peer": n} | measure.layer_traffic(device, n, w) | measure.together(device, n, w) for n in names]

    def options(w: Workload) -> list[Row]:
        return [{"peer": name} | measure.together(device, name, w) for name in peers.OPTIONS]

    def step(network: str, dtype: str) -> list[Row]:
        timers = {n: timing.timer(measure.timed_step(n, network, dtype)) for n in of_steps if timed}
        seconds = times(timers)
        return [{"peer": n} | seconds.get(n, {}) | measure.step_traffic(device, n, network, dtype) for n in of_steps]

    def memory() -> list[Row]:
        rows = [{"peer": name} | measure.checkpoint_memory(device, name) for name in of_steps]
        saving = measure.checkpoint_memory(device, "jaxbn", policy=jaxbn.save_only_moments)
        return [*rows, {"peer": "jaxbn, save_only_moments"} | saving]

    def accuracy(offset: float) -> list[Row]:
        errors = {name: measure.variance_error(name, offset) for name in names}
        return [{"mean / standard deviation": offset} | errors]

    def of_layers(part: str, shapes, fused, work: Callable[[Workload], list[Row]]) -> list[Job]:
        return [(part, w.label, functools.partial(work, w)) for w in workloads(shapes, args.dtypes, fused)]

    jobs: list[Job] = [
        *of_layers("layers", args.shapes, args.fused, layer),
        *of_layers("odd", ODD_SHAPES, args.fused, odd),
        *of_layers("options", OPTION_SHAPES, ("relu",), options),
        *(("steps", f"{n}, {d}", functools.partial(step, n, d)) for n in networks for d in args.dtypes),
        ("memory", "20 layers of convolution, batch norm and ReLU, float32", memory),
        ("devices", "", lambda: answer_of("bench.splits", device, *names, eight_devices=True)),
        ("compile", "", lambda: compile_cost.rows(device, names, tables.BASE)),
        *(("accuracy", "", functools.partial(accuracy, offset)) for offset in (0, 10, 100, 1000)),
        ("collectives", "", collectives.rows),
    ]
    found: dict[str, list[Row]] = {}
    bar = tqdm([job for job in jobs if job[0] in args.only], unit="workload")
    for part, label, work in bar:
        bar.set_description(label or part)
        found.setdefault(part, []).extend(({"workload": label} if label else {}) | row for row in work())
    if torch:
        torch.close()
    return about, found


if __name__ == "__main__":
    main()
