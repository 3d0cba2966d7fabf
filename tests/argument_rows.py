"""Every public function and module, and the kind (`tests.argument_kinds`) of each of its arguments."""

import numpy as np
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import interop
from tests.argument_calls import (
    DENSE,
    FOLDED,
    KERNEL,
    MODEL,
    REPORTING,
    SPLIT,
    VARIABLES,
    Row,
    batch_norm,
    fold,
    forward,
    forward_of_linen,
    linen,
    loaded,
    merge_moments,
    nnx_commit,
    nnx_layer,
    saved,
    split_invariant,
)
from tests.argument_kinds import BY_DOMAIN, COUNTED, MOMENTS, PARAMS, STATS, X

AFFINE = {"axis": "axis", "epsilon": "epsilon", "dtype": "dtype", "activation": "activation", "residual": "residual"}
BATCH = {
    "mask": "mask",
    "axis_name": "axis_name",
    "axis_index_groups": "axis_index_groups",
    "use_fast_variance": "flag",
}
LAYER = {
    **AFFINE,
    **BATCH,
    "virtual_batch_size": "virtual_batch_size",
    "renorm": "renorm",
    "domain": "domain of one set",
    "momentum": "momentum",
    "unbiased": "flag",
}
OF_STEP = {**LAYER, "params": "params", "batch_stats": "batch_stats", "x": "x", "use_running_average": "choice"}
TRANSFER = {"model": "model of weights", "names": "names", "prefix": "prefix", "layouts": "layouts"}


ROWS = [
    Row("jaxbn.batch_norm", batch_norm, {**VARIABLES, "x": X, "use_running_average": False}, OF_STEP),
    Row(
        "jaxbn.batch_norm in evaluation",
        batch_norm,
        {**VARIABLES, "x": X, "use_running_average": True},
        {**OF_STEP, "axis_name": "axis_name, in evaluation"},
    ),
    Row(
        "jaxbn.batch_norm with a count",
        batch_norm,
        {"params": PARAMS, "batch_stats": COUNTED, "x": X, "use_running_average": False},
        {"momentum": "momentum, counted"},
    ),
    Row(
        "jaxbn.normalize_batch",
        jaxbn.normalize_batch,
        {**VARIABLES, "x": X},
        {k: v for k, v in OF_STEP.items() if k not in ("momentum", "unbiased", "use_running_average")},
    ),
    Row("jaxbn.batch_moments", jaxbn.batch_moments, {"x": X}, {"x": "x", "axis": "axis", **BATCH, "pivot": "pivot"}),
    Row(
        "jaxbn.normalize",
        jaxbn.normalize,
        {"params": PARAMS, "x": X, **STATS},
        {**AFFINE, "params": "params", "x": "x", "mean": "mean", "var": "var"},
    ),
    Row(
        "jaxbn.update_batch_stats",
        jaxbn.update_batch_stats,
        {"batch_stats": STATS, "moments": MOMENTS, "momentum": 0.9},
        {"batch_stats": "batch_stats", "moments": "moments", "momentum": "momentum", "unbiased": "flag"},
    ),
    Row("jaxbn.merge_moments", merge_moments, {"moments": MOMENTS}, {"moments": "moments"}),
    Row(
        "jaxbn.init",
        jaxbn.init,
        {"num_features": 3},
        {
            "num_features": "num_features",
            "use_scale": "flag",
            "use_bias": "flag",
            "param_dtype": "param_dtype",
            "use_count": "flag",
            "num_domains": "num_domains",
            "affine_per_domain": "flag that must be False",
        },
    ),
    Row("jaxbn.init with domains", jaxbn.init, {"num_features": 3, "num_domains": 2}, {"affine_per_domain": "flag"}),
    Row(
        "jaxbn.batch_norm with domains",
        batch_norm,
        {"params": PARAMS, "batch_stats": BY_DOMAIN, "x": X, "use_running_average": False, "domain": 0},
        {"domain": "domain", "batch_stats": "batch_stats of domains"},
    ),
    Row(
        "jaxbn.add_domains",
        jaxbn.add_domains,
        {"model": VARIABLES, "num_domains": 2},
        {
            "model": "model",
            "num_domains": "number of domains",
            "affine_per_domain": "flag",
            "layers": "layers",
            "num_feature_axes": "num_feature_axes",
        },
    ),
    Row(
        "jaxbn.select_domain",
        jaxbn.select_domain,
        {"model": {"params": PARAMS, "batch_stats": BY_DOMAIN}, "domain": 1},
        {"model": "model", "domain": "domain to select", "layers": "layers", "num_feature_axes": "num_feature_axes"},
    ),
    Row("jaxbn.Renorm", jaxbn.Renorm, {"r_max": 3.0, "d_max": 5.0}, {"r_max": "limit of r", "d_max": "limit of d"}),
    Row("jaxbn.debiased", jaxbn.debiased, {"momentum": 0.9}, {"momentum": "debiased"}),
    Row("jaxbn.zero_moments", jaxbn.zero_moments, {"batch_stats": STATS}, {"batch_stats": "tree of batch_stats"}),
    Row(
        "jaxbn.commit_moments",
        jaxbn.commit_moments,
        {"batch_stats": STATS, "batch_moments": MOMENTS._asdict(), "momentum": 0.9},
        {"batch_stats": "batch_stats", "batch_moments": "tree of moments", "momentum": "momentum", "unbiased": "flag"},
    ),
    Row(
        "jaxbn.collect_moments",
        jaxbn.collect_moments,
        {"forward": forward, "model": VARIABLES, "batch": X},
        {"forward": "forward", "model": "model", "batch": "batch"},
    ),
    Row(
        "jaxbn.recalibrate",
        jaxbn.recalibrate,
        {"forward": forward, "model": VARIABLES, "batches": [X]},
        {
            "forward": "forward",
            "model": "model",
            "batches": "batches",
            "sequential": "flag",
            "unbiased": "flag",
            "progress": "flag",
        },
    ),
    Row(
        "jaxbn.summary",
        jaxbn.summary,
        {"model": VARIABLES},
        {
            "model": "model",
            "epsilon": "epsilon",
            "moments": "moments of a summary",
            "stacked": "flag",
            "num_feature_axes": "num_feature_axes",
        },
    ),
    Row(
        "jaxbn.merge_batch_stats",
        jaxbn.merge_batch_stats,
        {"batch_stats": [STATS, STATS]},
        {"batch_stats": "replicas", "counts": "counts"},
    ),
    Row(
        "jaxbn.layer_options",
        jaxbn.layer_options,
        {"forward": forward_of_linen, "variables": VARIABLES, "batch": X},
        {"forward": "forward", "variables": "variables of linen", "batch": "batch or shapes"},
    ),
    Row(
        "jaxbn.report_moments",
        jaxbn.report_moments,
        {"module": REPORTING, "moments": MOMENTS},
        {"module": "module", "moments": "moments of a module"},
    ),
    Row("jaxbn.batch_norm_mask", jaxbn.batch_norm_mask, {"model": VARIABLES}, {"model": "model"}),
    Row("jaxbn.fold", fold, {"model": MODEL}, {"model": "model", "pairs": "pairs"}),
    Row(
        "jaxbn.foldable_pairs",
        lambda model: jaxbn.foldable_pairs(model, FOLDED, X),
        {"model": MODEL},
        {"model": "model"},
    ),
    Row(
        "jaxbn.fold_into_previous",
        jaxbn.fold_into_previous,
        {"layer": KERNEL, **VARIABLES},
        {
            "layer": "layer",
            "params": "params",
            "batch_stats": "batch_stats",
            "epsilon": "epsilon",
            "out_axis": "out_axis",
        },
    ),
    Row(
        "jaxbn.fold_into_next",
        jaxbn.fold_into_next,
        {"layer": KERNEL, **VARIABLES},
        {
            "layer": "layer",
            "params": "params",
            "batch_stats": "batch_stats",
            "epsilon": "epsilon",
            "feature_group_count": "feature_group_count",
        },
    ),
    Row(
        "jaxbn.interop.from_torch",
        interop.from_torch,
        {"state_dict": {"fc.weight": np.zeros((2, 3)), "fc.bias": np.zeros(2)}, "model": DENSE},
        {**TRANSFER, "state_dict": "weights"},
    ),
    Row(
        "jaxbn.interop.from_keras",
        interop.from_keras,
        {"weights": {"fc/kernel": np.zeros((3, 2)), "fc/bias": np.zeros(2)}, "model": DENSE},
        {**TRANSFER, "weights": "weights"},
    ),
    Row(
        "jaxbn.interop.match_names",
        interop.match_names,
        {"state_dict": {"fc.weight": np.zeros((2, 3)), "fc.bias": np.zeros(2)}, "model": DENSE, "names": {"f*": "f*"}},
        {"state_dict": "checkpoint", "model": "model of weights", "names": "names", "prefix": "prefix"},
    ),
    Row(
        "jaxbn.interop.find_layouts",
        lambda model: interop.find_layouts(model, FOLDED, X),
        {"model": MODEL},
        {"model": "model"},
    ),
    Row("jaxbn.interop.to_torch", interop.to_torch, {"model": DENSE}, TRANSFER),
    Row("jaxbn.interop.to_keras", interop.to_keras, {"model": DENSE}, TRANSFER),
    Row("jaxbn.interop.load", loaded, {"path": "weights.npz"}, {"path": "path", "max_bytes": "max_bytes"}),
    Row("jaxbn.interop.save", saved, {"path": "a.npz", "arrays": {"a": X}}, {"path": "path", "arrays": "arrays"}),
    Row(
        "jaxbn.interop.from_torch_options",
        interop.from_torch_options,
        {},
        {"momentum": "torch momentum", "eps": "epsilon", "affine": "flag"},
    ),
    Row(
        "jaxbn.interop.to_torch_options",
        interop.to_torch_options,
        {"unbiased": True},
        {
            "momentum": "torch momentum",
            "epsilon": "epsilon",
            **dict.fromkeys(("unbiased", "use_scale", "use_bias"), "flag that must be True"),
        },
    ),
    Row(
        "jaxbn.linen.BatchNorm",
        linen,
        {"x": X, "use_running_average": False},
        {
            **LAYER,
            "x": "x",
            "param_dtype": "param_dtype",
            "use_bias": "flag",
            "use_scale": "flag",
            "force_float32_reductions": "flag",
            "num_domains": "num_domains, without a domain",
            "affine_per_domain": "flag that must be False",
        },
    ),
    Row(
        "jaxbn.linen.BatchNorm in evaluation",
        linen,
        {"x": X, "use_running_average": True},
        {**LAYER, "x": "x", "axis_name": "axis_name, in evaluation"},
    ),
    Row(
        "jaxbn.nnx.BatchNorm",
        nnx_layer,
        {"num_features": 3, "x": X},
        {
            **LAYER,
            "x": "x",
            "num_features": "features of x",
            "param_dtype": "param_dtype",
            "use_bias": "flag",
            "use_scale": "flag",
            "use_running_average": "choice or None",
            "num_domains": "num_domains, without a domain",
            "affine_per_domain": "flag that must be False",
        },
    ),
    Row(
        "jaxbn.nnx.BatchNorm in evaluation",
        nnx_layer,
        {"num_features": 3, "x": X, "use_running_average": True},
        {**LAYER, "x": "x", "axis_name": "axis_name, in evaluation"},
    ),
    Row(
        "jaxbn.nnx.zero_moments",
        jaxbn.nnx.zero_moments,
        {"model": jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))},
        {"model": "model"},
    ),
    Row(
        "jaxbn.nnx.commit_moments", nnx_commit, {"model": jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))}, {"model": "model"}
    ),
    Row(
        "jaxbn.testing.assert_split_invariant",
        split_invariant,
        {"model": SPLIT, "x": X},
        {
            "model": "model",
            "axis_name": "axis_name of a test",
            "parts": "parts",
            "loss": "loss",
            "tolerance": "tolerance",
            "variables": "variables",
        },
    ),
]
