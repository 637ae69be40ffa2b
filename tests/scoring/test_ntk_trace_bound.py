"""ntk_trace_bound(): above the exact trace of the tangent kernel."""

from __future__ import annotations

import nets
import pytest
import torch
from tolerances import SMALL_NET
from torch import nn

import pxfast
from pxfast.errors import RangeError
from pxfast.reference import px
from pxfast.reference.paths import exact_ntk_trace

F64 = torch.float64


@pytest.mark.parametrize("density", [None, 0.85])
@pytest.mark.parametrize("build", [nets.mlp, nets.conv, nets.maxpool, nets.residual, nets.leaky])
def test_the_trace_of_the_ntk_is_below_the_bound(build, density):
    shape = next(net.shape for net in nets.NETS.values() if net.build is build)
    for seed in range(3):
        model = build(seed, bias=False).double()
        x = nets.random_batch(shape, 3, seed).double()
        masks = nets.random_masks(model, density, seed) if density else None
        bound = pxfast.ntk_trace_bound(model, [x[:1], x[1:]], masks=masks)
        assert bound == pytest.approx(px.ntk_trace_bound(model, x, masks), rel=SMALL_NET[F64])
        assert 0 < exact_ntk_trace(model, x, masks) <= bound * (1 + SMALL_NET[F64])


def test_a_bound_beyond_float64_is_an_error():
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(4)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e18)
    with pytest.raises(RangeError, match=r"beyond float64"):
        pxfast.ntk_trace_bound(nn.Sequential(*model, *model, *model), torch.ones(1, 2))
