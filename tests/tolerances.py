"""Every tolerance of the tests, with its derivation. Nothing is loosened to make a run green.

u = eps/2 is the unit roundoff of a dtype. All terms of a path sum are non-negative, so nothing
cancels: a sum of K terms is off by at most K·u relative, and a chain of L layers by the sum over
the layers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Assert max |actual - expected| <= tolerance · max |expected|, in float64; NaN fails.

    Relative to the largest entry: entries of one tensor come from sums of the same terms.
    """
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    if actual.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max()
    scale = expected.double().abs().max()
    assert error <= tolerance * scale, (
        f"{what}: off by {error / scale:.2e}, allowed {tolerance:.2e}"
    )


_U32, _U64 = torch.finfo(torch.float32).eps / 2, torch.finfo(torch.float64).eps / 2

# Scores of the small test networks: at most 8 layers of at most 50 terms each, forward and
# backward, and R over at most 100 entries: (2·8·50 + 100)·u. Gates (erf, exp, divisions by σ²+ε)
# add tens of u a layer.
SMALL_NET = {torch.float32: 1000 * _U32, torch.float64: 1000 * _U64}

# Scores of ResNet-20 and VGG-16: at most 20 layers of 4608 terms each in blocked sums (error about
# log2(K) + 64 terms), forward and backward: 2·20·80·u, and the reference's own float64 is exact
# in comparison.
DEEP_NET = {torch.float32: 3200 * _U32, torch.float64: 3200 * _U64}
