"""The devices that tests run on. PXFAST_REQUIRE=cpu,emulated,cuda makes their absence a failure."""

from __future__ import annotations

import os

# Small networks: waking a second thread costs more than their work, in this process and in others
# that tests start. The suite runs as several processes instead. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from backends import BACKENDS, Backend, need


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Whatever can run an op; see tests/backends.py."""
    chosen: Backend = request.param
    need(chosen.device, chosen.unavailable)
    return chosen


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device of torch that models and data can be on."""
    if request.param == "cuda":
        need("cuda", None if torch.cuda.is_available() else "torch sees no GPU")
    return torch.device(request.param)
