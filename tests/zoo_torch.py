"""The networks of `zoo_models` in PyTorch, under the names of torchvision and timm."""

from zoo_models import BLOCKS, STAGES, ResNet


def make_torch(torch, network: str):
    """The network of PyTorch, with weights and statistics that are not those of the start."""
    torch.manual_seed(0)
    model = {
        "resnet": lambda: _resnet(torch, bottleneck=False),
        "bottleneck resnet": lambda: _resnet(torch, bottleneck=True),
        "mobilenet_v2": lambda: _mobilenet(torch),
        "mobilenet_v2 of timm": lambda: _timm_mobilenet(torch),
    }[network]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def _conv(torch, inputs, outputs, size, stride=1, groups=1):
    return torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def _resnet(torch, bottleneck: bool):
    class Block(torch.nn.Module):
        def __init__(self, inputs, features, stride):
            super().__init__()
            outputs = features * 4 if bottleneck else features
            shapes = (
                ((inputs, features, 1), (features, features, 3, stride, 2), (features, outputs, 1))
                if bottleneck
                else ((inputs, features, 3, stride), (features, features, 3))
            )
            self.number = len(shapes)
            for i, shape in enumerate(shapes, 1):
                setattr(self, f"conv{i}", _conv(torch, *shape))
                setattr(self, f"bn{i}", torch.nn.BatchNorm2d(shape[1]))
            self.downsample = None
            if inputs != outputs or stride != 1:
                self.downsample = torch.nn.Sequential(
                    _conv(torch, inputs, outputs, 1, stride), torch.nn.BatchNorm2d(outputs)
                )

        def forward(self, x):
            y = x
            for i in range(1, self.number + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = torch.relu(y) if i < self.number else y
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = torch.nn.Conv2d(3, 4, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(4)
            width = 4
            for stage, size in enumerate(ResNet.sizes):
                blocks = []
                for i in range(size):
                    blocks.append(Block(width, 4 * 2**stage, 2 if stage and not i else 1))
                    width = 4 * 2**stage * (4 if bottleneck else 1)
                setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
            self.fc = torch.nn.Linear(width, 7)

        def forward(self, x):
            x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.fc(x.mean((2, 3)))

    return Network()


def _mobilenet(torch):
    def conv_norm(inputs, outputs, size, stride=1, groups=1):
        conv = _conv(torch, inputs, outputs, size, stride, groups)
        return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU6())

    class Block(torch.nn.Module):
        def __init__(self, inputs, outputs, stride, expansion):
            super().__init__()
            hidden = inputs * expansion
            layers = [conv_norm(inputs, hidden, 1)] if expansion > 1 else []
            layers += [conv_norm(hidden, hidden, 3, stride, hidden), _conv(torch, hidden, outputs, 1)]
            self.conv = torch.nn.Sequential(*layers, torch.nn.BatchNorm2d(outputs))
            self.adds = inputs == outputs and stride == 1

        def forward(self, x):
            return x + self.conv(x) if self.adds else self.conv(x)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            widths = [8, *(features for features, _, _ in BLOCKS)]
            blocks = [Block(w, *block) for w, block in zip(widths[:-1], BLOCKS, strict=True)]
            self.features = torch.nn.Sequential(conv_norm(3, 8, 3, 2), *blocks, conv_norm(widths[-1], 16, 1))
            self.classifier = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(16, 7))

        def forward(self, x):
            return self.classifier(self.features(x).mean((2, 3)))

    return Network()


def _timm_mobilenet(torch):
    class Block(torch.nn.Module):
        def __init__(self, inputs, outputs, stride, expansion):
            super().__init__()
            hidden = inputs * expansion
            layers = [("pw", (inputs, hidden, 1))] if expansion > 1 else []
            layers += [("dw", (hidden, hidden, 3, stride, hidden))]
            layers += [("pwl" if expansion > 1 else "pw", (hidden, outputs, 1))]
            self.names = [name for name, _ in layers]
            for i, (name, shape) in enumerate(layers, 1):
                setattr(self, f"conv_{name}", _conv(torch, *shape))
                setattr(self, f"bn{i}", torch.nn.BatchNorm2d(shape[1]))
            self.adds = inputs == outputs and stride == 1

        def forward(self, x):
            y = x
            for i, name in enumerate(self.names, 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv_{name}")(y))
                y = torch.nn.functional.relu6(y) if i < len(self.names) else y
            return x + y if self.adds else y

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_stem, self.bn1 = _conv(torch, 3, 8, 3, 2), torch.nn.BatchNorm2d(8)
            widths = [8, *(features for features, _, _ in BLOCKS)]
            self.blocks = torch.nn.Sequential(
                *(torch.nn.Sequential(*(Block(widths[i], *BLOCKS[i]) for i in stage)) for stage in STAGES)
            )
            self.conv_head, self.bn2 = _conv(torch, widths[-1], 16, 1), torch.nn.BatchNorm2d(16)
            self.classifier = torch.nn.Linear(16, 7)

        def forward(self, x):
            relu6 = torch.nn.functional.relu6
            x = self.blocks(relu6(self.bn1(self.conv_stem(x))))
            return self.classifier(relu6(self.bn2(self.conv_head(x))).mean((2, 3)))

    return Network()
