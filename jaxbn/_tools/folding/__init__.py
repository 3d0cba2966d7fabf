"""Merging batch norms into the layers beside them: one pair by hand, or those of a whole model."""

from jaxbn._tools.folding.model import fold, foldable_pairs
from jaxbn._tools.folding.pair import fold_into_next, fold_into_previous

__all__ = ["fold", "fold_into_next", "fold_into_previous", "foldable_pairs"]
