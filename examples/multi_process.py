"""Synchronized batch norm over several processes, as on a cluster, tried on one machine.

    python examples/multi_process.py                     # 2 processes with 2 CPU devices each
    python examples/multi_process.py --processes 4 --devices 1

starts real processes that find each other over the loopback interface with `jax.distributed`, trains a small network on
scikit-learn's digits, and then trains it once more in one process with as many devices: the weights agree to rounding.
The state is saved along the way (orbax), and a run continues from the last checkpoint, with the same numbers as one
that was never interrupted. Try it: with `--fail-at 15` the last process dies at that step, and the others stop with an
error instead of waiting forever; then run it again without. If the newest checkpoint has been damaged since, even by a
single bit, the run says so and continues from the one before.

On a SLURM cluster, one process per node (or per GPU), JAX reads the rest from SLURM's variables:

    srun --nodes 4 --ntasks-per-node 1 --gpus-per-node 8 python examples/multi_process.py --cluster

On a TPU pod slice, the same command on all hosts:

    gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command \\
        "python jaxbn/examples/multi_process.py --cluster --output gs://BUCKET/runs/multi_process"

Elsewhere, on the machine number I of N, with the address of number 0:

    python examples/multi_process.py --coordinator ADDRESS:PORT --processes N --process-id I

All of them must see the folder `--output`.

Only the mesh knows how many processes there are: all that the network knows is the name of the axis, `batch`.
"""

import argparse
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from tqdm import tqdm

import jaxbn
from whole_files import lock, set_damaged_aside, write_checksums, write_whole

WIDTHS = (64, 48, 32, 10)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
START_TIMEOUT = 60
"""seconds that the processes have to find each other"""


def network(params, stats, x, *, axis_name):
    """[n, 64] -> [n, 10] logits, and the new statistics."""
    new = []
    for layer, old in zip(params["hidden"], stats, strict=True):
        x, updated = jaxbn.batch_norm(
            layer["norm"], old, x @ layer["kernel"],
            use_running_average=False, momentum=0.9, axis_name=axis_name, activation="relu",
        )  # fmt: skip
        new.append(updated)
    return x @ params["out"], new


def init(seed: int):
    """Parameters, statistics and the state of the optimizer, the same in every process."""
    rng = np.random.default_rng(seed)
    kernels = [(rng.normal(size=(m, n)) * np.sqrt(2 / m)).astype(np.float32) for m, n in itertools.pairwise(WIDTHS)]
    norms = [jaxbn.init(kernel.shape[1]) for kernel in kernels[:-1]]
    hidden = [{"kernel": k, "norm": norm} for k, (norm, _) in zip(kernels, norms, strict=False)]
    params = {"hidden": hidden, "out": kernels[-1]}
    return params, [stats for _, stats in norms], OPTIMIZER.init(params)


def make_step(mesh):
    """(state, images, labels) -> (state, loss), over all devices of all processes."""

    def of_device(state, images, labels):
        params, stats, opt_state = state

        def loss_of(params):
            logits, new = network(params, stats, images, axis_name="batch")
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jax.lax.pmean(losses.mean(), "batch"), new

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    return jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=(P(), P())))


def train(folder: epath.Path, *, steps: int, batch_size: int, seed: int, save_every: int, fail_at: int | None = None):
    """Trains on all devices of all processes, from the last checkpoint in `folder` or from the start.

    Args:
      folder: where the checkpoints are, a folder that all processes see.
      steps: number of steps in all.
      batch_size: that of all devices together.
      seed: that of the weights and of the order of the examples.
      save_every: steps between checkpoints.
      fail_at: the step at which this process dies, to try what happens then.

    Returns:
      The state, and the loss of each step that was made, by number.
    """
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("batch"))
    state = jax.device_put(init(seed), NamedSharding(mesh, P()))
    step_of, losses = make_step(mesh), {}
    if jax.process_index() == 0:
        set_damaged_aside(folder)
    multihost_utils.sync_global_devices("checkpoints were checked")
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder, options=options) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            state = checkpoints.restore(start, args=ocp.args.StandardRestore(jax.tree.map(_description, state)))
        for step in tqdm(range(start, steps), desc="training", disable=jax.process_index() != 0):
            if step == fail_at:
                os._exit(1)
            # Every process draws the same batch for all devices, and passes on the rows of its own.
            rows = np.random.default_rng((seed, step)).permutation(len(images))[:batch_size]
            batch = [jax.make_array_from_callback(v.shape, split, v.__getitem__) for v in (images[rows], labels[rows])]
            state, loss = step_of(state, *batch)
            losses[step] = float(loss)
            if (step + 1) % save_every == 0:
                checkpoints.save(step + 1, args=ocp.args.StandardSave(state))
                if jax.process_index() == 0:
                    write_checksums(folder, step + 1)
    return state, losses


def _description(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def work(args) -> None:
    """Runs one of several processes; the first one writes the weights."""
    jax.distributed.initialize(
        args.coordinator,
        None if args.cluster else args.processes,
        args.process_id,
        initialization_timeout=START_TIMEOUT,
        heartbeat_timeout_seconds=args.heartbeat_timeout,
        shutdown_timeout_seconds=START_TIMEOUT,
    )
    last = jax.process_index() == jax.process_count() - 1
    output = epath.Path(args.output).resolve()
    held = lock(os.fspath(output)) if jax.process_index() == 0 else None
    state, losses = train(
        output / "checkpoints",
        steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        save_every=args.save_every,
        fail_at=args.fail_at if last else None,
    )
    if jax.process_index() == 0:
        leaves = {jax.tree_util.keystr(path): v for path, v in jax.tree_util.tree_leaves_with_path(state[:2])}
        weights = io.BytesIO()
        np.savez(weights, **jax.device_get(leaves))
        write_whole(output / "weights.npz", weights.getvalue())
        record = output / "losses.json"
        before = json.loads(record.read_text()) if record.exists() else {}
        write_whole(record, json.dumps(before | {str(step): loss for step, loss in losses.items()}).encode())
    jax.distributed.shutdown()
    if held is not None:
        held.close()


def launch(args, output: str, processes: int, devices: int) -> None:
    """Starts the processes on this machine and waits for them.

    Raises:
      SystemExit: one of them failed; the others stop by themselves, or are stopped after a while.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, __file__, "--coordinator", coordinator, "--processes", str(processes)]
    for name in ("steps", "batch_size", "seed", "save_every", "fail_at", "heartbeat_timeout"):
        if getattr(args, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen([*command, "--output", output, "--process-id", str(i)], env=env) for i in range(processes)
    ]
    try:
        while None in (codes := [w.poll() for w in workers]) and not any(codes):
            time.sleep(0.1)
        if any(codes):
            deadline = time.monotonic() + START_TIMEOUT + args.heartbeat_timeout
            codes = [w.wait(max(0.1, deadline - time.monotonic())) for w in workers]
            raise SystemExit(f"A process failed, and the others stopped: exit codes {codes}. Run again to go on.")
    finally:
        for w in workers:
            w.kill()


def compare(output: str, processes: int, devices: int) -> None:
    """Prints how far the weights of several processes are from those of one."""
    table = Table(title="The same training, split two ways")
    for column in ("run", "last loss"):
        table.add_column(column)
    folders = {f"{processes} processes x {devices} devices": output, "one process": os.path.join(output, "alone")}
    weights = {}
    for name, folder in folders.items():
        with open(os.path.join(folder, "losses.json")) as file:
            losses = json.load(file)
        table.add_row(name, f"{losses[max(losses, key=int)]:.6f}" if losses else "trained before")
        with np.load(os.path.join(folder, "weights.npz")) as arrays:
            weights[name] = dict(arrays)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), *weights.values())
    console = Console()
    console.print(table)
    console.print(f"Largest difference between the weights: {max(difference.values()):.1e}")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=2, help="CPU devices of each, on one machine (default: 2)")
    parser.add_argument("--steps", type=int, default=40, help="training steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="of all devices together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=10, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--fail-at", type=int, help="step at which the last process dies, to try it")
    parser.add_argument(
        "--heartbeat-timeout",
        type=int,
        default=10,
        help="seconds of silence after which a process counts as dead, and the others stop (default: %(default)s)",
    )
    parser.add_argument("--output", default="runs/multi_process", help="folder of the results (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget what the folder holds")
    cluster = parser.add_argument_group("one process of a cluster")
    cluster.add_argument("--cluster", action="store_true", help="SLURM or a TPU pod: find everything out")
    cluster.add_argument("--coordinator", help="address:port of the first process")
    cluster.add_argument("--process-id", type=int, help="number of this one, from 0")
    args = parser.parse_args(argv)
    if args.batch_size % (args.processes * args.devices) and not args.cluster:
        parser.error(f"--batch-size {args.batch_size} must be a multiple of the number of devices")
    if args.cluster or args.coordinator:
        work(args)
        return
    lock(args.output).close()
    alone = os.path.join(args.output, "alone")
    for folder in (args.output,) if args.fresh else (alone,):
        shutil.rmtree(folder, ignore_errors=True)
    launch(args, args.output, args.processes, args.devices)
    launch(args, alone, 1, args.processes * args.devices)
    compare(args.output, args.processes, args.devices)


if __name__ == "__main__":
    main()
