"""The two networks of the demo and the benchmarks, in their CIFAR forms.

They are written the way the community writes them; nothing in them knows about pruning.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def resnet20(num_classes: int = 10, in_channels: int = 3, batchnorm: bool = True) -> ResNet:
    """ResNet-20 for small images, as the PX paper uses it: 1 by 1 convolutions as shortcuts.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with
    its projection shortcuts (option B) where the size changes.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input images.
        batchnorm: False leaves the normalisation out and gives the convolutions a bias.

    Returns:
        A network from images ``[N, in_channels, H, W]`` (32 by 32 in the paper, any size of at
        least 4 by 4 works) to logits ``[N, num_classes]``; 0.27 million parameters.
    """
    return ResNet(3, num_classes, in_channels, batchnorm)


def vgg16(num_classes: int = 10, in_channels: int = 3, batchnorm: bool = True) -> VGG:
    """VGG-16 for small images: 13 convolutions, global pooling and one linear layer.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", ICLR 2015, configuration D, with the single classifier usual for CIFAR.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input images.
        batchnorm: False leaves the normalisation out and gives the convolutions a bias.

    Returns:
        A network from images ``[N, in_channels, H, W]`` (at least 32 by 32) to logits
        ``[N, num_classes]``; 14.7 million parameters.
    """
    return VGG(num_classes, in_channels, batchnorm)


class BasicBlock(nn.Module):
    """Two 3 by 3 convolutions beside a shortcut: the identity, or a strided 1 by 1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, batchnorm: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride, batchnorm)
        self.bn1 = _norm(channels, batchnorm)
        self.conv2 = _conv3x3(channels, channels, 1, batchnorm)
        self.bn2 = _norm(channels, batchnorm)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != in_channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=not batchnorm)
            self.shortcut = nn.Sequential(projection, _norm(channels, batchnorm))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, in_channels, H, W]`` to ``[N, channels, H/stride, W/stride]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network of three stages with 16, 32 and 64 channels."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int, batchnorm: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 16, 1, batchnorm)
        self.bn1 = _norm(16, batchnorm)
        self.layer1 = _stage(blocks, 16, 16, 1, batchnorm)
        self.layer2 = _stage(blocks, 16, 32, 2, batchnorm)
        self.layer3 = _stage(blocks, 32, 64, 2, batchnorm)
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class VGG(nn.Module):
    """VGG-16: five groups of 3 by 3 convolutions, each followed by max-pooling."""

    def __init__(self, num_classes: int, in_channels: int, batchnorm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for widths in _VGG16_WIDTHS:
            for width in widths:
                layers.append(_conv3x3(channels, width, 1, batchnorm))
                if batchnorm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def _conv3x3(in_channels: int, channels: int, stride: int, batchnorm: bool) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=not batchnorm)


def _norm(channels: int, batchnorm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batchnorm else nn.Identity()


def _stage(
    blocks: int, in_channels: int, channels: int, stride: int, batchnorm: bool
) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, batchnorm)
    rest = (BasicBlock(channels, channels, 1, batchnorm) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _initialise(model: nn.Module) -> None:
    """Kaiming initialisation (He et al., ICCV 2015) of every weight; biases start at 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
