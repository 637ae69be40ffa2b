from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SOURCE, prune


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    """The name of a small model; the test runs in an empty folder beside it."""
    path = tmp_path / "nets_of_a_user.py"
    path.write_text(SOURCE)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return f"{path}:net"


@pytest.fixture
def masks_file(model, capsys) -> Path:
    assert prune(model, "--density", 0.2) == 0
    capsys.readouterr()
    return Path("masks.safetensors")
