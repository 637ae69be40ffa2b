"""The first backward that reaches a weight writes its scores; memory is not cleared for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pxfast


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch has just allocated holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Uses(nn.Module):
    """Weights that are seen whole, in parts, transposed, twice, in groups, and beside gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.last = nn.Conv2d(8, 8, 2, stride=2).to(memory_format=torch.channels_last)
        self.back = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.attend = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.packed = nn.Parameter(torch.randn(10, 16))
        self.matrix = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x))))))
        x = F.relu(self.back(F.relu(self.last(x)))).flatten(2)
        x = self.attend(x)
        half = F.relu(F.linear(x, self.packed[:6])).sum(1)
        return torch.cat([half @ self.matrix, F.linear(x, self.packed[6:]).sum(1)], -1)


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_no_score_comes_from_memory_as_it_was(
    criterion: str, density: float, request: pytest.FixtureRequest
):
    torch.manual_seed(0)
    model, data = Uses().eval(), [torch.randn(3, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    masks = {name: torch.rand_like(model.get_parameter(name)) < density for name in names}
    expected = pxfast.score(model, data, criterion=criterion, masks=masks)
    request.getfixturevalue("poisoned")
    scores = pxfast.score(model, data, criterion=criterion, masks=masks)
    assert list(scores) == list(expected) == names
    for name, score in scores.items():
        assert torch.equal(score, expected[name]), name
        assert not (score * ~masks[name]).any()
