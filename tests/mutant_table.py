"""Defects to plant in the package, one at a time, and the tests that should see each (see `tests/mutants.py`).

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
    *_some("core/test_cold_start", "test_what_a_mask_hides_is_no_pivot"),
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
FOLDING = (
    "tests/tools/test_fold_places.py", "tests/tools/test_fold_model.py", "tests/tools/test_fold_errors.py",
    "tests/tools/test_fold_nnx.py",
)  # fmt: skip
FOLD_ONE = ("tests/tools/test_fold_one.py", "tests/tools/test_fold_model.py", "tests/tools/test_fold_errors.py")
RECALIBRATE = (
    "tests/tools/test_recalibrate_counts.py", "tests/tools/test_recalibrate_errors.py",
    "tests/tools/test_recalibrate_kinds.py", "tests/tools/test_recalibrate_stacks.py",
    "tests/tools/test_recalibrate.py",
)  # fmt: skip
PROCESSES = ("tests/tools/test_processes.py",)
SUMMARY = ("tests/tools/test_summary.py", "tests/tools/test_domains_in_tools.py", "tests/tools/test_add_domains.py")
ADD_DOMAINS = ("tests/tools/test_add_domains.py",)
REPLICAS = ("tests/tools/test_replicas.py",)
INTEROP = (
    "tests/interop/test_layouts.py", "tests/interop/test_interop_errors.py", "tests/interop/test_interop_torch.py",
    "tests/interop/test_interop_keras.py", "tests/interop/test_names.py",
)  # fmt: skip
FILES = ("tests/interop/test_files.py", "tests/interop/test_hostile_files.py", "tests/interop/test_saving.py")


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
        ("return jax.jvp(f, (z,), (dz,))[1]", "return dz"),
        ("return jax.vjp(f, z)[1](dz)[0]", "return jax.jvp(f, (z,), (dz,))[1]"),
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
        (
            "rest = zero_unless(jnp.isfinite(pivot), mean - pivot.astype(wide)).astype(narrow)",
            "rest = jnp.zeros_like(pivot)",
        ),
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
        "_sync/mapped_axes",
        _some("tools/test_recalibrate_kinds", "test_groups_of_an_axis_that_is_there_are_checked"),
        ("name in _STAND_INS.get() and lax.axis_size(name) == 1", "name in _STAND_INS.get()"),
        ("name in _STAND_INS.get() and lax.axis_size(name) == 1", "lax.axis_size(name) == 1"),
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
        ("return jnp.where(jnp.isfinite(pivot), pivot, jnp.zeros_like(pivot))", "return pivot"),
        ("jnp.clip(v - centre, -far, far)", "v - centre"),
        ("index[a] = (2 * places + 1) * x.shape[a] // 14", "index[a] = np.full(7, x.shape[a] // 2)"),
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
        ("if mask.dtype != bool and not np.all((weights >= 0) & np.isfinite(weights)):", "if False:"),
        ("np.all((weights >= 0) & np.isfinite(weights))", "np.all(weights >= 0)"),
        ("np.all((weights >= 0) & np.isfinite(weights))", "np.all(np.isfinite(weights))"),
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
        ("zero_unless(jnp.isfinite(pivot), mean - pivot.astype(wide))", "(mean - pivot.astype(wide))"),
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
    # Folding.
    *_in(
        "_tools/folding/affine",
        (*FOLDING, "tests/tools/test_fold_one.py"),
        ("(jnp.tile(v, kernel.shape[axis] // max(v.size, 1))", "(jnp.repeat(v, kernel.shape[axis] // max(v.size, 1))"),
        ("else bias.astype(a.dtype) - mean", "else bias.astype(a.dtype)"),
        ("expand(a, (axis,), kernel.ndim), start", "expand(a, (kernel.ndim - 1,), kernel.ndim), start"),
        ("v = jnp.tile(v, copies)", "v = jnp.repeat(v, copies)"),
        (
            "jnp.repeat(v.reshape(groups, -1).T, repeats, axis=1)",
            "jnp.tile(v.reshape(groups, -1).T, (1, repeats))",
        ),
        ("of_group(shift - mean * a)", "of_group(shift - mean)"),
        ("tuple(range(kernel.ndim - num_out_axes))", "tuple(range(kernel.ndim - 1))"),
        ("var=one - jnp.asarray(epsilon, var.dtype)", "var=one"),
        ('batch_stats["mean"] = -shift', 'batch_stats["mean"] = shift'),
        ("wide = promote(kernel.dtype, mean.dtype, jnp.float32)", "wide = promote(kernel.dtype, mean.dtype)"),
        ("shift = added[: affine[1].size]", "shift = added"),
        ("finite &= ~_finite", "finite = ~_finite"),
        ('finite &= ~_finite(layer["kernel"]) | ', "finite &= "),
        (" or not bool(_finite(old)):", ":"),
    ),
    *_in(
        "_tools/folding/pair",
        FOLD_ONE,
        ("previous(kernel, bias, affine, out_axis)", "previous(kernel, bias, affine)"),
        ("_check_bias(bias, kernel.shape[out_axis])", "_check_bias(bias, kernel.shape[-1])"),
        ("following(kernel, bias, affine, feature_group_count)", "following(kernel, bias, affine)"),
        ('old.dtype if layer.get("bias") is None else jnp.result_type(layer["bias"])', "old.dtype"),
        ("check_overflow(old, *new)", "pass"),
    ),
    *_in(
        "_tools/folding/layers",
        (*FOLDING, "tests/tools/test_add_domains.py"),
        ("last = feature_axes(module.axis, x.ndim) == (x.ndim - 1,)", "last = module.axis == -1"),
        ("elif domain is not None:", "elif False:"),
        ("is not None or residual is not None", "is not None"),
        (".startswith((TRAINING, UNDECIDED))", ".startswith(TRAINING)"),
        ("epsilon=float(module.epsilon)", "epsilon=1e-5"),
        ("elif x.ndim - 1 not in axes:", "elif not axes:"),
        ("if isinstance(batch, int) or batch:", "if batch:"),
        ("axes.index(x.ndim - 1) - len(axes) - num_out", "axes.index(x.ndim - 1) - len(axes) - 1"),
        ("out_axis = of_kernel.find(output[-1:]) - len(of_kernel)", "out_axis = -1"),
        ("groups=module.feature_group_count, ", ""),
        ("elif module.mask is not None:", "elif False:"),
        ("window = [(k - 1) * d + 1 for", "window = [k for"),
        ("return window != [1]", "return False"),
        ("_tuple(module.strides, rank), padding)", "(1,) * rank, padding)"),
        ("return None if module.use_bias else", "return None if True else"),
    ),
    *_in(
        "_tools/folding/flow",
        FOLDING,
        ("if times > 1:", "if times > 2:"),
        ("if value in program.outputs:", "if False:"),
        ("equation.primitive not in PASSED or len(values) != 1", "len(values) != 1"),
        ("values = [v for v in equation.reads() if v not in program.fixed]", "values = equation.reads()"),
    ),
    *_in(
        "_tools/folding/region",
        FOLDING,
        ("return value in program.outputs or any(", "return any("),
        ("value in program.outputs or any(i not in numbers for", "value in program.outputs or any(False for"),
        ("if value not in region.exits and value not in program.fixed and is_read_outside(value):", "if False:"),
        ("if value not in region.exits and value not in", "if value not in"),
        ("and value not in program.fixed and is_read_outside(value):", "and is_read_outside(value):"),
        ("(SAME if precise else 0.05) * largest", "SAME * largest"),
        ("(SAME if precise else 0.05) * largest", "0.05 * largest"),
        ('return "" if equation.primitive == "name" else str(equation.eqn.params)', 'return ""'),
    ),
    *_in(
        "_tools/folding/plan",
        FOLDING,
        ("missing = [p for p in fold.pairs() if p not in pairs]", "missing = []"),
        ("if not jax.device_get(is_finite):", "if False:"),
        ("(a.obstacle_next or b.obstacle_next)", "a.obstacle_next"),
        ('["mean"]) != 1:', '["mean"]) < 1:'),
    ),
    *_in(
        "_tools/folding/program",
        FOLDING,
        ("if v not in stop)", ")"),
        ('with jax.default_matmul_precision("highest"):', "if True:"),
    ),
    *_in(
        "_tools/folding/linen",
        FOLDING,
        ("{k: v for k, v in outputs[1].items() if k not in COLLECTIONS}", "outputs[1]"),
        ("or context.orig_method.func is not inspect.unwrap(known.__call__):", 'or context.method_name != "__call__":'),
    ),
    *_in(
        "_tools/folding/nnx",
        FOLDING,
        ("copy.eval()", "pass"),
        ("        model = nnx.clone(self._model)", "        model = self._model"),
    ),
    *_in("_tools/folding/arguments", FOLDING, (" and not isinstance(leaf, np.bool_))", ")")),
    # What enters the batch norms of a model.
    *_in(
        "_tools/collect",
        RECALIBRATE,
        (' for name, tree in variables.items() if name != "batch_moments"}', " for name, tree in variables.items()}"),
        ("values, state = with_axes_bound(collect)", "values, state = collect()"),
        ("            self.notes.clear()\n", ""),
        ("self.calls = self.calls or list(self.notes.calls)", "self.calls += self.notes.calls"),
        ("with_stats(state, stats), copy=True)", "with_stats(state, stats))"),
        ("with_stats(state, stats), copy=True)", "state, copy=True)"),
        ("if jnp.shape(m.mean) != shape:", "if False:"),
    ),
    *_in(
        "_tools/recalibrate",
        RECALIBRATE,
        ('sum(math.prod(s["mean"].shape[:-1]) for s in original.values())', "len(original)"),
        ("with_seen(old, merged, unbiased=unbiased)", "with_seen(old, merged, unbiased=False)"),
        ("if _equal(old, new):", "if number > 1 or _equal(old, new):"),
        ("if evaluated and any(later != path for later in order[i:])", "if evaluated"),
        ("if evaluated and any(later != path", "if any(later != path"),
        ("_check_finite({path: seen.moments.moments", "dict({path: seen.moments.moments"),
    ),
    *_in(
        "_tools/seen",
        RECALIBRATE,
        ("(m.count > 0).astype(jnp.int32)", "jnp.ones_like(m.count, jnp.int32)"),
        ("usable.any(channels), batches.max(channels)", "usable.all(channels), batches.max(channels)"),
        ('old["mean"] = as_complex_as(moments.mean, old["mean"])', "pass"),
        ("fresh[name].astype(v.dtype), v)", "fresh[name].astype(v.dtype), 0)"),
        ("moments, state = collector(state, batch)", "moments, _ = collector(state, batch)"),
    ),
    *_in(
        "_tools/processes",
        PROCESSES,
        ("jax.tree.unflatten(structure, _unpacked(row, arrays)) for row in everyone", "total for row in everyone"),
        ("if not numbers.all():", "if not numbers.any():"),
        ("if failed.any():", "if failed.all():"),
        ("np.cumsum([a.nbytes for a in like])[:-1]", "np.cumsum([a.size for a in like])[:-1]"),
        ("if len(set(spans)) > 1 or len(set(sizes)) > 1:", "if len(set(spans)) > 1:"),
    ),
    *_in(
        "_models/moments_linen",
        RECALIBRATE,
        (
            "hand_in(module, notes.moments_of_input(call), old, noted)",
            "hand_in(module, notes.moments_of_input(call), None, noted)",
        ),
        (
            "        old = written(module)\n        y = run_layer(call)\n",
            "        y = run_layer(call)\n        old = written(module)\n",
        ),
        (" | {path: a.moments for path, a in both.items()}", ""),
    ),
    *_in(
        "_models/moments_nnx",
        (*RECALIBRATE, *ACCUMULATE),
        ("notes.add(_accumulated(variables), new)", "notes.add(zeros_of_layer(new.mean), new)"),
        ("            and not isinstance(variable, Entered)\n", ""),
        ("jax.lax.stop_gradient(value)", "value"),
    ),
    *_in(
        "_models/notes",
        RECALIBRATE,
        (
            'choice = call.args[1] if len(call.args) > 1 else call.kwargs.get("use_running_average")',
            'choice = call.kwargs.get("use_running_average")',
        ),
        ("not isinstance(choice, jax.Array if takes_arrays else Tracer)", "not isinstance(choice, Tracer)"),
        ('"mask": call.kwargs.get("mask")', '"mask": None'),
        ('"axis": call.layer.axis', '"axis": -1'),
        ("tuple(name for name in axis_names(call.layer) if _is_bound(name))", "()"),
    ),
    *_in(
        "_models/unbound_axes",
        RECALIBRATE,
        ("error = error.__cause__ or error.__context__", "error = None"),
        ("if name is None or name in names:", "if name is None or names:"),
        ("if groups is None or not stand_in(names):", "if True:"),
    ),
    *_in(
        "_models/watch",
        RECALIBRATE,
        ("(cls,) if cls is base else (cls, _watched_class(base, base))", "(cls,)"),
        ("copy = nnx.with_vars(copy, ref=False)", "pass"),
        ('if function in (own, getattr(own, "__wrapped__", own)):', "if function is own:"),
    ),
    # Trees of layers.
    *_in(
        "_tools/accumulate",
        ACCUMULATE,
        ('range(jnp.ndim(stats["count"]) if _counts_layers(stats) else 0)', "range(1 if _counts_layers(stats) else 0)"),
        ("unbiased=corrections[path])", "unbiased=False)"),
        ('"mean": as_complex_as(of_step.mean, stats["mean"])', '"mean": stats["mean"]'),
        ("if silent or idle:", "if silent:"),
        ("if count != mean[: len(count)]:", "if False:"),
    ),
    *_in(
        "_tools/summary",
        SUMMARY,
        ('| (np.abs(params.get("scale", np.ones(()))) <= DEAD_SCALE)', ""),
        ("index[: max(np.ndim(v) - num_features * is_param, 0)]", "index[: np.ndim(v)]"),
        ("seen = (count > 0) & ", "seen = "),
        ("((var >= epsilon) | (batch_var >= epsilon))", "(var >= epsilon)"),
        ("np.sqrt(2 / count[seen])", "np.sqrt(1 / count[seen])"),
        ("d > FAR)", "d < FAR)"),
    ),
    *_in(
        "_tools/domains",
        ADD_DOMAINS,
        ("> num_features and path not in without", "> num_features"),
        ("int(domain), mean.ndim - num_features - 1)", "int(domain), 0)"),
        ("axis = v.ndim - num_features\n", "axis = 0\n"),
        ("module.num_domains, module.affine_per_domain = fields", "module.num_domains = fields[0]"),
        ("axis = fewer - num_features\n", "axis = 0\n"),
    ),
    *_in(
        "_tools/replicas",
        REPLICAS,
        ('jnp.max(layer["count"], axis=0)', 'jnp.max(layer["count"])'),
        ("else jnp.asarray(counts).astype(var.dtype)", "else jnp.ones(len(counts), var.dtype)"),
        ("if shape != shapes[0]), None)", "if False), None)"),
    ),
    *_in(
        "_tools/optimizer_masks",
        ("tests/core/test_masks.py",),
        (' and path[i] in ("scale", "bias")', ""),
        ("for i in range(len(path)))", "for i in range(1, len(path)))"),
        ("for i in range(len(path)))", "for i in (len(path) - 1,))"),
    ),
    # Weights from elsewhere.
    *_in(
        "interop/layout",
        INTEROP,
        ("np.flip(np.moveaxis(kernel, (0, 1), (-2, -1)), spatial)", "np.moveaxis(kernel, (0, 1), (-2, -1))"),
        ("image.transpose(2, 3, 1, 0)", "image.transpose(3, 2, 1, 0)"),
        ("reshape(*window, 1, -1)", "reshape(*window, -1, 1)"),
        ("np.swapaxes(np.flip(kernel, tuple(range(kernel.ndim - 2))), -1, -2)", "np.swapaxes(kernel, -1, -2)"),
    ),
    *_in(
        "interop/slots",
        INTEROP,
        ("known = {**opened.layouts, **given}", "known = {**given, **opened.layouts}"),
        ("all(n % 2 == 0 for n in window)", "any(n % 2 == 0 for n in window)"),
    ),
    *_in(
        "interop/transfer",
        INTEROP,
        ("np.any(np.isfinite(value) & ~np.isfinite(new))", "np.any(~np.isfinite(new))"),
        ("np.max(value, initial=0)", "np.ravel(value)[0]"),
        ("np.clip(value.astype(np.int64), jnp.iinfo(dtype).min, jnp.iinfo(dtype).max)", "value"),
        ("if key not in taken and not key.endswith(framework.ignored):", "if key not in taken:"),
    ),
    *_in(
        "interop/names",
        INTEROP,
        ("sorted((n for n in names if n not in taken and", "sorted((n for n in names if"),
        ('.replace(r"\\*", one)', '.replace(r"\\*", ".*")'),
        ('[(0, int(part), "") if part.isdigit() else (1, 0, part)', "[(1, 0, part)"),
    ),
    *_in(
        "interop/found",
        INTEROP,
        (" and math.prod(spatial) > 1:", ":"),
        ('or equation.primitive == "dot_general":', "or False:"),
    ),
    *_in(
        "interop/safetensors",
        FILES,
        ("if start != at or end < start:", "if start < at or end < start:"),
        ("key=lambda name: (-arrays[name].dtype.itemsize, name)", "key=lambda name: name"),
    ),
    *_in(
        "interop/npz",
        FILES,
        ("if name == member.filename or name in arrays:", "if name == member.filename:"),
        ("if entry.read(1):", "if False:"),
        ('"F" if fortran else "C")', '"C")'),
    ),
    *_in(
        "interop/files",
        FILES,
        ("        if path.exists():\n            beside.chmod(path.stat().st_mode)\n", ""),
        ("path = path.resolve()", "pass"),
    ),
    *_in("interop/options", INTEROP, ('"unbiased": True, "use_scale"', '"unbiased": False, "use_scale"')),
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
