"""Weights from and to PyTorch and Keras 3: names, layouts, and the conventions of their batch norms.

|                       | jaxbn, Flax          | PyTorch                    | Keras 3                  |
|-----------------------|----------------------|----------------------------|--------------------------|
| scale, bias           | scale, bias          | weight, bias               | gamma, beta              |
| running statistics    | mean, var            | running_mean, running_var  | moving_mean, moving_variance |
| number of updates     | count                | num_batches_tracked        |                          |
| momentum              | weight of the old    | weight of the new          | weight of the old        |
| running variance      | divided by n         | divided by n - 1           | divided by n             |
| epsilon               | 1e-5                 | 1e-5                       | 1e-3                     |

`BatchNorm(**interop.PYTORCH)` trains on with the running statistics of PyTorch, `BatchNorm(**interop.KERAS)` with
those of Keras.
"""

from jaxbn.interop.files import FileError, load, save
from jaxbn.interop.found import find_layouts
from jaxbn.interop.layout import AfterFlatten, ConvTranspose, Depthwise
from jaxbn.interop.names import TIMM_MOBILENET_V2, TORCHVISION_MOBILENET_V2, TORCHVISION_RESNET
from jaxbn.interop.options import KERAS, PYTORCH, from_torch_options, to_torch_options
from jaxbn.interop.weights import from_keras, from_torch, match_names, to_keras, to_torch

__all__ = [
    "KERAS",
    "PYTORCH",
    "TIMM_MOBILENET_V2",
    "TORCHVISION_MOBILENET_V2",
    "TORCHVISION_RESNET",
    "AfterFlatten",
    "ConvTranspose",
    "Depthwise",
    "FileError",
    "find_layouts",
    "from_keras",
    "from_torch",
    "from_torch_options",
    "load",
    "match_names",
    "save",
    "to_keras",
    "to_torch",
    "to_torch_options",
]
