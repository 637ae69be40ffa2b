"""pxfast doctor, with a library, without one, and with one that does not fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import need
from command_line import run

import pxfast
from pxfast import _native
from pxfast.cli import doctor as command
from pxfast.ops._declare import kernels_of


def rows(output: str) -> dict[str, tuple[str, str, str]]:
    """Of every operation: what runs it on a CPU and on CUDA, and why no kernel does."""
    lines = [
        line.split(maxsplit=3) for line in output.splitlines() if line.startswith(tuple(kernels_of))
    ]
    return {words[0]: (words[1], words[2], " ".join(words[3:])) for words in lines}


def test_doctor_says_what_runs_each_operation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    output = capsys.readouterr().out
    assert f"pxfast {pxfast.__version__}" in output
    assert f"torch {torch.__version__}" in output
    for key, value in _native.describe().items():
        assert f"{key}: {value}" in output
    found = rows(output)
    assert set(found) == set(kernels_of)
    assert "cuda: torch does it best" in found["sparse_dual_conv2d"][2]
    if _native.problem is None:
        assert found["squared_linear"][0] == "kernel" and "cpu:" not in found["squared_linear"][2]


def test_without_cuda_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("cpu", _native.problem)
    if torch.ops.pxfast.cuda_status() != "not built":
        pytest.skip("this library was built with CUDA")
    run("doctor")
    output = capsys.readouterr().out
    assert "cuda: not built\n" in output
    reason = "cuda: libpxfast.so was built without CUDA"
    assert rows(output)["gate"] == ("kernel", "reference", reason)


def test_an_op_that_the_library_lacks_is_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One built from older sources of the same version."""
    need("cpu", _native.problem)
    monkeypatch.setitem(kernels_of, "newest_op", ("cpu",))
    monkeypatch.setattr(command, "kernels_of", kernels_of)
    monkeypatch.setattr(
        torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, _: "gate" in op
    )
    run("doctor")
    served = rows(capsys.readouterr().out)
    assert served["newest_op"][0] == "reference" and served["gate"][0] == "kernel"
    assert "cpu: libpxfast.so is older than the op, build it again" in served["newest_op"][2]


def test_a_gpu_whose_kernels_fail_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(index: int) -> str:
        raise RuntimeError("CUDA launch failed: no kernel image is available\nand more")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: fails(0))
    run("doctor")
    expected = "cuda:0: kernels do not run: CUDA launch failed: no kernel image is available\n"
    assert expected in capsys.readouterr().out


def doctor_of_a_copy(folder: Path, version: str | None = None, library: bool = False) -> str:
    """What the doctor of a copy of the package says, in a process of its own."""
    package = Path(pxfast.__file__).parent
    left_out = shutil.ignore_patterns("__pycache__", *([] if library else ["*.so"]))
    copy = Path(shutil.copytree(package, folder / "pxfast", ignore=left_out))
    if version is not None:
        (copy / "_version.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    program = [sys.executable, "-m", "pxfast", "doctor"]
    ran = subprocess.run(program, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def test_without_a_library_it_says_how_to_build_one(tmp_path: Path) -> None:
    output = doctor_of_a_copy(tmp_path)
    assert "libpxfast.so does not exist: build it with `pip install .`" in output
    assert rows(output)["gate"] == ("reference", "reference", "cpu: no library; cuda: no library")


def test_a_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    package = Path(pxfast.__file__).parent
    copy = Path(
        shutil.copytree(package, tmp_path / "pxfast", ignore=shutil.ignore_patterns("*.so"))
    )
    (copy / "libpxfast.so").write_bytes(b"not a library")
    program = [sys.executable, "-m", "pxfast", "doctor"]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert f"does not load under torch {torch.__version__}" in ran.stdout


def test_the_library_of_another_version_is_named(tmp_path: Path) -> None:
    need("cpu", _native.problem)
    output = doctor_of_a_copy(tmp_path, version="7.8.9", library=True)
    assert f"pxfast 7.8.9 found kernels of pxfast {pxfast.__version__}" in output
    assert "kernels: pxfast 7.8.9 found" in output
