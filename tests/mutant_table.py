"""Defects to plant in the core, one at a time, and the tests that should see each (see `tests/mutants.py`).

A defect that changes no answer is no defect: `EQUIVALENT` says of those that survive why they may.
"""

from typing import NamedTuple


def _some(file: str, test: str, *cases: str) -> tuple[str, ...]:
    """The test of tests/FILE.py with each of these parameters, or without any."""
    return tuple(f"tests/{file}.py::{test}[{case}]" for case in cases) or (f"tests/{file}.py::{test}",)


def _values(*cases: str) -> tuple[str, ...]:
    return _some("core/test_values", "test_output_statistics_and_gradients_are_those_of_the_reference", *cases)


def _sync(*cases: str) -> tuple[str, ...]:
    return _some("sync/test_sync", "test_one_batch_one_answer", *cases)


VALUES = _values("dense", "vector", "weights", "mask", "mask of lower rank", "integer weights", "complex128")
MASKS = (
    *_some("core/test_masks_broadcast", "test_a_mask_may_be_long_along_any_axes", "nn11-(3, 1)", "n11n-(-3, 0)"),
    *_some("core/test_masks_broadcast", "test_virtual_batches_take_masks_that_broadcast_along_the_examples", "2"),
    *_some("core/test_masks_broadcast", "test_in_evaluation_nothing_under_a_mask_reaches_the_output_or_a_gradient"),
)
FORWARD = (
    *_some("core/test_renorm", "test_output_gradients_and_state_are_those_of_the_paper", "True-limits0"),
    *_some("core/test_dtypes", "test_forward_mode_agrees_with_reverse_mode"),
    "tests/core/test_derivatives.py",
)
COUNTS = ("tests/core/test_counts.py",)
COLD = (
    *_some("core/test_cold_start", "test_a_named_axis_has_one_collective_forward_and_one_backward", "True"),
    *_some("core/test_cold_start", "test_any_number_of_members_of_an_axis", "1000-128", "1000-65", "1000-8"),
    *_some("core/test_cold_start", "test_an_empty_first_virtual_batch", "1000"),
    *_some("core/test_cold_start", "test_plain_jit_over_a_sharded_batch", "AxisType.Auto-1000-sorted"),
    *_some("core/test_cold_start", "test_a_masked_outlier_that_stands_first", "1000"),
    "tests/core/test_accuracy.py",
)
DTYPES = ("tests/core/test_dtypes.py",)
DERIVATIVES = ("tests/core/test_derivatives.py",)
SIZES = ("tests/core/test_sizes.py",)
GROUPS = ("tests/sync/test_groups.py", "tests/sync/test_group_isolation.py")
SYNC = _sync(
    "vmap-plain", "vmap-groups", "vmap-mask over NaN and Inf", "vmap-mask, one member empty",
    "shard_map, checked-weights per channel", "vmap in shard_map, unchecked-groups, mask",
)  # fmt: skip
COLLECTIVES = (
    *_some("sync/test_collectives", "test_an_exact_mean_first_costs_one_collective_more"),
    "tests/sync/test_collectives.py",
)
MESH = ("tests/core/test_explicit_mesh.py", "tests/core/test_export.py")
ERRORS = ("tests/core/test_errors.py", "tests/core/test_arguments.py")
LINEN = (
    *_some("models/test_linen_transforms", "test_initialization_needs_no_mapped_axis_and_no_full_batch"),
    *_some("models/test_linen_drop_in", "test_parameters_of_another_dtype_than_asked_for_are_used_as_in_flax"),
    *_some("tools/test_accumulate", "test_a_batch_norm_in_a_stack_without_the_entry_tells"),
    "tests/models/test_linen_state.py",
    "tests/models/test_linen_drop_in.py",
    "tests/core/test_against_flax.py",
)
NNX = ("tests/models/test_nnx_drop_in.py", "tests/core/test_against_flax.py")
CHOICE = ("tests/core/test_traced_choice.py",)
RENORM = ("tests/core/test_renorm.py",)
DOMAINS = (
    "tests/core/test_domains.py", "tests/models/test_domains_in_modules.py", "tests/tools/test_domains_in_tools.py",
    "tests/tools/test_add_domains.py",
)  # fmt: skip
FRONT = ("tests/models/test_options.py",)
EMPTY = ("tests/core/test_masks_broadcast.py", "tests/core/test_sizes.py")
ACCUMULATE = ("tests/tools/test_accumulate.py",)
TESTING = ("tests/tools/test_testing.py",)


class Mutant(NamedTuple):
    """A defect: `old`, which stands once in the file, becomes `new`."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _in(file: str, tests: tuple[str, ...], *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(f"jaxbn/{file}.py", old, new, tests) for old, new in changes]


MUTANTS = [
    *_in(
        "_core/moments",
        VALUES + MASKS + FORWARD,
        ("return mask if mask.dtype == bool else mask > 0", "return mask if mask.dtype == bool else mask >= 0"),
        ("values if mask.dtype == bool else mask.astype(values.dtype) * values", "values"),
        ("if mask is None or mask.shape[a] == 1)", "if mask is None or mask.shape[a] != 1)"),
        ("count = count.astype(dtype) * repeats", "count = count.astype(dtype)"),
        ("if all(mask.shape[a] == 1 for a in axes):", "if any(mask.shape[a] == 1 for a in axes):"),
        ("return x if mask is None else zero_unless(counts(mask), x)", "return x"),
        (
            "jnp.maximum(divide(square, count) - abs_squared(delta), jnp.zeros((), square.dtype))",
            "divide(square, count)",
        ),
        ("2 * divide(square, moments.count)", "divide(square, moments.count)"),
        ("total + jnp.conj(_centred(*v, *centre))", "total + _centred(*v, *centre)"),
        ("lambda v, _: _weigh(v[2], v[1])", "lambda v, _: v[2]"),
    ),
    *_in(
        "_core/moments",
        ("tests/sync/test_sync_accuracy.py", *SYNC, *COLD, *COLLECTIVES[:1]),
        ("if reduction.two_pass:\n        pivot", "if False:\n        pivot"),
        ("add = as_float32(add, sync.axis_size(reduction.names))", "pass"),
        ("add = as_float32(add, sync.axis_size(reduction.names))", "add = as_float32(add, 1)"),
        ("return zero_unless(jnp.isfinite(mean), mean)", "return mean"),
        ("jnp.zeros(pivot.shape, pivot.dtype) if hint is None else hint", "jnp.zeros(pivot.shape, pivot.dtype)"),
        ("sync.all_sum(v, reduction.names, reduction.groups)", "sync.all_sum(v, reduction.names, None)"),
        (
            "    if reduction.names:\n        total, square = _add(reduction, [total, square])\n",
            "",
        ),
    ),
    *_in(
        "_core/normalize",
        (
            *VALUES,
            *MASKS,
            *_some("core/test_derivatives", "test_slopes_are_those_of_the_formula_on_other_platforms"),
            *FORWARD,
        ),
        ("return inverse if scale is None else scale * inverse.astype(scale.dtype)", "return inverse"),
        ("var + jnp.asarray(epsilon, var.dtype)", "var"),
        ("inverse * inverse * dvar * -0.5", "inverse * inverse * dvar * 0.5"),
        ("inverse * inverse * dvar * -0.5", "inverse * dvar * -0.5"),
        ("None if dmean is None else -a * dmean", "None if dmean is None else a * dmean"),
        ("zero_unless(counts(mask) | jnp.isfinite(like), values)", "values"),
        ("zero_unless(counts(mask) | jnp.isfinite(like), values)", "zero_unless(counts(mask), values)"),
        ("z = z if vectors.bias is None else z + vectors.bias", "pass"),
        ("return jax.jvp(activation, (z,), (dz,))[1]", "return dz"),
        ("return jax.vjp(activation, z)[1](dz)[0]", "return jax.jvp(activation, (z,), (dz,))[1]"),
        ("SLOPE_AT_OUTPUT = (jax.nn.relu, jax.nn.leaky_relu)", "SLOPE_AT_OUTPUT = (jax.nn.silu,)"),
    ),
    *_in(
        "_core/layer",
        (
            *_some("core/test_masks_broadcast", "test_an_output_of_running_statistics_has_their_gradients"),
            *_values("mask per channel", "dense", "bfloat16", "float64"),
            *MASKS,
            *DTYPES,
        ),
        ("dmean, dvar = _where(empty, dlayer.mean, dmean), _where(empty, dlayer.var, dvar)", "pass"),
        (
            "centre = where(empty, running_mean, pivot), where(empty, jnp.zeros_like(running_mean), moments.mean)",
            "pass",
        ),
        ("var = where(empty, running_var, var)", "pass"),
        ("wide = promote(pivot.dtype, affine.dtype)", "wide = pivot.dtype"),
        (
            "None if t is None else t.astype(wide) for t in (dinputs.x, dinputs.residual)",
            "t for t in (dinputs.x, dinputs.residual)",
        ),
    ),
    *_in(
        "_core/state",
        (*COUNTS, *DTYPES, "tests/core/test_averages.py"),
        (
            "usable = (count > 0) & jnp.isfinite(mean) & jnp.isfinite(var)",
            "usable = jnp.isfinite(mean) & jnp.isfinite(var)",
        ),
        ("usable = (count > 0) & jnp.isfinite(mean) & jnp.isfinite(var)", "usable = (count > 0) & jnp.isfinite(mean)"),
        ("usable = (count > 0) & jnp.isfinite(mean) & jnp.isfinite(var)", "usable = (count > 0) & jnp.isfinite(var)"),
        ("jnp.maximum(count - 1, jnp.ones((), count.dtype))", "(count - 1)"),
        ("jnp.maximum(count - 1, jnp.ones((), count.dtype))", "count"),
        ("steps < jnp.iinfo(steps.dtype).max", "steps <= jnp.iinfo(steps.dtype).max"),
        ("old + (of_new * new - of_new * old)", "old + (of_old * new - of_old * old)"),
        ("new + (of_old * old - of_old * new)", "new + (of_new * old - of_new * new)"),
        ("of_old.real >= 0.5", "of_old.real < 0.5"),
        ("jnp.asarray(1 - momentum, dtype)", "1 - jnp.asarray(momentum, dtype)"),
        ("count / (count + 1), 1", "count / (count + 2), 1"),
        ("1 / (count + 1)", "1 - count / (count + 1)"),
        ("jnp.broadcast_to(usable, mean.shape) if steps.ndim else jnp.any(usable)", "jnp.any(usable)"),
        ("zero_unless(usable, value)", "value"),
    ),
    *_in(
        "_core/merge",
        ("tests/core/test_moments.py", *SYNC, *COLD, "tests/core/test_virtual_batch.py"),
        ("mean, var = (zero_unless(full != 0, v) for v in (mean, var))", "pass"),
        ("full * (var + abs_squared(mean))", "full * var"),
        (
            "divide(square, count) - abs_squared(mean), jnp.zeros((), square.dtype)",
            "divide(square, count), jnp.zeros((), square.dtype)",
        ),
        ("wide = promote(narrow, jnp.float64)", "wide = narrow"),
        ("bits = max(23 - (members - 1).bit_length(), 4)", "bits = 23"),
        ("dvars + 2 * conj_times(centred, dmeans)", "dvars"),
        ("dvars + 2 * conj_times(centred, dmeans)", "dvars + conj_times(centred, dmeans)"),
        (
            "zero_unless(n != 0, v) for v in (centred, dpivots + dsets.mean, dsets.var)",
            "v for v in (centred, dpivots + dsets.mean, dsets.var)",
        ),
        ("rest = (mean - pivot.astype(wide)).astype(narrow)", "rest = jnp.zeros_like(pivot)"),
    ),
    *_in(
        "_core/merge",
        ("tests/core/test_long_run.py", "tests/tools/test_accumulate.py"),
        (
            "count, count_rest = _rounded(a + b, a_rest + b_rest, old.count.dtype)",
            "count, count_rest = _rounded(a + b, a_rest, old.count.dtype)",
        ),
        (
            "count, count_rest = _rounded(a + b, a_rest + b_rest, old.count.dtype)",
            "count, count_rest = _rounded(a + b, b_rest, old.count.dtype)",
        ),
        ("_merge_parts(sets, stacked(old.mean_rest, new.mean_rest))", "_merge_parts(sets, jnp.zeros_like(sets.mean))"),
        ("((value - total.astype(value.dtype)) + rest)", "(value - total.astype(value.dtype))"),
    ),
    *_in(
        "_core/axes",
        VALUES + MASKS,
        ("canonical = tuple(sorted(int(a) % ndim for a in axes))", "canonical = tuple(int(a) % ndim for a in axes)"),
        (
            "mask.reshape((1,) * (ndim - mask.ndim) + mask.shape)",
            "mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))",
        ),
    ),
    *_in(
        "_core/chunks",
        (*_values("virtual batches", "masked virtual batches"), *MASKS, "tests/core/test_virtual_batch.py"),
        ("axis = reduction_axes(axes, x.ndim)[0]", "axis = reduction_axes(axes, x.ndim)[-1]"),
        ("if has_parts(v) else v\n", "if True else v\n"),
    ),
    *_in(
        "_core/numbers",
        (*_values("complex64", "dense", "mask per channel", "bfloat16"), "tests/core/test_moments.py", *DTYPES),
        ("lax.square(x.real) + lax.square(x.imag)", "lax.square(x.real)"),
        ("a.real * b.real + a.imag * b.imag", "a.real * b.real"),
        ("return promote(dtype, jnp.float32)", "return jnp.dtype(dtype)"),
        ("return total / (count + empty.astype(count.dtype))", "return total / count"),
    ),
    *_in(
        "_core/linear",
        DERIVATIVES + DTYPES,
        ("transpose=jaxpr_as_fun(forward), n=n)", "transpose=transpose, n=n)"),
        ("if moved:", "if False:"),
    ),
    *_in(
        "_core/averages",
        (*COUNTS, "tests/core/test_averages.py"),
        ("jnp.expm1((count + 1) * rate)", "jnp.expm1((count + 2) * rate)"),
    ),
    *_in(
        "_sync/mapped_axes",
        GROUPS + SYNC,
        ("return zero_unless(mine, everyone).sum(0)", "return (mine.astype(everyone.dtype) * everyone).sum(0)"),
        ("devices, axis_index_groups=groups) if devices", "devices) if devices"),
        ("me = me * lax.axis_size(name) + lax.axis_index(name)", "me = me + lax.axis_index(name)"),
        ("order = devices + lanes[::-1]", "order = devices + lanes"),
        ("list(range(size)) or not all(canonical)", "list(range(size))"),
    ),
    *_in(
        "_sync/sharding",
        MESH,
        ("if spec[i] is None and a.shape[i - len(shape)] == shape[i]:", "if False:"),
        ("if wanted.spec == jax.typeof(x).sharding.spec:\n        return x", "return x"),
    ),
    *_in(
        "_xla/one_read",
        (
            *_some("core/test_export", "test_so_are_moments"),
            *_some("core/test_moments", "test_an_infinite_value_makes_the_mean_infinite_and_no_other_channel"),
            *_some("core/test_sizes", "test_a_step_is_right_for_any_size_on_any_axis"),
            *COLD,
            *_some("sync/test_collectives", "test_plain_jit_over_sharded_arrays_costs_as_many"),
        ),
        ("is_static(x) and 0 not in x.shape and bool(over), mask", "is_static(x) and bool(over), mask"),
        ("is_static(x) and 0 not in x.shape and bool(over), mask", "0 not in x.shape and bool(over), mask"),
        ("of_lane = two_reads if has_mask else near_some_rows", "of_lane = near_some_rows"),
        ("lanes = math.gcd(size, program.pieces)", "lanes = 1"),
        ("return jnp.where(jnp.isfinite(mean), mean, jnp.zeros_like(mean))", "return mean"),
    ),
    *_in(
        "_core/layer",
        CHOICE,
        ("counted = dx if layer.frozen is None else zero_unless(~layer.frozen, dx)", "counted = dx"),
        ("return layer.frozen is not None or inputs.mask is not None", "return inputs.mask is not None"),
        ("moments._replace(count=zero_unless(~layer.frozen, moments.count))", "moments"),
    ),
    *_in(
        "_core/layer",
        RENORM,
        ("dscale, dbias = r * dscale, add(dbias, d * dscale)", "dscale = r * dscale"),
        ("return r, add(layer.bias, d), (r, d)", "return r, layer.bias, (r, d)"),
        (
            "return r * layer.scale, add(layer.bias, d * layer.scale), (r, d)",
            "return r * layer.scale, add(layer.bias, d), (r, d)",
        ),
    ),
    *_in(
        "_core/renorm",
        RENORM,
        ("(var + plus) / (running_var + plus)", "(running_var + plus) / (var + plus)"),
        (", 1 / r_max, r_max)", ", 0 * r_max, r_max)"),
        ("d = jnp.clip(d, -d_max, d_max)", "d = jnp.minimum(d, d_max)"),
        ("lax.stop_gradient((r.astype(running_mean.dtype), d))", "(r.astype(running_mean.dtype), d)"),
        ("(centre[0] - running_mean) + centre[1]", "running_mean - centre[0] - centre[1]"),
    ),
    *_in(
        "_core/options",
        (*COLLECTIVES, *DTYPES),
        ('not get("use_fast_variance"))', "False)"),
        ("if training:\n        rules.warn", "if False:\n        rules.warn"),
    ),
    *_in(
        "_core/checks",
        ERRORS,
        ("if not (epsilon >= 0 and math.isfinite(epsilon)):", "if not epsilon >= 0:"),
    ),
    *_in(
        "_core/rules",
        ERRORS,
        ("if not 0 <= number <= 1:", "if not 0 <= number:"),
        ("if residual.shape != x.shape or residual.dtype != dtype:", "if residual.shape != x.shape:"),
        ("if size < 1 or examples % size:", "if size < 1:"),
        ("if mask.dtype != bool and np.any(values_of(mask, given) < 0):", "if False:"),
        ("if np.any(values_of(value, given) < 0):", "if False:"),
    ),
    *_in(
        "linen",
        LINEN,
        ('batch_stats["mean"] = as_complex_as(x, batch_stats["mean"])', "pass"),
        ("if self.is_initializing():  # nothing", "if False:  # nothing"),
        ("training = training and not self.is_initializing()", "pass"),
        ("return params if self.force_float32_reductions else {", "return params if True else {"),
        ("jnp.float32 if self.force_float32_reductions else self.param_dtype)", "jnp.float32)"),
    ),
    *_in(
        "nnx",
        NNX,
        (
            "if use_running_average is None:\n            use_running_average = self.use_running_average",
            "if True:\n            use_running_average = self.use_running_average",
        ),
        ("if self.promote_dtype is not dtypes.promote_dtype:", "if False:"),
        ("value = jax.lax.stop_gradient(value)", "pass"),
    ),
    # Weights, masks and residuals in each of the passes.
    *_in(
        "_core/moments",
        VALUES + MASKS + FORWARD,
        (
            "return _weigh(total + jnp.conj(_centred(*v, *centre)) * square.astype(total.dtype), v[1])",
            "return total + jnp.conj(_centred(*v, *centre)) * square.astype(total.dtype)",
        ),
        ("_weigh(conj_times(_centred(*v[:2], *centre), v[2]), v[1])", "conj_times(_centred(*v[:2], *centre), v[2])"),
        ("m.astype(jnp.int32) if m.dtype == bool else m.astype(dtype)", "m.astype(dtype)"),
    ),
    *_in(
        "_core/moments",
        ("tests/sync/test_sync_accuracy.py", *SYNC, "tests/core/test_cold_start.py"),
        ("if pivot.dtype in (jnp.float32, jnp.complex64):", "if True:"),
        ("if pivot.dtype in (jnp.float32, jnp.complex64):", "if False:"),
    ),
    *_in(
        "_core/normalize",
        (
            *_some("core/test_masks_broadcast", "test_what_is_not_finite_under_a_mask_is_a_constant_in_a_residual_too"),
            *_values("bfloat16, mask", "complex64, mask, residual"),
            *_some("core/test_renorm", "test_second_derivatives_take_the_correction_as_a_constant"),
            *FORWARD,
        ),
        (
            "z + _live(residual, residual, inputs.mask).astype(z.dtype)",
            "z + residual.astype(z.dtype)",
        ),
        ("vectors.multiplier * _live(dinputs.x, inputs.x, inputs.mask)", "vectors.multiplier * dinputs.x"),
        ("add(dz, _live(dinputs.residual, inputs.residual, inputs.mask))", "add(dz, dinputs.residual)"),
        (
            "_live(dresidual, inputs.residual, inputs.mask).astype(wide)",
            "dresidual.astype(wide)",
        ),
        ("_live(g(arrays, vectors), arrays[0].x, arrays[0].mask)", "g(arrays, vectors)"),
        ("_live(dresidual.astype(wide), inputs.x, inputs.mask)", "dresidual.astype(wide)"),
        ("(dscale, dbias, add(*dcentre), dvar,", "(dscale, dbias, dcentre[0], dvar,"),
    ),
    *_in(
        "_core/normalize",
        (*SYNC, *COLLECTIVES),
        ("sync.as_varying_as(pair, inputs.x)", "pair"),
    ),
    *_in(
        "_core/merge",
        ("tests/core/test_virtual_batch.py", "tests/core/test_moments.py", *GROUPS, *SYNC, *COUNTS),
        ("zero_unless(jnp.isfinite(lead), v - lead.astype(v.dtype))", "(v - lead.astype(v.dtype))"),
        ("(pivots - pivot[None]) + (sets.mean - merged.mean[None])", "pivots - pivot[None]"),
        ("divide((n.astype(dmeans.dtype) * dmeans).sum(0), merged.count)", "dmeans.mean(0)"),
    ),
    *_in(
        "_core/state",
        COUNTS + DTYPES,
        ("rules.warn_of_half_precision(arrays)", "pass"),
        ("wide = promote(old.dtype, jnp.float32)", "wide = old.dtype"),
    ),
    *_in(
        "_core/step",
        (*DTYPES, *FRONT, "tests/core/test_averages.py", *ERRORS),
        ("momentum = static.momentum if arrays.momentum is None else arrays.momentum", "momentum = static.momentum"),
        ("wide = promote(inputs.x.dtype, jnp.float32, affine.dtype)", "wide = promote(inputs.x.dtype, affine.dtype)"),
        ("training=chosen is not True", "training=True"),
    ),
    *_in(
        "_core/batch_norm",
        ("tests/core/test_moments.py", "tests/sync/test_sync_accuracy.py", *DTYPES),
        ("Inputs(x, mask), pivot, None)", "Inputs(x, mask), None, None)"),
    ),
    *_in(
        "_core/layer",
        EMPTY,
        ("inputs.mask is not None or 0 in sizes", "inputs.mask is not None"),
    ),
    *_in(
        "_core/renorm",
        RENORM,
        ("jnp.maximum(v.astype(dtype), jnp.asarray(least, dtype))", "v.astype(dtype)"),
        ("plus = jnp.asarray(epsilon, var.dtype)", "plus = jnp.asarray(1e-5, var.dtype)"),
        ("far = size > d_max", "far = size < d_max"),
        ("return callable(self.r_max) or callable(self.d_max)", "return callable(self.r_max)"),
        (
            "momentum is None or callable(momentum) or (isinstance(renorm, Renorm) and renorm.counts)",
            "momentum is None",
        ),
    ),
    *_in(
        "_core/options",
        (*FRONT, "tests/core/test_averages.py", "tests/sync/test_groups.py"),
        *[
            ("if name not in OF_CALL}", f"if name not in (*OF_CALL, {name!r})}}")
            for name in ("axis", "momentum", "epsilon", "axis_name", "axis_index_groups", "virtual_batch_size")
        ],
        *[
            ("if name not in OF_CALL}", f"if name not in (*OF_CALL, {name!r})}}")
            for name in ("renorm", "use_fast_variance", "unbiased", "activation")
        ],
    ),
    *_in(
        "_core/options",
        (*DTYPES, *VALUES, "tests/core/test_types.py", *ERRORS),
        ("bound=training)", "bound=True)"),
        ('mean = () if training else (batch_stats["mean"],)', "mean = ()"),
        ("wide = promote(accumulator(x.dtype), dtype)", "wide = accumulator(x.dtype)"),
    ),
    *_in(
        "_core/averages",
        ("tests/core/test_sizes.py", "tests/core/test_averages.py"),
        (" if count.size else count.astype(jnp.float32)", ""),
    ),
    *_in("_core/chunks", ("tests/core/test_virtual_batch.py", *MESH), ("if is_split(x):", "if False:")),
    *_in(
        "_core/checks",
        (*ERRORS, *RENORM, "tests/core/test_averages.py"),
        ("elif not least <= check_number(limit, name) < math.inf:", "elif not least <= check_number(limit, name):"),
        ("for count in (0, 1):", "for count in (0,):"),
    ),
    *_in(
        "_core/rules",
        (*ERRORS, *RENORM, *DTYPES),
        ("momentum.shape != () or not jnp.issubdtype(momentum.dtype, jnp.floating)", "momentum.shape != ()"),
        ("any(jnp.iscomplexobj(i) for i in inputs if i is not None)", "jnp.iscomplexobj(inputs[0])"),
        ("jnp.iscomplexobj(x) and not jnp.iscomplexobj(mean)", "False"),
    ),
    *_in(
        "_xla/one_read",
        (
            *_some(
                "core/test_accuracy", "test_output_statistics_and_gradients_keep_five_digits_at_1e5_standard_deviations"
            ),
            *COLLECTIVES,
            *MESH,
            *COLD,
        ),
        ("lane_axis = split[0] if split else over[0] if over else 0", "lane_axis = over[0] if over else 0"),
        ("far = jnp.any((square > 64 * moments.var) & jnp.isfinite(delta))", "far = jnp.any(square < 0)"),
    ),
    *_in(
        "linen",
        (*LINEN, *ACCUMULATE, *CHOICE),
        (', "virtual_batch_size": None}', "}"),
        ('(given or not self.is_mutable_collection("batch_stats"))', "given"),
        ('(given or not self.is_mutable_collection("batch_stats"))', 'not self.is_mutable_collection("batch_stats")'),
        ("check_moments_reach(self)", "pass"),
        ("promote(dtype, jnp.complex64) if is_complex else dtype", "dtype"),
    ),
    *_in(
        "nnx",
        (*NNX, *ACCUMULATE, *RENORM),
        ("if not training:\n                stats |=", "if True:\n                stats |="),
        ('unbiased=getattr(layer, "unbiased", False)', "unbiased=False"),
        ("momentum=layer.momentum", "momentum=0.99"),
        ("use_count=needs_count(momentum, renorm)", "use_count=needs_count(momentum, None)"),
        ("jnp.complex64 if is_complex else jnp.float32", "jnp.float32"),
    ),
    # Statistics per domain.
    *_in(
        "_core/domains",
        DOMAINS,
        ("zero_unless(chosen[(..., *(None,) * (rows.ndim - 1))], rows)", "rows[None]"),
        ("return where(known[(..., *(None,) * num_features)], vector, ", "return where(known | True, vector, "),
        (
            "return zero_unless(here, values[:, None]).sum(0, dtype=values.dtype)",
            "return values.sum(0)[None] * here[0]",
        ),
        ("zero_unless(here, values[:, None])", "(here.astype(values.dtype) * values[:, None])"),
    ),
    *_in(
        "_core/chunks",
        (*DOMAINS, "tests/core/test_virtual_batch.py"),
        ("lambda v: 0 if v.ndim > len(axes) else None, layer", "lambda v: None, layer"),
    ),
    *_in(
        "_core/step",
        DOMAINS,
        ("row_of(chosen, v) if v.ndim > num_features else v", "row_of(chosen, v) if v is not bias else v[0]"),
        ("return moments if chosen is None else in_rows(chosen, moments)", "return moments"),
        ("scale = nan_unless_known(chosen, scale, num_features)", "pass"),
    ),
    *_in(
        "_core/rules",
        (*ERRORS, *DOMAINS, "tests/core/test_virtual_batch.py"),
        ("not all(0 <= d < num_domains for d in parts)", "any(d >= num_domains for d in parts)"),
        ("any(not 0 <= d < num_domains for d in known)", "any(d >= num_domains for d in known)"),
        ("if index.dtype.itemsize > 4:", "if False:"),
        ("len(set(parts)) < len(parts)", "False"),
        ("x, axes) // num_parts", "x, axes)"),
        ("if examples % len(parts):", "if False:"),
    ),
    *_in("linen", DOMAINS, ('"domain": domain}', '"domain": None if domain is None else 0}')),
    *_in("nnx", DOMAINS, ("if affine_per_domain:", "if False:")),
    *_in("_models/notes", DOMAINS, ("if domain is None:", "if True:")),
    *_in(
        "testing",
        TESTING,
        ('"gradients": of_params | of_inputs', '"gradients": of_params'),
        (
            "        if b is None:\n            continue",
            "        b = b[:1] if kind == 'state' else b\n        if b is None:\n            continue",
        ),
        ("size = max(np.abs(a).max(initial=0), largest / 100)", "size = largest"),
        ("return parts.mean(0)", "return parts[0]"),
        ("return value.mean(), {", "return value.sum(), {"),
        ("not np.isin(np.asarray(v), (0, 1)).all()", "True"),
    ),
]

EQUIVALENT: dict[tuple[str, str], str] = {
    ("_core/moments", "return x"): (
        "all who call `_centred` weigh what it gives, and `_weigh` drops what has no weight, NaN too: with NaN, inf or "
        "1e30 under a mask the first and second derivatives in both modes are the same"
    ),
    ("_core/moments", "m.astype(dtype)"): (
        "XLA adds in many partial sums on a CPU: 2^24 + 1000 ones in float32 give that too, as [n, 1] to [n, 3] and as "
        "[8193, 2048, 2]; integers are for a compiler that adds one by one"
    ),
}
"""(file without 'jaxbn/' and '.py', new text) of a mutant that survives -> why no test can see it."""
