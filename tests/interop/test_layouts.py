"""Where each number of a kernel goes, index by index: no other library is needed."""

import numpy as np
import pytest
from flax import nnx

from jaxbn import interop


def counted(*shape: int) -> np.ndarray:
    """A different number at each place."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def there_and_back(take, give, theirs, key, shape, layout):
    """The kernel in Flax, after it came back as it was."""
    model = {"params": {"a": {"kernel": np.zeros(shape, np.float32)}}}
    imported = take({key: theirs}, model, layouts={"a": layout})
    np.testing.assert_array_equal(give(imported, layouts={"a": layout})[key], theirs)
    return np.asarray(imported["params"]["a"]["kernel"])


def of_torch(theirs, shape, layout):
    return there_and_back(interop.from_torch, interop.to_torch, theirs, "a.weight", shape, layout)


def of_keras(theirs, shape, layout):
    return there_and_back(interop.from_keras, interop.to_keras, theirs, "a/kernel", shape, layout)


def test_a_dense_kernel_after_an_image():
    height, width, channels, features = 2, 3, 4, 5
    theirs = counted(features, channels * height * width)
    ours = of_torch(theirs, theirs.shape[::-1], interop.AfterFlatten(height, width, channels))
    for h, w, c in np.ndindex(height, width, channels):
        np.testing.assert_array_equal(ours[(h * width + w) * channels + c], theirs[:, (c * height + h) * width + w])


def test_convolutions_of_pytorch():
    theirs = counted(5, 4, 2, 3)  # [O, I, *window]
    ours = of_torch(theirs, (2, 3, 4, 5), None)
    transposed = counted(4, 5, 2, 3)  # [I, O, *window]
    flipped = of_torch(transposed, (2, 3, 4, 5), interop.ConvTranspose())
    straight = of_torch(transposed, (2, 3, 5, 4), interop.ConvTranspose(True))
    for h, w in np.ndindex(2, 3):
        np.testing.assert_array_equal(ours[h, w], theirs[:, :, h, w].T)
        np.testing.assert_array_equal(flipped[h, w], transposed[:, :, 1 - h, 2 - w])
        np.testing.assert_array_equal(straight[h, w], transposed[:, :, h, w].T)


def test_convolutions_of_keras():
    depthwise = counted(2, 3, 4, 2)  # [*window, features, multiplier]
    ours = of_keras(depthwise, (2, 3, 1, 8), interop.Depthwise(4))
    for c, m in np.ndindex(4, 2):
        np.testing.assert_array_equal(ours[:, :, 0, 2 * c + m], depthwise[:, :, c, m])
    transposed = counted(2, 3, 5, 4)  # [*window, O, I]
    flipped = of_keras(transposed, (2, 3, 4, 5), interop.ConvTranspose())
    for h, w in np.ndindex(2, 3):
        np.testing.assert_array_equal(flipped[h, w], transposed[1 - h, 2 - w].T)
    np.testing.assert_array_equal(of_keras(transposed, transposed.shape, interop.ConvTranspose(True)), transposed)
    np.testing.assert_array_equal(of_keras(transposed, transposed.shape, None), transposed)


@pytest.mark.parametrize("given", [None, interop.ConvTranspose()])
def test_a_layout_that_is_given_goes_before_that_of_the_class(given):
    model = nnx.Sequential(nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)))
    kernel = np.asarray(model.layers[0].kernel[...])
    ours = interop.to_torch(model, layouts={"layers/0": given})["layers.0.weight"]
    expected = kernel.transpose(3, 2, 0, 1) if given is None else kernel[::-1, ::-1].transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(ours, expected)
