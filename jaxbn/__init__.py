"""Batch normalization for JAX and Flax: one batch, one answer, however it is split.

The map of the house, one line a room. What a user imports has a public name, everything else a leading underscore:

    jaxbn           the functions below: `batch_norm`, `Moments`, `recalibrate`, `fold`, `summary`, ...
    jaxbn.linen     `BatchNorm`, the drop-in for `flax.linen.BatchNorm`
    jaxbn.nnx       `BatchNorm`, the drop-in for `flax.nnx.BatchNorm`
    jaxbn.interop   checkpoints of PyTorch and Keras
    jaxbn.testing   for the tests of your own model: is a training step the same however its batch is split?

    jaxbn._core     the paper: options, moments and how they merge, one layer, its state; each derivative by its formula
    jaxbn._xla      how a pass over memory is written for XLA on a platform; it changes speed and never meaning
    jaxbn._sync     mapped axes (`axis_name`) and arrays that are sharded over devices
    jaxbn._models   finding the batch norms of a model and watching them run, in linen, nnx and plain dicts
    jaxbn._tools    what can be done with them: recalibrate, accumulate, fold, summarize, freeze, save memory
    jaxbn._compat   what JAX calls differently in older versions

`import jaxbn` imports neither Flax nor optax; `jaxbn.linen` and `jaxbn.nnx` import Flax.
"""

from jaxbn import interop
from jaxbn._core.averages import debiased
from jaxbn._core.batch_norm import batch_moments, batch_norm, normalize, normalize_batch
from jaxbn._core.merge import merge_moments
from jaxbn._core.renorm import Renorm
from jaxbn._core.state import init, update_batch_stats
from jaxbn._core.types import Moments
from jaxbn._models.report import report_moments
from jaxbn._tools.accumulate import commit_moments, zero_moments
from jaxbn._tools.checkpoint_policy import save_only_moments
from jaxbn._tools.collect import collect_moments
from jaxbn._tools.domains import add_domains, select_domain
from jaxbn._tools.folding import fold, fold_into_next, fold_into_previous, foldable_pairs
from jaxbn._tools.layer_options import layer_options
from jaxbn._tools.optimizer_masks import batch_norm_mask
from jaxbn._tools.recalibrate import recalibrate
from jaxbn._tools.replicas import merge_batch_stats
from jaxbn._tools.summary import LayerSummary, Summary, summary

__all__ = [
    "LayerSummary",
    "Moments",
    "Renorm",
    "Summary",
    "add_domains",
    "batch_moments",
    "batch_norm",
    "batch_norm_mask",
    "collect_moments",
    "commit_moments",
    "debiased",
    "fold",
    "fold_into_next",
    "fold_into_previous",
    "foldable_pairs",
    "init",
    "interop",
    "layer_options",
    "merge_batch_stats",
    "merge_moments",
    "normalize",
    "normalize_batch",
    "recalibrate",
    "report_moments",
    "save_only_moments",
    "select_domain",
    "summary",
    "update_batch_stats",
    "zero_moments",
]
__version__ = "0.2.0"
