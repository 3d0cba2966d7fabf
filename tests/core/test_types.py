"""What a type checker sees of a user's script with NumPy arrays, in strict mode."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER = """
import jax
import numpy as np
from flax import nnx

import jaxbn
from jaxbn.linen import BatchNorm
from jaxbn.nnx import BatchNorm as NNXBatchNorm

x = np.ones((8, 3), np.float32)
params = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
stats = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
mask = np.ones((8, 1), np.bool_)

y, new = jaxbn.batch_norm(
    params, stats, x, use_running_average=False, momentum=np.float32(0.9), mask=mask, activation="relu", residual=x
)
array: jax.Array = y + new["mean"]
y, new = jaxbn.batch_norm(params, new, array, use_running_average=True, axis=(-1,), epsilon=0, dtype=np.float16)

made, made_stats = jaxbn.init(3, param_dtype=np.float32, use_count=True)
y, moments = jaxbn.normalize_batch(made, made_stats, x, virtual_batch_size=4)
moments = jaxbn.merge_moments(moments, jaxbn.batch_moments(x, mask=mask, pivot=stats["mean"]))
made_stats = jaxbn.update_batch_stats(made_stats, moments, momentum=jaxbn.debiased(0.9))
mean: jax.Array = moments.mean
y = jaxbn.normalize(made, x, stats["mean"], stats["var"], activation=jax.nn.silu)

linen_layer = BatchNorm(use_running_average=False, momentum=None, activation=jax.nn.relu)
nnx_layer = NNXBatchNorm(3, momentum=jaxbn.debiased(0.9), rngs=nnx.Rngs(0))
array = nnx_layer(x, mask=mask, residual=x)
nnx_layer = jaxbn.recalibrate(lambda model, x: model(x), nnx_layer, [x])
same: NNXBatchNorm = jaxbn.fold(nnx_layer, x)
"""
WRONG = """
import numpy as np

import jaxbn

params, batch_stats = jaxbn.init(3)
x = np.ones((8, 3), np.float32)
jaxbn.batch_norm(params, batch_stats, x)
jaxbn.batch_norm(params, batch_stats, x, use_running_average="no")
jaxbn.batch_norm(params, batch_stats, x, use_running_average=False, momentun=0.9)
jaxbn.normalize(params, x, x, x, mask=x)
"""

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed"),
]


def pyright(*arguments: str, folder: Path) -> dict:
    """What pyright says of the files in `folder`, or of what the arguments name."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def errors_of(script: str, folder: Path) -> list[tuple[int, str]]:
    """(line, rule) of each, in strict mode, without what Flax and JAX themselves leave open."""
    (folder / "script.py").write_text(script)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "reportMissingTypeStubs": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    found = pyright(folder=folder)["generalDiagnostics"]
    return [(d["range"]["start"]["line"], f"{d.get('rule')}: {d['message']}") for d in found]


def test_a_script_with_numpy_arrays_passes_strict_mode(tmp_path):
    assert errors_of(USER, tmp_path) == []


def test_wrong_arguments_are_found_without_running(tmp_path):
    lines = WRONG.split("\n")
    wrong = {i for i, line in enumerate(lines) if line.startswith(("jaxbn.batch_norm", "jaxbn.normalize"))}
    assert {line for line, _ in errors_of(WRONG, tmp_path)} == wrong


def test_every_public_name_has_a_type(tmp_path):
    completeness = pyright("--verifytypes", "jaxbn", "--ignoreexternal", folder=tmp_path)["typeCompleteness"]
    unknown = [s["name"] for s in completeness["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    assert unknown == []
    assert completeness["completenessScore"] == 1
