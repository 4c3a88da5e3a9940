"""Pre-activation residual networks for small images.

He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027 (2016); the wide ones: Zagoruyko and
Komodakis, arXiv 1605.07146 (2016). Where a block changes the number of channels or the size, its shortcut is a 1x1
convolution: zero-padding shortcuts tie channels to positions, which pruning would break.
"""

from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv, twice (basic) or three times (bottleneck), plus the shortcut. (N, C, H, W) -> (N, C', H', W')."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            widths, kernels, strides = [inputs, outputs // 4, outputs // 4, outputs], [1, 3, 1], [1, stride, 1]
        else:
            widths, kernels, strides = [inputs, outputs, outputs], [3, 3], [stride, 1]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        self.convs = nn.ModuleList(map(_conv, widths[:-1], widths[1:], kernels, strides))
        self.relu = nn.ReLU()
        changes = inputs != outputs or stride != 1
        self.shortcut = _conv(inputs, outputs, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norms[0](x))
        # A projected shortcut reads the activated input, as in the paper's code: one normalization serves both paths.
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.convs[0](out)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            out = conv(self.relu(norm(out)))
        return out + shortcut


class PreActivationResNet(nn.Module):
    """Three stages of blocks at full, half and quarter resolution. (N, C, H, W) -> logits (N, classes)."""

    def __init__(
        self, *, blocks: int, width: int = 1, bottleneck: bool = False, classes: int, input_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        expansion = 4 if bottleneck else 1
        self.stem = _conv(input_shape[0], 16, 3)
        stages, inputs = [], 16
        for stage in range(3):
            outputs = 16 * 2**stage * width * expansion
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(PreActivationBlock(inputs, outputs, stride, bottleneck=bottleneck))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(self.pool(x).flatten(1))


def he_initialize(network: nn.Module) -> None:
    """He's normal initialization (arXiv 1502.01852) of all convolutions; biases zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
