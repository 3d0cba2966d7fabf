"""The PyTorch side of `fine_tune.py`: trains a network on digits and writes its weights to a safetensors file."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import Dataset
from jaxbn import interop


def train(data: Dataset, path: Path, epochs: int, seed: int) -> None:
    """Trains the network of `fine_tune.Net` in PyTorch and saves it, with its logits for the test images.

    Args:
      data: upright digits.
      path: that of the safetensors file.
      epochs: number of passes over the training images.
      seed: that of the weights and of the order of the images.
    """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(32)
            self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
            self.bn3 = nn.BatchNorm2d(32)
            self.head = nn.Linear(32 * 4 * 4, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(self.bn2(self.conv2(x)))
            x = torch.relu(self.bn3(self.conv3(x)))
            return self.head(torch.flatten(x, 1))

    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    rng = np.random.default_rng(seed)
    batch_size = 64
    per_epoch = len(data.train_x) // batch_size
    for _ in tqdm(range(epochs), desc="PyTorch", unit="epoch"):
        for batch in rng.permutation(len(data.train_x))[: per_epoch * batch_size].reshape(per_epoch, batch_size):
            optimizer.zero_grad()
            logits = net(channels_first(torch, data.train_x[batch]))
            nn.functional.cross_entropy(logits, torch.from_numpy(data.train_y[batch]).long()).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        logits = net(channels_first(torch, data.test_x)).numpy()
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    interop.save(path, {**arrays, "test_logits": logits})


def channels_first(torch, x: np.ndarray):
    """[n, height, width, channels] -> tensor [n, channels, height, width]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
