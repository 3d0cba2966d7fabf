"""Batch normalization for JAX and Flax: one batch, one answer, however it is split."""

from jaxbn.accumulate import commit_moments, zero_moments
from jaxbn.batch_norm import batch_norm, normalize_batch
from jaxbn.merge import merge_moments
from jaxbn.moments import batch_moments
from jaxbn.normalize import normalize
from jaxbn.replicas import merge_batch_stats
from jaxbn.running import init, update_batch_stats
from jaxbn.types import Moments

__all__ = [
    "Moments",
    "batch_moments",
    "batch_norm",
    "commit_moments",
    "init",
    "merge_batch_stats",
    "merge_moments",
    "normalize",
    "normalize_batch",
    "update_batch_stats",
    "zero_moments",
]
__version__ = "0.1.0"
