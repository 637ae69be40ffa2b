"""A network and images that the tests of score() share."""

from __future__ import annotations

import pytest
import torch

from pxfast import models


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(3)
    return models.resnet20().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
