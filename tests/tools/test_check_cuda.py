"""The check of what nvcc makes of the kernels: parsers, comparison, the table in the docs."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import pytest

from tools import check_cuda
from tools.check_cuda import Table, Usage

SYMBOL = "_ZN2px4cuda10add_planesILi4EfNS0_6PlanesIfEEEEvPKT0_T1_lll"
LOG = f"""\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SYMBOL}' for 'sm_90a'
ptxas info    : Function properties for {SYMBOL}
    {{stack}} bytes stack frame, {{stores}} bytes spill stores, {{loads}} bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 17408 bytes smem
"""
NAME = "add_planes<4, float, Planes<float>>"

needs_demangler = pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")


def table(registers: int = 32, name: str = NAME, nvcc: str = "13.0.88") -> Table:
    usage: Usage = {"registers": registers, "shared": 0, "spills": 0, "threads": 256}
    return {"nvcc": nvcc, "kernels": {name: {"sm_90a": usage}}}


@needs_demangler
def test_the_log_is_read() -> None:
    usages = check_cuda.read_usages(LOG.format(stack=0, stores=0, loads=0))
    assert usages == {NAME: {"registers": 32, "shared": 17408, "spills": 0, "threads": 0}}
    assert check_cuda.read_usages(LOG.format(stack=16, stores=12, loads=20))[NAME]["spills"] == 32


@needs_demangler
def test_instructions_are_found() -> None:
    sass = "\n.text.{}:\n        /*0110*/  {} R8, desc[UR4][R2.64] ;\n"

    def held(instruction: str) -> set[str]:
        return check_cuda.read_instructions(sass.format(SYMBOL, instruction))[NAME]

    assert held("LDG.E.128.CONSTANT") == held("LDG.E.128") == {check_cuda.LOAD}
    assert held("LDS.128") == {check_cuda.SHARED_LOAD}
    assert held("LDGSTS.E.BYPASS.128") == {check_cuda.COPY}
    assert held("HMMA.16816.F32.BF16") == {check_cuda.TENSOR}
    assert held("LDS.64") == {check_cuda.SHARED_LOAD_OF_BF16}
    assert held("LDG.E.64.CONSTANT") == held("LDGSTS.E.64") == set()
    assert held("STG.E.128") == set()


@needs_demangler
@pytest.mark.parametrize(
    ("instruction", "float_atomic"),
    [
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", True),
        ("ATOMG.E.ADD.F64.RN.STRONG.GPU", True),
        ("RED.E.ADD.F16x2.RN.STRONG.GPU", True),
        ("ATOMG.E.ADD.BF16_V2", True),
        ("ATOMS.CAS", True),
        ("ATOMS.CAST.SPIN", True),
        ("ATOMG.E.CAS.STRONG.GPU", True),
        ("RED.E.ADD.64.STRONG.GPU", False),
        ("ATOMS.POPC.INC.32", False),
        ("FADD.FTZ", False),
    ],
)
def test_atomics_of_floating_point_are_objected_to(instruction: str, float_atomic: bool) -> None:
    sass = f"\n.text.{SYMBOL}:\n  /*0110*/  LDG.E.128 R4, [R2] ;\n  /*0120*/  {instruction} R5 ;\n"
    held = check_cuda.read_instructions(sass)[NAME]
    wrong = [(NAME, check_cuda.FLOATS)] if float_atomic else []
    assert check_cuda.objections(NAME, held) == wrong


def test_what_a_kernel_lacks_is_objected_to() -> None:
    assert check_cuda.objections(NAME, set()) == [(NAME, f"no {check_cuda.LOAD}")]


def test_products_of_bf16_read_shared_memory_by_8_bytes() -> None:
    name = "mma_product<MmaTile<{}>, Operand<r, Matrix<{}>>>"
    of_floats = check_cuda.required(name.format("3, 2, 1, 2, 4, 4", "float"))
    of_bf16 = check_cuda.required(name.format("1, 2, 2, 4, 2, 4", "__nv_bfloat16"))
    assert check_cuda.SHARED_LOAD in of_floats and check_cuda.SHARED_LOAD not in of_bf16
    assert check_cuda.SHARED_LOAD_OF_BF16 in of_bf16
    assert check_cuda.required("round_to_bf16<8>") == [check_cuda.LOAD]


def cubin(*sections: tuple[str, bytes]) -> bytes:
    """An ELF file with these sections, as read_threads reads it."""
    parts = [("", b""), *sections]
    names = b"".join(name.encode() + b"\0" for name, _ in parts) + b".names\0"
    parts.append((".names", names))
    body, heads = b"", b""
    for name, content in parts:
        at = names.index(name.encode() + b"\0")
        heads += struct.pack("<I20xQQ24x", at, 64 + len(body), len(content))
        body += content
    counts = struct.pack("<HH", len(parts), len(parts) - 1)
    return bytes(40) + struct.pack("<Q", 64 + len(body)) + bytes(12) + counts + body + heads


def test_threads_of_a_block_are_read() -> None:
    """Attributes of other forms and numbers stand around the one that tells."""
    other, length = struct.pack("<BBH", 3, 5, 99), struct.pack("<BBHI", 4, 0x17, 4, 7)
    threads = struct.pack("<BBHIII", 4, 5, 12, 128, 2, 1)
    built = cubin((".nv.info", threads), (f".nv.info.{SYMBOL}", other + length + threads + other))
    assert check_cuda.read_threads(built) == {SYMBOL: 256}


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "architecture", "warps"),
    [
        (32, 0, 256, "sm_80", 64),
        (63, 0, 128, "sm_90a", 32),
        (84, 4096, 256, "sm_80", 16),
        (104, 25600, 256, "sm_90a", 16),
        (237, 0, 256, "sm_90a", 8),
        (32, 50000, 128, "sm_120", 8),
        (16, 0, 32, "sm_120", 24),
    ],
)
def test_warps_that_a_multiprocessor_holds(
    registers: int, shared: int, threads: int, architecture: str, warps: int
) -> None:
    usage: Usage = {"registers": registers, "shared": shared, "spills": 0, "threads": threads}
    assert check_cuda.resident_warps(usage, architecture) == warps


def test_names_tell_what_kernels_must_hold() -> None:
    tensor = [check_cuda.TENSOR, check_cuda.COPY, check_cuda.SHARED_LOAD]
    assert check_cuda.required("mma_product<MmaTile<2, 1, 2, 4, 4>, Planes<float>>") == tensor
    assert check_cuda.required(NAME) == [check_cuda.LOAD]
    assert check_cuda.required("add_planes<1, double, Planes<double>>") == []


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("few_tokens_forward<__half, 8, 1, 1, 4>", True),
        ("few_tokens_backward<float, 1, 8, 1>", False),
        (NAME, True),
        ("add_planes<1, double, Planes<double>>", False),
        ("tiled_product<Tile<float, 64, 64, 16, 4, 4>, 4, Operand<r, Matrix<float>>>", True),
        ("tiled_product<Tile<float, 64, 64, 16, 4, 4>, 1, Operand<r, Matrix<float>>>", False),
    ],
)
def test_names_tell_which_kernels_use_vectors(name: str, vectors: bool) -> None:
    assert check_cuda.uses_vectors(name) is vectors


def test_growth_is_a_problem_and_shrinking_is_not() -> None:
    assert check_cuda.compare(table(32), table(32)) == []
    assert check_cuda.compare(table(32), table(31)) == []
    assert check_cuda.compare(table(32), table(33)) == [f"{NAME} on sm_90a: registers 32 -> 33"]


def test_new_and_missing_kernels_are_problems() -> None:
    other = table(name="other<float>")
    assert check_cuda.compare(table(), other) == [
        f"{NAME} is gone: run tools/check_cuda.py --update",
        "other<float> is new: run tools/check_cuda.py --update",
    ]


def test_another_compiler_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_cuda.compare(table(32), table(40, nvcc="13.1.80")) == []
    assert "registers not compared" in capsys.readouterr().out


def test_spills_and_narrow_loads_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    spilled: Usage = {"registers": 128, "shared": 0, "spills": 8, "threads": 256}
    lacks = [(NAME, f"no {check_cuda.LOAD}")]
    monkeypatch.setattr(check_cuda, "compile_one", lambda *_: ({NAME: spilled}, lacks))
    monkeypatch.setattr(check_cuda, "nvcc_version", lambda _: "13.0.88")
    problems = check_cuda.measure("nvcc", None)[1]
    assert f"{NAME} on sm_80: 8 bytes are spilled" in problems
    assert f"{NAME} on sm_120: no 128-bit load" in problems


def test_without_nvcc_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    monkeypatch.setattr("sys.argv", ["check_cuda.py"])
    assert check_cuda.main() == 0
    assert capsys.readouterr().out == "nvcc not found: skipped\n"


def test_the_document_shows_the_committed_table() -> None:
    document = check_cuda.DOCUMENT.read_text(encoding="utf-8")
    committed = json.loads(check_cuda.TABLE.read_text(encoding="utf-8"))
    assert document == check_cuda.with_table(document, committed)


def test_kernels_with_dynamic_shared_memory_are_known() -> None:
    sources = [path.read_text(encoding="utf-8") for path in check_cuda.TABLE.parent.glob("*.cuh")]
    kernels = [k for s in sources for k in re.findall(r"^__global__.*?^}$", s, re.DOTALL | re.M)]
    dynamic = [kernel for kernel in kernels if "PX_DYNAMIC_SHARED(" in kernel]
    assert len(dynamic) == sum(len(re.findall(r"^ +PX_DYNAMIC_SHARED\(", s, re.M)) for s in sources)
    names = {re.findall(r"\)\s+(\w+)\(", kernel)[0] for kernel in dynamic}
    assert names == set(check_cuda.DYNAMIC)


def test_the_committed_table_is_as_the_tool_writes_it() -> None:
    text = check_cuda.TABLE.read_text(encoding="utf-8")
    assert text == check_cuda.as_json(json.loads(text))


def test_the_committed_table_has_no_spills() -> None:
    kernels = json.loads(check_cuda.TABLE.read_text(encoding="utf-8"))["kernels"]
    assert kernels
    for usages in kernels.values():
        assert set(usages) == set(check_cuda.ARCHITECTURES)
        assert all(usage["spills"] == 0 for usage in usages.values())


def test_the_architectures_are_those_of_the_build() -> None:
    lists = (Path(check_cuda.ROOT) / "CMakeLists.txt").read_text(encoding="utf-8")
    built = re.findall(r'set\(PXFAST_CUDA_ARCHS "([^"]+)"', lists)[0].replace("+PTX", "").split(";")
    assert [f"sm_{arch.replace('.', '')}" for arch in built] == list(check_cuda.ARCHITECTURES)
