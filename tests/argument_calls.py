"""How the public functions are called with arguments by name: models, weights, and wrappers of what takes others."""

import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import jax
import numpy as np
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
import jaxbn.testing
from jaxbn import interop
from tests.argument_kinds import COUNTED, MOMENTS, PARAMS, STATS, X

KERNEL = {"kernel": np.ones((3, 3), np.float32), "bias": np.ones(3, np.float32)}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}
DENSE = {"params": {"fc": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}, "batch_stats": {}}


class Row(NamedTuple):
    """One function, or one class with its call."""

    name: str
    call: Callable
    """called with all of `arguments` by name"""
    arguments: dict[str, Any]
    """what is right for each that has to be given"""
    kinds: dict[str, str]
    """the kind of each argument; those of Flax itself ('rngs') need none"""


def batch_norm(params, batch_stats, x, **options):
    return jaxbn.batch_norm(params, batch_stats, x, **options)


def forward(variables, x):
    return jaxbn.normalize_batch(variables["params"], variables["batch_stats"], x)


CALL = ("x", "use_running_average", "mask", "residual", "domain")


def forward_of_linen(variables, x):
    return OPTIONS.apply(variables, x, mutable=["batch_stats"])


def linen(**given):
    """A module with these fields, applied with `CALL`'s."""
    call = {name: given.pop(name) for name in CALL if name in given}
    module = jaxbn.linen.BatchNorm(**given)
    batch_stats = COUNTED if callable(given.get("momentum")) else STATS
    return module.apply({"params": PARAMS, "batch_stats": batch_stats}, call.pop("x"), mutable=["batch_stats"], **call)


def nnx_layer(**given):
    """A module with these arguments, called with `CALL`'s."""
    call = {name: given.pop(name) for name in CALL if name in given}
    return jaxbn.nnx.BatchNorm(**given, rngs=nnx.Rngs(0))(call.pop("x"), **call)


def nnx_commit(model):
    """Ends what began for a model that is one."""
    if isinstance(model, nnx.Module):
        jaxbn.nnx.zero_moments(model)
    return jaxbn.nnx.commit_moments(model)


def split_invariant(model, x, **options):
    return jaxbn.testing.assert_split_invariant(model, x, **options)


def saved(path, arrays):
    """In a folder that is thrown away, where the path is a name."""
    with tempfile.TemporaryDirectory() as folder:
        interop.save(os.path.join(folder, path) if isinstance(path, str) else path, arrays)


def loaded(path, max_bytes=None):
    """From a folder that is thrown away, where the path is a name."""
    with tempfile.TemporaryDirectory() as folder:
        interop.save(os.path.join(folder, "weights.npz"), {"a": X})
        return interop.load(os.path.join(folder, path) if isinstance(path, str) else path, max_bytes=max_bytes)


def fold(model, pairs=None):
    """With what a linen model evaluates with."""
    return jaxbn.fold(model, FOLDED, X, pairs=pairs)


def merge_moments(moments):
    return jaxbn.merge_moments(MOMENTS, moments)


MODEL = flax.linen.Sequential([flax.linen.Dense(3), jaxbn.linen.BatchNorm(use_running_average=True)])
FOLDED = MODEL.init(jax.random.key(0), X)
OPTIONS = jaxbn.linen.BatchNorm(use_running_average=False)
REPORTING = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
SPLIT = jaxbn.linen.BatchNorm(False, axis_name="batch")
