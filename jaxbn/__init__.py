"""Batch normalization for JAX and Flax: one batch, one answer, however it is split."""

from jaxbn import interop
from jaxbn._core.averages import debiased
from jaxbn._core.batch_norm import batch_moments, batch_norm, normalize, normalize_batch
from jaxbn._core.merge import merge_moments
from jaxbn._core.state import init, update_batch_stats
from jaxbn._core.types import Moments
from jaxbn._models.report import report_moments
from jaxbn._tools.accumulate import commit_moments, zero_moments
from jaxbn._tools.checkpoint_policy import save_only_moments
from jaxbn._tools.collect import collect_moments
from jaxbn._tools.folding import fold, fold_into_next, fold_into_previous, foldable_pairs
from jaxbn._tools.layer_options import layer_options
from jaxbn._tools.optimizer_masks import batch_norm_mask
from jaxbn._tools.recalibrate import recalibrate
from jaxbn._tools.replicas import merge_batch_stats
from jaxbn._tools.summary import LayerSummary, Summary, summary

__all__ = [
    "LayerSummary",
    "Moments",
    "Summary",
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
    "summary",
    "update_batch_stats",
    "zero_moments",
]
__version__ = "0.1.0"
