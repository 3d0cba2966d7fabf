"""Why batch norm works: every claim that is taught about it, measured on real images, with figures and verdicts.

    python examples/study.py all                    # everything, five seeds: about half an hour on two cores
    python examples/study.py all --fast             # the same in small, in a few minutes
    python examples/study.py depth activations      # some of the claims
    python examples/study.py all --data my_images   # on your own images, one subfolder per class

Each finished measurement is kept in the output folder: a study that was stopped goes on where it was, and the same
command twice trains nothing and draws the same. Open index.html in the output folder to read the results.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from tqdm import tqdm

import jaxbn
from claims import (
    activations,
    covariate_shift,
    depth,
    inference,
    learning_rates,
    other_norms,
    placement,
    regularization,
    report,
    residual_networks,
)
from claims.claim import Results, Setting
from claims.store import Store, plain
from data import load_digits, load_folder

CLAIMS: dict[str, ModuleType] = {
    module.__name__.split(".")[-1]: module
    for module in (
        placement,
        learning_rates,
        inference,
        covariate_shift,
        depth,
        activations,
        other_norms,
        regularization,
        residual_networks,
    )
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:18} {module.CLAIM}" for name, module in CLAIMS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nclaims:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("claims", nargs="+", choices=[*CLAIMS, "all"], metavar="claim", help="which claims, or 'all'")
    add("--seeds", type=int, default=5, metavar="N", help="runs of each setting, at least 2 (default %(default)s)")
    add("--fast", action="store_true", help="fewer steps and coarser grids")
    add("--data", type=Path, metavar="FOLDER", help="your own images, one subfolder per class, instead of the digits")
    add("--image-size", type=int, default=12, metavar="N",
        help="with --data: height and width that images are resized to (default %(default)s)")
    add("--out", type=Path, default=Path("runs/study"), metavar="FOLDER", help="for results (default %(default)s)")
    add("--again", action="store_true", help="measure again what was measured before")
    # fmt: on
    args = parser.parse_args(arguments)
    if args.seeds < 2:
        parser.error(f"--seeds must be at least 2, for intervals, got {args.seeds}")
    if args.image_size < 4:
        parser.error(f"--image-size must be at least 4, got {args.image_size}")
    return args


def measure(names: list[str], setting: Setting, store: Store, again: bool) -> dict[str, Results]:
    """The measurements of each claim: read where they are known, else made and kept."""
    parts = {name: CLAIMS[name].parts(setting) for name in names}
    results: dict[str, Results] = {name: {} for name in names}
    todo = []
    for name in names:
        for part, work in parts[name].items():
            known = None if again else store.read(name, part)
            if known is None:
                todo.append((name, part, work))
            else:
                results[name][part] = known
    if todo:
        with tqdm(todo, unit="part") as bar:
            for name, part, work in bar:
                bar.set_description(f"{name}: {part}")
                found = plain(work())
                store.write(name, part, found)
                results[name][part] = found
    return {name: {part: results[name][part] for part in parts[name]} for name in names}


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    names = list(CLAIMS) if "all" in args.claims else [name for name in CLAIMS if name in args.claims]
    try:
        data = load_folder(args.data, args.image_size, grayscale=True) if args.data else load_digits()
        setting = Setting(data, args.seeds, args.fast)
        results = measure(names, setting, Store(args.out / "measurements", setting), args.again)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    found = {name: (CLAIMS[name], CLAIMS[name].finding(results[name]), results[name]) for name in names}
    about: dict[str, Any] = {
        "images": f"{len(data.train_x)} + {len(data.test_x)} of {'x'.join(map(str, data.train_x.shape[1:]))}, "
        + ("a folder" if args.data else "scikit-learn's digits"),
        "seeds": args.seeds,
        "jaxbn": jaxbn.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "command": " ".join(["python examples/study.py", *(sys.argv[1:] if arguments is None else arguments)]),
    }
    if "learning_rates" in results:
        saving = results["learning_rates"]["vmap"]
        about["vmap"] = (
            f"{saving['runs']} runs in one program are {saving['ratio']:.1f} times as fast as one after the other"
        )
    page = report.write(args.out, about, found)
    report.show(found)
    print(f"page with figures: {page}")


if __name__ == "__main__":
    main()
