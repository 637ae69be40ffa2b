"""One op, one name: every op has all of its files, and the sources keep to their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPS = sorted(path.stem for path in (ROOT / "pxfast" / "ops").glob("[!_]*.py"))
FILES = (
    "csrc/{op}.h",
    "csrc/cpu/{op}.cpp",
    "csrc/cuda/{op}.cuh",
    "csrc/cuda/{op}.cu",
    "csrc/binding/{op}.cpp",
    "pxfast/reference/{op}.py",
    "tests/ops/test_{op}.py",
    "bench/{op}.py",
)
CPU_ONLY = {"dual_max_pool2d", "sparse_dual_conv2d"}  # ops that dense kernels serve elsewhere
COMPOSED = {"sparse_dual_linear"}  # ops that arrange what another op's kernels compute


def missing_pieces(op: str, root: Path = ROOT) -> list[str]:
    """What an op lacks: files, its section of docs/kernels.md, its sources in the build."""
    without = "csrc/cuda/" if op in CPU_ONLY else "none"
    without = "csrc/" if op in COMPOSED else without
    forms = [form for form in FILES if not form.startswith(without)]
    missing = [name for form in forms if not (root / (name := form.format(op=op))).is_file()]
    documents = ["docs/kernels.md"] + ["CMakeLists.txt"] * (op not in COMPOSED)
    for document in documents:
        path = root / document
        if not path.is_file() or not re.search(rf"\b{op}\b", path.read_text(encoding="utf-8")):
            missing.append(f"{op} in {document}")
    return missing


def test_there_are_ops() -> None:
    assert "squared_linear" in OPS


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_all_its_pieces(op: str) -> None:
    assert missing_pieces(op) == []


def test_a_missing_piece_is_seen() -> None:
    pieces = missing_pieces("cubed_linear")
    assert len(pieces) == len(FILES) + 2
    assert "pxfast/reference/cubed_linear.py" in pieces


@pytest.mark.parametrize("folder", ["csrc/cpu", "csrc/cuda"])
def test_kernels_include_neither_torch_nor_python(folder: str) -> None:
    sources = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert sources
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"#include [<\"](torch|ATen|c10|Python)", text) == [], path


def test_reference_imports_nothing_of_ours() -> None:
    for path in (ROOT / "pxfast" / "reference").glob("*.py"):
        modules = re.findall(r"^\s*(?:from|import) (pxfast[\w.]*)", path.read_text(), re.MULTILINE)
        ours = [module for module in modules if not module.startswith("pxfast.reference")]
        assert ours == [], path


def test_test_files_have_unique_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
