"""Batch normalization for JAX and Flax: one batch, one answer, however it is split."""

from jaxbn import interop
from jaxbn.accumulate import commit_moments, zero_moments
from jaxbn.averages import debiased
from jaxbn.batch_norm import batch_norm, normalize_batch
from jaxbn.collect import collect_moments
from jaxbn.folding import fold, fold_into_next, fold_into_previous, foldable_pairs
from jaxbn.masks import batch_norm_mask
from jaxbn.memory import save_only_moments
from jaxbn.merge import merge_moments
from jaxbn.moments import batch_moments
from jaxbn.normalize import normalize
from jaxbn.recalibrate import recalibrate
from jaxbn.replicas import merge_batch_stats
from jaxbn.running import init, update_batch_stats
from jaxbn.summary import LayerSummary, Summary, summary
from jaxbn.types import Moments

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
    "merge_batch_stats",
    "merge_moments",
    "normalize",
    "normalize_batch",
    "recalibrate",
    "save_only_moments",
    "summary",
    "update_batch_stats",
    "zero_moments",
]
__version__ = "0.1.0"
