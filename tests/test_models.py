from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pxfast.models import resnet20, vgg16


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def seeded(build, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return build(**arguments).eval()


def resnet20_parameters(num_classes: int, in_channels: int) -> int:
    """By hand: 3x3 kernels, two 1x1 projections, scale and shift of each norm, the classifier."""
    widths = [(in_channels, 16), *[(16, 16)] * 6]
    widths += [(16, 32), *[(32, 32)] * 5, (32, 64), *[(64, 64)] * 5]
    norms = [out for _, out in widths] + [32, 64]
    kernels = sum(9 * k * o for k, o in widths) + 16 * 32 + 32 * 64
    return kernels + 2 * sum(norms) + 65 * num_classes


@pytest.mark.parametrize("build", [resnet20, vgg16])
@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_have_the_asked_shape(build, batchnorm, in_channels):
    model = seeded(build, num_classes=7, in_channels=in_channels, batchnorm=batchnorm)
    with torch.no_grad():
        logits = model(torch.randn(2, in_channels, 32, 32))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("size", [4, 8, 16])
def test_resnet20_takes_small_images(size):
    assert seeded(resnet20)(torch.randn(1, 3, size, size)).shape == (1, 10)


@pytest.mark.parametrize(("num_classes", "in_channels"), [(10, 3), (7, 1)])
def test_resnet20_has_the_parameters_counted_by_hand(num_classes, in_channels):
    model = resnet20(num_classes, in_channels)
    assert parameters(model) == resnet20_parameters(num_classes, in_channels)
    assert f"{parameters(resnet20()) / 1e6:.2f}" == "0.27"  # million, He et al., table 6


def test_vgg16_has_thirteen_convolutions_and_one_linear_layer():
    model = vgg16()
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert kinds == [nn.Conv2d] * 13 + [nn.Linear]
    assert parameters(model) == 14_724_042  # 14,710,464 kernels, 2·4224 of norms, 5130 at the end


@pytest.mark.parametrize("build", [resnet20, vgg16])
def test_batchnorm_false_gives_biases_instead(build):
    with_norm, without = build(), build(batchnorm=False)
    convolutions = [m for m in without.modules() if isinstance(m, nn.Conv2d)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in without.modules())
    assert all(m.bias is not None for m in convolutions)
    assert all(m.bias is None for m in with_norm.modules() if isinstance(m, nn.Conv2d))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in with_norm.modules()) == len(convolutions)


def test_weights_have_the_variance_of_kaiming_initialisation():
    for module in seeded(vgg16).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.double()
            expected = math.sqrt(2 / weight[0].numel())
            # The standard deviation of n normal numbers scatters by 1/√(2n); 5 of these.
            assert abs(weight.std() / expected - 1) < 5 / math.sqrt(2 * weight.numel())
            assert module.bias is None or not module.bias.any()


def test_a_seed_fixes_the_weights():
    first, second = seeded(resnet20), seeded(resnet20)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
