"""Networks as the Synaptic-Flow family writes them, and the official PX loop on them.

Every layer multiplies its weight by the buffer ``weight_mask`` in its forward, its bias by
``bias_mask``; a pruner gets the pairs of both. ReLUs are calls of ``F.relu``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- layers ----


def add_masks(module: nn.Module) -> None:
    """Register a mask of ones beside each of a module's parameters."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        module.register_buffer(f"{name}_mask", torch.ones_like(parameter))


def masked(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter times its mask, or None if the module has none."""
    parameter = getattr(module, name)
    return None if parameter is None else getattr(module, f"{name}_mask") * parameter


class Linear(nn.Linear):
    """A linear layer that masks weight and bias."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        add_masks(self)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, masked(self, "weight"), masked(self, "bias"))


class Conv2d(nn.Conv2d):
    """A convolution that masks weight and bias."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        add_masks(self)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, masked(self, "weight"), masked(self, "bias"))


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that masks scale and shift, and counts batches by assignment."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        add_masks(self)

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked = self.num_batches_tracked + 1
        return F.batch_norm(
            input, self.running_mean, self.running_var, masked(self, "weight"),
            masked(self, "bias"), self.training, self.momentum, self.eps,
        )  # fmt: skip


class Identity2d(nn.Module):
    """A shortcut as a layer of ones, which is never trained and can be pruned."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        add_masks(self)

    def forward(self, input: Tensor) -> Tensor:
        return input * masked(self, "weight")


def masked_parameters(
    model: nn.Module, bias: bool = False, batchnorm: bool = False, residual: bool = False
) -> Iterator[tuple[Tensor, nn.Parameter]]:
    """Yield the pairs (mask, parameter) of a model's prunable layers."""
    kinds: tuple[type, ...] = (Linear, Conv2d)
    kinds += (BatchNorm2d,) if batchnorm else ()
    kinds += (Identity2d,) if residual else ()
    for module in model.modules():
        if isinstance(module, kinds):
            for name, parameter in module.named_parameters(recurse=False):
                if name != "bias" or bias:
                    yield getattr(module, f"{name}_mask"), parameter


# ---- networks ----


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(outputs)
        self.conv2 = Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.shortcut: nn.Module = Identity2d(inputs)
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                Conv2d(inputs, outputs, 1, 2, bias=False), BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """ResNet-20, 32, 44, 56 and 110 for images of 32²; `width` is 16 in the paper."""

    def __init__(self, depth: int, classes: int = 10, width: int = 16, dense: bool = False):
        super().__init__()
        self.conv = Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = BatchNorm2d(width)
        widths = [width << stage for stage in range(3) for _ in range((depth - 2) // 6)]
        self.blocks = nn.Sequential(
            *(Block(a, b, 1 + (a < b)) for a, b in zip([width, *widths], widths, strict=False))
        )
        self.fc = (nn.Linear if dense else Linear)(4 * width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn(self.conv(x))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.fc(out.view(out.size(0), -1))


class Convolution(nn.Module):
    """A convolution with bias, BatchNorm if wanted, and a ReLU."""

    def __init__(self, inputs: int, outputs: int, batchnorm: bool):
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, padding=1)
        self.bn = BatchNorm2d(outputs) if batchnorm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x if self.bn is None else self.bn(x))


STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}  # convolutions of VGG-11 and VGG-16


class VGG(nn.Module):
    """VGG-11 and VGG-16 for images of 32²; `width` is 64 in the paper."""

    def __init__(self, depth: int, batchnorm: bool, classes: int = 10, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, count in enumerate(STAGES[depth]):
            for _ in range(count):
                layers.append(Convolution(channels, width << min(stage, 3), batchnorm))
                channels = width << min(stage, 3)
            layers.append(nn.MaxPool2d(2, 2))
        self.layers = nn.Sequential(*layers[:-1])
        self.fc = Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.AvgPool2d(2)(self.layers(x))
        return self.fc(x.view(x.size(0), -1))


class Segmenter(nn.Module):
    """A small network in the manner of DeepLab V3+: dilated convolutions and a pooled branch on the
    last features, joined with early ones, and a class for every pixel."""

    def __init__(self, classes: int = 5, width: int = 8):
        super().__init__()
        self.stem = _conv_norm(3, width, 3, stride=2)
        self.body = nn.Sequential(
            _conv_norm(width, 2 * width, 3, stride=2), _conv_norm(2 * width, 2 * width, 3)
        )
        self.branches = nn.ModuleList(
            [_conv_norm(2 * width, width, 1)]
            + [_conv_norm(2 * width, width, 3, dilation=rate) for rate in (2, 4)]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv_norm(2 * width, width, 1))
        self.project = nn.Sequential(_conv_norm(4 * width, width, 1), nn.Dropout(0.1))
        self.classifier = nn.Sequential(_conv_norm(2 * width, width, 3), Conv2d(width, classes, 1))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        early = self.stem(x)
        late = self.body(early)
        pooled = _resized(self.pooled(late), late)
        late = self.project(torch.cat([*(branch(late) for branch in self.branches), pooled], 1))
        return _resized(self.classifier(torch.cat([early, _resized(late, early)], 1)), x)


def _conv_norm(
    inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1
) -> nn.Module:
    padding = dilation * (size // 2)
    return nn.Sequential(
        Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def initialise(model: nn.Module) -> None:
    """Draw weights as that family does; BatchNorm starts as the identity."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)


# ---- the official loop ----


class OfficialPX:
    """The official code's PX as a pruner of that family, step by step; see
    `pxfast.reference.official` for what it computes.

    Args:
        masked_parameters: pairs (mask, parameter).
    """

    KEPT = ("weight_mask", "bias_mask", "bn", "fc")  # parts of names that are left as they are

    def __init__(self, masked_parameters: Iterable[tuple[Tensor, nn.Parameter]]):
        self.masked_parameters = list(masked_parameters)
        self.scores: dict[int, Tensor] = {}

    def score(self, model: nn.Module, loss: object, dataloader: Any, device: object) -> None:
        """Score by three copies of the model, with F.relu replaced in turn."""
        kernel, activation = copy.deepcopy(model).train(), copy.deepcopy(model).train()
        real = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, tensor in kernel.state_dict().items():
                if not any(part in name for part in self.KEPT):
                    tensor.pow_(2)
            for name, tensor in activation.state_dict().items():
                if not any(part in name for part in self.KEPT):
                    tensor.fill_(1)
        relu = F.relu
        maps: list[Tensor] = []

        def record(x: Tensor, inplace: bool = False) -> Tensor:
            maps.append(x.clone().detach())
            return relu(x, inplace)

        def gate(x: Tensor, inplace: bool = False) -> Tensor:
            return x * torch.where(maps.pop(0) > 0, 1.0, 0.0)

        try:
            for images, _ in dataloader:
                images = images.to(device)
                with torch.no_grad():
                    F.relu = record
                    real(images)
                    F.relu = gate
                    of_data = activation(images.pow(2))
                F.relu = lambda x, *args, **kwargs: x
                of_weights = kernel(torch.ones_like(images))
                (of_data * of_weights).sum().backward()
        finally:
            F.relu = relu
        for (_, parameter), (_, squared) in zip(
            self.masked_parameters, masked_parameters(kernel), strict=True
        ):
            gradient = squared.grad
            self.scores[id(parameter)] = (
                torch.zeros_like(parameter)
                if gradient is None
                else gradient.abs() * parameter.detach().pow(2)
            )

    def mask(self, sparsity: float, scope: str) -> None:
        """Remove every score up to that of the last weight that must go (scope is global)."""
        flat = torch.cat([score.flatten() for score in self.scores.values()])
        removed = int((1 - sparsity) * flat.numel())
        if removed > 0:
            threshold = torch.kthvalue(flat, removed).values
            for mask, parameter in self.masked_parameters:
                kept = self.scores[id(parameter)] > threshold
                mask.copy_(torch.where(kept, torch.ones(()), torch.zeros(())))


def prune_loop(
    model: nn.Module, pruner: Any, dataloader: Any, sparsity: float, scope: str, epochs: int
) -> None:
    """Score and mask in rounds on the exponential schedule; `sparsity` is the fraction kept."""
    model.eval()
    for epoch in range(epochs):
        pruner.score(model, None, dataloader, "cpu")
        pruner.mask(sparsity ** ((epoch + 1) / epochs), scope)
