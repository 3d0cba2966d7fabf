"""Times that can be compared: peers take turns, round by round, and the median of the ratios is reported."""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.workloads import Workload

Timer = Callable[[], float]
"""Does the work and returns how many seconds it took, averaged over a few times if it is short."""
SHORTEST = 0.03
"""seconds that a single measurement should take"""


def timer(work: Callable[[], Any]) -> Timer:
    def seconds(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - start) / times

    return calibrated(seconds)


def calibrated(seconds: Callable[[int], float]) -> Timer:
    """A timer that repeats the work until it takes long enough, from a function of the number of repetitions."""
    seconds(2)  # compiles, and touches the memory
    times = max(1, round(SHORTEST / seconds(2)))
    return lambda: seconds(times)


def rounds(timers: dict[str, Timer], repeats: int) -> Iterator[dict[str, float]]:
    """Runs every peer once in each round, in rotating order."""
    names = list(timers)
    gc.collect()
    for i in range(repeats):
        turned = names[i % len(names) :] + names[: i % len(names)]
        yield {name: timers[name]() for name in turned}


def compare(seconds: list[dict[str, float]], base: str) -> dict[str, dict[str, float]]:
    """The median time of each peer in ms, and its ratio to `base`: median and quartiles over the rounds."""
    rows = {}
    for name in seconds[0]:
        times = np.array([r[name] for r in seconds])
        low, middle, high = np.quantile(times / [r[base] for r in seconds], [0.25, 0.5, 0.75])
        rows[name] = {
            "time [ms]": 1e3 * float(np.median(times)),
            "time ratio": float(middle),
            "first quartile": float(low),
            "third quartile": float(high),
        }
    return rows


class Torch:
    """PyTorch in a process of its own, because its threads and XLA's would disturb each other; it runs on request."""

    @classmethod
    def start(cls) -> "Torch | None":
        """None, and a line that says so, if PyTorch is not installed."""
        try:
            return cls()
        except ImportError as error:
            print(f"without PyTorch: {error}")
            return None

    def __init__(self) -> None:
        worker = [sys.executable, str(Path(__file__).with_name("torch_worker.py"))]
        self._process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hello = self._ask()
        if "error" in hello:
            raise ImportError(hello["error"])
        self.version: str = hello["version"]

    def _ask(self, **question) -> dict[str, Any]:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        if question:
            pipe_in.write(json.dumps(question) + "\n")
            pipe_in.flush()
        line = pipe_out.readline()
        return json.loads(line) if line else {"error": "the process of PyTorch ended"}

    def layer(self, w: Workload) -> Timer:
        """Raises RuntimeError if PyTorch cannot do it."""
        if "error" in (answer := self._ask(prepare={"shape": w.shape, "dtype": w.dtype, "fused": w.fused})):
            raise RuntimeError(f"PyTorch: {answer['error']}")

        def seconds(times: int) -> float:
            answer = self._ask(run=times)
            if "error" in answer:
                raise RuntimeError(f"PyTorch: {answer['error']}")
            return answer["seconds"]

        return calibrated(seconds)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
