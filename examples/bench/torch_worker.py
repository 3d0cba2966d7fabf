"""PyTorch's side of the benchmark: reads a line of JSON, does what it says, and answers with another.

{"prepare": {"shape", "dtype", "fused"}} makes a layer and its data, channels last (torch.nn.BatchNorm, which is cuDNN's
on a GPU); {"run": n} does the forward and the backward pass n times and answers {"seconds"} for one.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def prepared(torch, shape: list[int], dtype: str, fused: str) -> Callable[[], None]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = len(shape) == 4
    torch.backends.cudnn.benchmark = True
    norm = (torch.nn.BatchNorm2d if images else torch.nn.BatchNorm1d)(shape[-1]).to(device).train()

    def tensor():
        values = torch.randn([shape[0], shape[-1], *shape[1:-1]], device=device, dtype=getattr(torch, dtype))
        return values.to(memory_format=torch.channels_last) if images else values

    x, dy, residual = tensor().requires_grad_(), tensor(), tensor().requires_grad_()

    def run() -> None:
        x.grad = residual.grad = norm.weight.grad = norm.bias.grad = None
        y = norm(x)
        y = y + residual if fused == "residual" else y
        y = torch.relu_(y) if fused else y
        y.backward(dy)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    try:
        import torch
    except ImportError as error:
        answer(error=str(error))
        return
    answer(version=torch.__version__)
    run: Callable[[], None] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "prepare" in question:
                run = prepared(torch, **question["prepare"])
                run()
                answer(ready=True)
            elif run is not None:
                start = time.perf_counter()
                for _ in range(question["run"]):
                    run()
                answer(seconds=(time.perf_counter() - start) / question["run"])
        except RuntimeError as error:
            answer(error=str(error))


if __name__ == "__main__":
    main()
