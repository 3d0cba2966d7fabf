"""What a batch norm costs before the first step: the time to trace, lower and compile a step of a ResNet of modules.

Run as a program of its own (`python -m bench.compile_cost DEVICE PEER`, in examples/), because what jax has traced or
compiled once is cached; it prints one JSON row.
"""

import json
import statistics
import sys
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxbn.linen
from bench.compilers import lowered_for
from bench.process import answer_of

MODULES = {"jaxbn": jaxbn.linen.BatchNorm, "flax.linen": nn.BatchNorm}
STAGES = ((16, 3), (32, 4), (64, 3))
"""channels and number of bottleneck blocks"""


class Net(nn.Module):
    """A small ResNet-50: the same blocks with a quarter of the channels, without the last stage."""

    norm: Any

    @nn.compact
    def __call__(self, x):
        def conv(x, channels, size, stride=1):
            x = nn.Conv(channels, (size, size), (stride, stride), use_bias=False)(x)
            return self.norm(use_running_average=False, momentum=0.9)(x)

        for stage, (channels, blocks) in enumerate(STAGES):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(conv(x, channels, 1))
                y = conv(nn.relu(conv(y, channels, 3, stride)), 4 * channels, 1)
                x = nn.relu(y + (x if block else conv(x, 4 * channels, 1, stride)))
        return nn.Dense(10)(x.mean((1, 2)))


def measured(device: str, peer: str) -> dict[str, float]:
    """In this process: lines of the program's text, and seconds of CPU time."""
    net, x = Net(MODULES[peer]), jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)

    def loss(params, batch_stats, x):
        y, new = net.apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])
        return jnp.mean(jnp.square(y)), new

    start = time.process_time()
    step = jax.value_and_grad(loss, has_aux=True)
    lowered = lowered_for(device, step, variables["params"], variables["batch_stats"], x)
    middle = time.process_time()
    lowered.compile()
    end = time.process_time()
    return {
        "lines of the program (StableHLO)": len(lowered.as_text().splitlines()),
        "time to trace and lower it": middle - start,
        "time to compile it": end - middle,
    }


def rows(device: str, names: list[str], base: str, repeats: int = 3) -> list[dict[str, Any]]:
    """The median over processes that take turns, and its ratio to that of `base`."""
    names = [name for name in MODULES if name in (*names, base)]
    found = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            found[name].append(answer_of("bench.compile_cost", device, name))
    medians = {
        name: {what: statistics.median(one[what] for one in all_) for what in all_[0]} for name, all_ in found.items()
    }
    return [
        {"workload": what, "peer": name, "median": value, "ratio": value / medians[base][what]}
        for name, values in medians.items()
        for what, value in values.items()
    ]


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:])))
