"""Networks without shortcuts: VGG for images, a deep convolutional network over bytes for text."""

from torch import Tensor, nn

from prunefuse_ray.networks.resnets import he_initialize


class VGG16(nn.Module):
    """VGG-16 with batch normalization and one linear classifier, as usual on 32x32 images.

    Simonyan and Zisserman, arXiv 1409.1556. (N, C, H, W) with H, W >= 32 -> logits (N, classes).
    """

    def __init__(self, *, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = input_shape[0]
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class TextCNN(nn.Module):
    """A deep convolutional network over bytes in the style of VDCNN-9 (Conneau et al., arXiv 1606.01781).

    Byte embeddings of 16, a convolution to 64, then four stages of two BN-ReLU convolutions at 64, 128, 256 and 512
    channels with max pooling between. The mean over the text and one linear classifier stand for the paper's k-max
    pooling and its three linear layers, which held nine tenths of its parameters: with some thousand labels the maximum
    over a long text does not train (2,000 film reviews: 53 % against 67 %). (N, L) bytes -> logits (N, classes).
    """

    def __init__(self, *, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 16)
        layers: list[nn.Module] = [nn.Conv1d(16, 64, 3, padding=1)]
        inputs = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            if stage > 0:
                layers.append(nn.MaxPool1d(3, stride=2, padding=1))
            for _ in range(2):
                layers += [nn.Conv1d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.classifier = nn.Linear(inputs, classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(x.long()).transpose(1, 2)
        return self.classifier(self.pool(self.features(embedded)).flatten(1))
