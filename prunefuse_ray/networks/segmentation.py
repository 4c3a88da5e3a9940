"""Networks that say a class for every pixel: a small one of our own, and torchvision's without their wrapping."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation import LRASPP

from prunefuse_ray.networks.resnets import PreActivationBlock, he_initialize


class SmallFCN(nn.Module):
    """A pre-activation residual network for small images. Each of its three stages is read by a classifier of its own;
    their answers are scaled to the input and summed: Long, Shelhamer and Darrell, "Fully Convolutional Networks for
    Semantic Segmentation", arXiv 1411.4038 (2015), section 4. (N, C, H, W) -> logits (N, classes, H, W)."""

    def __init__(self, *, blocks: int, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        stages, inputs = [], 16
        for stage in range(3):
            outputs, some = 16 * 2**stage, []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                some.append(PreActivationBlock(inputs, outputs, stride, bottleneck=False))
                inputs = outputs
            stages.append(nn.Sequential(*some))
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 * 2**stage) for stage in range(3))
        self.relu = nn.ReLU()
        self.classifiers = nn.ModuleList(nn.Conv2d(16 * 2**stage, classes, 1) for stage in range(3))
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        size, found = x.shape[-2:], []
        x = self.stem(x)
        for stage, norm, read in zip(self.stages, self.norms, self.classifiers, strict=True):
            x = stage(x)
            logits = read(self.relu(norm(x)))
            found.append(functional.interpolate(logits, size=size, mode="bilinear", align_corners=False))
        return found[0] + found[1] + found[2]


class Pixelwise(nn.Module):
    """torchvision's FCN, DeepLabV3 or LRASPP (`models.segmentation`) as one tensor (N, classes, H, W), without the
    auxiliary classifier; the names of the weights are theirs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = model.backbone
        self.classifier: nn.Module = model.classifier
        self.both = isinstance(model, LRASPP)
        """The head reads two resolutions."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        logits = self.classifier(features if self.both else features["out"])
        return functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)
