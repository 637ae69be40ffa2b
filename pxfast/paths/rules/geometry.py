"""The geometry of a convolution: everything but its weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pxfast import ops
from pxfast.paths.rules.edges import Window
from pxfast.paths.shapes import convolution_shape
from pxfast.paths.weight import Weight

Ints = tuple[int, ...]


class Convolution:
    """The geometry of a convolution: everything but its weight."""

    def __init__(
        self,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        transposed: bool,
        output_padding: Ints,
        groups: int,
    ):
        self.arguments = (stride, padding, dilation, transposed, output_padding)
        self.transposed = transposed
        self.groups = groups

    def output_shape(self, shape: torch.Size, weight: torch.Size) -> tuple[int, ...]:
        """[N, O, *space] (or without N) for an input and a weight of the given shapes."""
        return convolution_shape(shape, weight, *self.arguments, self.groups)

    def squared_pays(self, x: Tensor, weight: Weight) -> bool:
        """Whether ops.squared_conv2d had better do this convolution and its backward."""
        if not self._is_scored_2d(x, weight):
            return False
        outputs = self.output_shape(x.shape, weight.theta.shape)
        positions = outputs[0] * math.prod(outputs[2:])
        small = ops.squared_conv2d_pays(x, positions, 0.0)  # only then are kept weights counted
        return small and ops.squared_conv2d_pays(x, positions, weight.density())

    def squared_columns_pay(self, dy: Tensor, x: Tensor, weight: Weight) -> bool:
        """Whether the backward had better go through the columns of the input."""
        if not self._is_scored_2d(x, weight):
            return False
        return ops.squared_conv2d_columns_pay(dy, x, weight.theta, self.groups)

    def _is_scored_2d(self, x: Tensor, weight: Weight) -> bool:
        scored = weight.weights.purpose == "scores"
        return scored and not self.transposed and x.dim() == weight.theta.dim() == 4

    def masked_ones_pay(self, x: Tensor, weight: Weight) -> bool:
        """Whether path sums of the data pass had better go through the bits of the mask."""
        return (
            not self.transposed
            and x.dim() == weight.theta.dim() == 4
            and ops.masked_ones_pays(x, weight.theta.shape[0] // self.groups)
        )

    def of_ones(self, x: Tensor, weight: Weight) -> Tensor:
        """Convolve [N, C, H, W] with the mask."""
        kernel, geometry = weight.theta.shape[2:], self.arguments[:3]
        return ops.masked_ones_conv2d(x, weight.bits(), kernel, *geometry, groups=self.groups)

    def is_even(self) -> bool:
        """Whether every position sees a whole window, so that alike inputs make alike outputs."""
        _, padding, _, transposed, _ = self.arguments
        return not transposed and not any(padding)

    def windows(self, weight: torch.Size) -> list[Window]:
        """How the kernel slides over each dimension of space."""
        sizes = zip(*self.arguments[:3], weight[2:], strict=True)
        return [
            Window(stride, padding, dilation * (size - 1) + 1)
            for stride, padding, dilation, size in sizes
        ]

    def over_window(self, x: Tensor, kernel: Ints) -> Tensor:
        """The sum over the window of a kernel, channel by channel of [N, C, *space]."""
        stride, padding, _, transposed, _ = self.arguments
        if not transposed and not any(padding) and math.prod(kernel) == 1:
            return x[(..., *(slice(None, None, step) for step in stride))]
        channels = x.shape[1]
        return self(x, x.new_ones((channels, 1, *kernel)), groups=channels)

    def __call__(self, x: Tensor, weight: Tensor, groups: int | None = None) -> Tensor:
        """Convolve [N, C, *space] without a bias."""
        return torch.convolution(
            x, weight, None, *self.arguments, self.groups if groups is None else groups
        )
