"""Importing the weights of a model from PyTorch and Keras 3, and exporting them, by name."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxbn._tools.checks import check_iterable
from jaxbn.interop.layout import KERAS, TORCH, Layout
from jaxbn.interop.names import check_names, resolve
from jaxbn.interop.slots import open_model
from jaxbn.interop.transfer import as_arrays, give, layers, take


def from_torch(
    state_dict: Mapping[str, Any],
    model: Any,
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
    layouts: Mapping[str, Layout] | None = None,
) -> Any:
    """The model with the weights of a PyTorch `state_dict`. Either all of them fit or none is imported.

    Args:
      state_dict: name -> array or tensor, as `model.state_dict()` or `interop.load(file)` give it.
      model: variables {'params': ..., 'batch_stats': ...} of linen (arrays, or what `jax.eval_shape` makes of `init`),
        or an nnx module. The weights are for this model: it gives names, shapes and dtypes, and is not changed.
      names: path of a layer -> its name in PyTorch, where that differs: {'Conv_0': 'features.0'}. By default
        'layer1/0/bn1' is 'layer1.0.bn1'. `*` in both makes a row a pattern (see `interop.match_names`);
        `interop.TORCHVISION_RESNET`, `TORCHVISION_MOBILENET_V2` and `TIMM_MOBILENET_V2` are such tables.
      prefix: in front of every name in PyTorch, such as 'module.' after training with `DistributedDataParallel`.
      layouts: path of a layer -> `interop.ConvTranspose(transpose_kernel)`; or, for a dense layer behind a flattened
        image, `interop.AfterFlatten(height, width, channels)`; or None for neither. An nnx module shows its own
        transposed convolutions. In variables, a kernel with as many inputs as outputs whose name or even window
        suggests a transposed convolution must be named here; `interop.find_layouts` finds all of them in the model.

    Returns:
      New variables or a new module, of the structure and dtypes of `model`. `num_batches_tracked` becomes the `count`
      of a batch norm that has one, and is dropped otherwise.

    Raises:
      ValueError: entries are missing, left over, of a different shape or outside the range of the model's dtype. The
        message has the first few, their number and, if there are any, names with which all would fit. Or one name
        stands for two layers.
      TypeError: an entry is not an array, or `model` is not a model.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from jaxbn import interop
      >>> like = {"params": {"fc": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}, "batch_stats": {}}
      >>> state_dict = {"fc.weight": np.array([[1, 2, 3], [4, 5, 6]]), "fc.bias": np.zeros(2)}
      >>> interop.from_torch(state_dict, like)["params"]["fc"]["kernel"].tolist()
      [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    """
    return take(TORCH, state_dict, model, names, prefix, layouts)


def match_names(
    state_dict: Mapping[str, Any], model: Any, names: Mapping[str, str], *, prefix: str = ""
) -> dict[str, str]:
    """The names of the layers that a table of patterns finds, one by one, for `from_torch` and `to_torch`.

    A row is `pattern in the model: pattern in the checkpoint`. `*` stands for anything within one part of a name, `**`
    for any number of parts. Matches are paired by kind (convolutions, dense layers, batch norms, others) and in
    order (2 before 10); both sides must have the same number. Rows are applied from the top, and what one row has
    matched is not available to the next.

    Names do not settle the padding: a strided convolution or pooling with padding 1 in PyTorch corresponds to
    `padding=1` in Flax, not to 'SAME'.

    Args:
      state_dict, model, prefix: as in `from_torch`.
      names: the table.

    Returns:
      path of a layer -> its name in PyTorch, without the prefix.

    Raises:
      ValueError: a row matches more layers on one side than on the other.
      TypeError: as `from_torch`.

    Example:
      >>> import numpy as np
      >>> from jaxbn import interop
      >>> block = {"Conv_0": {"kernel": np.ones((1, 1, 2, 2))}, "Conv_1": {"kernel": np.ones((1, 1, 2, 2))}}
      >>> state_dict = {f"layer{n}.0.conv{k}.weight": np.ones((2, 2, 1, 1)) for n in (1, 2) for k in (1, 2)}
      >>> model = {"params": {"ResNetBlock_0": block, "ResNetBlock_1": block}}
      >>> interop.match_names(state_dict, model, {"ResNetBlock_*/Conv_*": "layer*.*.conv*"})["ResNetBlock_1/Conv_0"]
      'layer2.0.conv1'
    """
    check_names(names, prefix)
    theirs = layers(TORCH, as_arrays(state_dict, TORCH.weights), prefix)
    return resolve(names or {}, open_model(model).kinds, theirs, TORCH.separator)


def to_torch(
    model: Any,
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
    layouts: Mapping[str, Layout] | None = None,
) -> dict[str, np.ndarray]:
    """The weights of a model as a PyTorch `state_dict` of NumPy arrays.

    `torch_model.load_state_dict({k: torch.from_numpy(v) for k, v in state_dict.items()})` takes it, and so does
    `interop.save('model.safetensors', state_dict)`.

    Args:
      model: variables {'params': ..., 'batch_stats': ...} of linen, or an nnx module.
      names, prefix, layouts: as in `from_torch`.

    Returns:
      name -> array; bfloat16 as float32, which NumPy and PyTorch exchange, `count` as int64.

    Raises:
      ValueError, TypeError: as `from_torch`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxbn import interop
      >>> interop.to_torch({"params": {"fc": {"kernel": jnp.zeros((3, 2))}}, "batch_stats": {}})["fc.weight"].shape
      (2, 3)
    """
    return give(TORCH, model, names, prefix, layouts)


def from_keras(
    weights: Mapping[str, Any] | Iterable[Any],
    model: Any,
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
    layouts: Mapping[str, Layout] | None = None,
) -> Any:
    """The model with the weights of a Keras 3 model. Either all of them fit or none is imported.

    Args:
      weights: `keras_model.weights`, or path -> array, with paths like 'sequential/conv2d/kernel'.
      model, names: as in `from_torch`; a path is the same in Keras by default.
      prefix: in front of every path in Keras, such as 'sequential/'.
      layouts: path of a layer -> `interop.ConvTranspose(transpose_kernel)` or `interop.Depthwise(features)`.

    Returns:
      New variables or a new module, of the structure and dtypes of `model`. A `count` stays as it is, since Keras has
      none. The states of Keras' random generators are ignored.

    Raises:
      ValueError, TypeError: as `from_torch`.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from jaxbn import interop
      >>> like = {"params": {"bn": {"scale": jnp.zeros(1)}}, "batch_stats": {"bn": {"mean": jnp.zeros(1)}}}
      >>> weights = {"net/bn/gamma": np.array([2.0]), "net/bn/moving_mean": np.array([3.0])}
      >>> interop.from_keras(weights, like, prefix="net/")["batch_stats"]["bn"]["mean"].tolist()
      [3.0]
    """
    if not isinstance(weights, Mapping):
        rule = "be keras_model.weights, or map paths to arrays"
        check_iterable(weights, "weights", rule)
        weights = list(weights)
        for w in weights:
            if not isinstance(getattr(w, "path", None), str):
                raise TypeError(f"`weights` must {rule}, got {type(w).__name__} without a path.")
        weights = {w.path: w for w in weights}
    return take(KERAS, weights, model, names, prefix, layouts)


def to_keras(
    model: Any,
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
    layouts: Mapping[str, Layout] | None = None,
) -> dict[str, np.ndarray]:
    """The weights of a model by their paths in Keras 3: `for w in keras_model.weights: w.assign(weights[w.path])`.

    Args:
      model, names, prefix, layouts: as in `from_keras`.

    Returns:
      path -> array.

    Raises:
      ValueError, TypeError: as `from_keras`.
    """
    return give(KERAS, model, names, prefix, layouts)
