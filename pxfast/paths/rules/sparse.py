"""Linear layers and convolutions of which a mask keeps few weights: value and path in one pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pxfast import ops
from pxfast.paths.network import Network
from pxfast.paths.opening import Entries, Opening
from pxfast.paths.pathsum import CLOSE, PathSum, Runs, larger
from pxfast.paths.rules.geometry import Convolution
from pxfast.paths.rules.squared import SquaredConvolution
from pxfast.paths.weight import Weight


def sparse_linear_pays(network: Network, x: Any, weight: Weight) -> bool:
    """Whether value and path (of h) had better go through the few kept weights in one pass; a path
    sum that is constant along a dimension costs too little by itself."""
    return (
        weight.mask is not None
        and x.path is not None
        and not isinstance(x.path, Runs)
        and network.gates
        and network.values
        and not network.squares
        and network.autocast is None
        and x.path.shape == x.value.shape
        and network.dtype == x.value.dtype
        and weight.weights.purpose in ("scores", "bound")
        and ops.sparse_dual_linear_pays(x.value, weight.theta, weight.density())
    )


def sparse_linear(network: Network, x: Any, weight: Weight, bias: Any) -> Any:
    """y = x (θ·M)ᵀ + b, with the path through M in the same pass."""
    assert weight.mask is not None
    value, paths = ops.sparse_dual_linear(
        x.value, x.path.mantissa, weight.theta, weight.mask, None if bias is None else bias.detach()
    )
    return network.tensor(value, PathSum(paths, x.path.exponent).normalised(inplace=True))


def sparse_convolution_pays(
    network: Network, x: Any, weight: Weight, geometry: Convolution
) -> bool:
    """Whether value and path had better go through the few kept weights in one pass."""
    return (
        weight.mask is not None
        and x.path is not None
        and network.gates
        and network.values
        and network.autocast is None
        and x.value.dim() == weight.theta.dim() == 4
        and geometry.groups == 1
        and weight.theta.numel() > 0
        and x.value.is_contiguous()
        and x.path.mantissa.dtype == x.value.dtype
        and weight.weights.purpose in ("scores", "bound")
        and ops.sparse_dual_conv2d_pays(x.value, weight.theta, weight.density())
    )


def sparse_convolution(
    network: Network, x: Any, weight: Weight, bias: Any, geometry: Convolution
) -> Any:
    """y = x * (θ·M) + b, with the path through M (h) or θ²·M (J) in the same pass; in h once it is
    known what follows."""
    assert weight.mask is not None
    bias = None if bias is None else bias.detach()
    if not network.squares:
        work = SparseConvolution(x.value, x.path, weight, geometry, bias)
        return network.later(work, geometry.output_shape(x.value.shape, weight.theta.shape))
    value, paths = ops.sparse_dual_conv2d(
        x.value, x.path.mantissa.detach(), weight.theta, weight.mask, bias,
        *geometry.arguments[:3], squared=True,
    )  # fmt: skip
    mantissa = x.path.widened(x.value.shape, [1, 2, 3])
    paths = SquaredConvolution.apply(mantissa, network.anchor, weight, geometry, paths)
    return network.tensor(value, PathSum(paths, x.path.exponent).normalised())


@dataclass(frozen=True, eq=False)
class SparseConvolution:
    """A convolution in h that is still to be computed, with what follows it so far.

    Attributes:
        x: the value that goes in.
        path: the path sum beside it.
        weight: its mask included.
        geometry: stride, padding and dilation.
        bias: added to the value, or None.
        scale: of the outputs, or None.
        residual: value and path sum that are added, or None.
    """

    x: Tensor
    path: PathSum
    weight: Weight
    geometry: Convolution
    bias: Tensor | None
    scale: Tensor | None = None
    residual: tuple[Tensor, PathSum] | None = None

    def run(self, relu: bool = False) -> tuple[Tensor, PathSum]:
        """The value and the path sum at its end, behind a ReLU or not."""
        assert self.weight.mask is not None
        path, residual = self.path, None
        if self.residual is not None:
            value, other = self.residual
            top = larger(path.exponent, other.exponent)
            path = PathSum(path.at_exponent(top), top)
            residual = value, other.at_exponent(top)
        with torch.inference_mode(False), torch.no_grad():
            value, paths = ops.sparse_dual_conv2d(
                self.x, path.mantissa, self.weight.theta, self.weight.mask, self.bias,
                *self.geometry.arguments[:3], scale=self.scale, residual=residual, relu=relu,
            )  # fmt: skip
        return value, PathSum(paths, path.exponent).normalised(inplace=True)

    def reads(self, value: Tensor) -> bool:
        """Whether a change of this value in place would change the result."""
        read = [self.x] if self.residual is None else [self.x, self.residual[0]]
        place = value.untyped_storage().data_ptr()
        return any(tensor.untyped_storage().data_ptr() == place for tensor in read)


def then_batch_norm(
    network: Network, x: Any, mean: Tensor | None, variance: Tensor, scale: Any, bias: Any,
    eps: float,
) -> Any:  # fmt: skip
    """An evaluated BatchNorm at the end of a convolution that is still to be computed; None where
    there is none."""
    work = x.unfinished
    if not isinstance(work, SparseConvolution) or work.residual is not None or mean is None:
        return None
    given = [tensor.detach() for tensor in (mean, variance, scale, bias) if tensor is not None]
    if any(tensor.dtype != work.x.dtype for tensor in given):
        return None
    factor = (variance.detach() + eps).rsqrt()
    if scale is not None:
        factor = factor * scale.detach()
    shift = (mean.detach() if work.bias is None else mean.detach() - work.bias) * -factor
    if bias is not None:
        shift = shift + bias.detach()
    whole = factor if work.scale is None else factor * work.scale
    return network.later(replace(work, scale=whole, bias=shift), x.shape)


def then_add(network: Network, x: Any, y: Any) -> Any:
    """x + y, where one of them is a convolution that is still to be computed and ends with the
    sum; None where that does not go."""
    if getattr(x, "unfinished", None) is None:
        x, y = y, x
    work = getattr(x, "unfinished", None)
    if not isinstance(work, SparseConvolution) or work.residual is not None or y is x:
        return None
    if getattr(y, "path", None) is None or not _goes_with(work, y.value, y.path, x.shape):
        return None
    return network.later(replace(work, residual=(y.value, y.path)), x.shape)


def _goes_with(work: SparseConvolution, value: Tensor, path: PathSum, shape: torch.Size) -> bool:
    same = value.shape == path.shape == shape and value.dtype == work.x.dtype
    return same and bool(abs(work.path.exponent - path.exponent) <= CLOSE)  # so none drowns


def then_relu(network: Network, x: Any) -> Any:
    """A ReLU at the end of a convolution that is still to be computed; None where there is
    none."""
    if not isinstance(x.unfinished, SparseConvolution):
        return None
    value, path = x.unfinished.run(relu=True)
    result = network.tensor(value, path)
    result.opening = Opening("relu", Entries(path, tuple(value.shape)))  # in h nothing enters it
    return result
