"""Compiles every CUDA kernel for every architecture and checks what the compiler made of it.

    python tools/check_cuda.py            # compares with the table
    python tools/check_cuda.py --update   # writes it: csrc/cuda/registers.json and docs/kernels.md

It fails where registers are spilled, and where a kernel takes more registers or shared memory than
the table says. No GPU is needed; without nvcc there is nothing to check, and it says so. With
nvdisasm (pip install nvidia-cuda-nvdisasm) it also reads the machine code: kernels that access
memory in vectors must hold 128-bit loads, those for tensor cores their instruction, asynchronous
copies of 16 bytes and vector loads of shared memory; none may hold atomics of floating point (nor
compare-and-swap, of which they can be made), whose sums would depend on the order of blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TABLE = ROOT / "csrc" / "cuda" / "registers.json"
DOCUMENT = ROOT / "docs" / "kernels.md"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a", "sm_120")  # as in CMakeLists.txt
LOAD, SHARED_LOAD = "128-bit load", "128-bit load of shared memory"
SHARED_LOAD_OF_BF16 = "64-bit load of shared memory"
TENSOR, COPY = "instruction of tensor cores", "asynchronous copy of 16 bytes"
INSTRUCTIONS = {  # as nvdisasm prints them
    LOAD: r"\bLDG\.E(\.\w+)*\.128\b",
    SHARED_LOAD: r"\bLDS(\.\w+)*\.128\b",
    SHARED_LOAD_OF_BF16: r"\bLDS(\.\w+)*\.64\b",
    TENSOR: r"\bHMMA\.16816\.F32\.BF16\b",
    COPY: r"\bLDGSTS\.E(\.\w+)*\.128\b",
}
DYNAMIC = ("mma_product",)  # kernels whose shared memory the launcher sizes: ptxas sees 0 bytes
FLOATS = "atomics of floating point"
FORBIDDEN = {FLOATS: r"\b(RED|ATOM|ATOMG|ATOMS)\.(\w+\.)*(B?F(16|32|64)|CAS)"}
# Of a multiprocessor: warps, bytes of shared memory, blocks.
MULTIPROCESSORS = {
    "sm_80": (64, 164 << 10, 32),
    "sm_90a": (64, 228 << 10, 32),
    "sm_100a": (64, 228 << 10, 32),
    "sm_120": (48, 100 << 10, 24),
}
BEGIN, END = "<!-- registers: begin -->", "<!-- registers: end -->"


class Usage(TypedDict):
    """What one kernel takes on one architecture."""

    registers: int
    shared: int  # bytes, without those that the launcher adds
    spills: int  # bytes stored and loaded
    threads: int  # of a block


Kernels = dict[str, dict[str, Usage]]  # kernel -> architecture -> usage


class Table(TypedDict):
    """The committed record."""

    nvcc: str
    kernels: Kernels


def main() -> int:
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--update", action="store_true", help="write the table instead of comparing"
    )
    update = parser.parse_args().update
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        print("nvcc not found: skipped")
        return 0
    disassembler = find_disassembler()
    table, problems = measure(nvcc, disassembler)
    if disassembler is None:
        print("nvdisasm not found: machine code not read (pip install nvidia-cuda-nvdisasm)")
    if update and not problems:
        TABLE.write_text(as_json(table), encoding="utf-8")
        DOCUMENT.write_text(
            with_table(DOCUMENT.read_text(encoding="utf-8"), table), encoding="utf-8"
        )
    elif not update:
        problems += compare(json.loads(TABLE.read_text(encoding="utf-8")), table)
    for problem in problems:
        print(problem, file=sys.stderr)
    kernels = len(table["kernels"])
    print(f"{kernels} kernels, {len(ARCHITECTURES)} architectures: {len(problems)} problems")
    return 1 if problems else 0


# ---- Compiling


def measure(nvcc: str, disassembler: str | None) -> tuple[Table, list[str]]:
    """Compiles everything: the table, and what is wrong whatever the committed table says."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {
            (source, architecture): pool.submit(
                compile_one, nvcc, source, architecture, Path(folder), disassembler
            )
            for source in SOURCES
            for architecture in ARCHITECTURES
        }
        kernels: Kernels = {}
        problems = []
        for (_, architecture), job in jobs.items():
            usages, wrong = job.result()
            for name, usage in usages.items():
                kernels.setdefault(name, {})[architecture] = usage
                if usage["spills"]:
                    problems.append(
                        f"{name} on {architecture}: {usage['spills']} bytes are spilled"
                    )
            problems += [f"{name} on {architecture}: {what}" for name, what in wrong]
    return {"nvcc": nvcc_version(nvcc), "kernels": kernels}, problems


def compile_one(
    nvcc: str, source: Path, architecture: str, folder: Path, disassembler: str | None
) -> tuple[dict[str, Usage], list[tuple[str, str]]]:
    """One file for one architecture: what its kernels take, and what is wrong with them."""
    cubin = folder / f"{source.stem}-{architecture}.cubin"
    number = architecture.removeprefix("sm_")
    target = f"-gencode=arch=compute_{number},code={architecture}"
    options = ["-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-cubin", target]
    log = run([nvcc, *options, str(source), "-o", str(cubin)]).stderr
    usages = read_usages(log)
    for symbol, threads in read_threads(cubin.read_bytes()).items():
        usages[short_name(demangle(symbol))]["threads"] = threads
    if disassembler is None or not usages:
        return usages, []
    held = read_instructions(run([disassembler, "-c", str(cubin)]).stdout)
    return usages, [wrong for name in usages for wrong in objections(name, held[name])]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a tool; its messages become the error where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done


def find_disassembler() -> str | None:
    """nvdisasm from the path, or from the package nvidia-cuda-nvdisasm."""
    packages = Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm")
    return shutil.which("nvdisasm") or next((str(path) for path in packages), None)


def nvcc_version(nvcc: str) -> str:
    """Such as 13.0.88."""
    found = re.search(r"\bV([\d.]+)", run([nvcc, "--version"]).stdout)
    return found[1] if found else "unknown"


# ---- Reading what the tools print


def read_usages(log: str) -> dict[str, Usage]:
    """What ptxas -v says of each kernel."""
    usages: dict[str, Usage] = {}
    for entry in re.split(r"Compiling entry function '", demangle(log))[1:]:
        name = short_name(entry[: entry.index("' for '")])
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        spills = re.findall(r"(\d+) bytes spill", entry)
        if registers is None:
            raise SystemExit(f"ptxas does not say what {name} uses:\n{entry}")
        usages[name] = {
            "registers": int(registers[1]),
            "shared": int(shared[1]) if shared else 0,
            "spills": sum(map(int, spills)),
            "threads": 0,
        }
    return usages


def read_threads(cubin: bytes) -> dict[str, int]:
    """Threads of a block by symbol: the attribute 5 of a kernel's section .nv.info, three words."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    count, names = struct.unpack_from("<HH", cubin, 60)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + 64 * i) for i in range(count)]
    threads = {}
    for name, begin, size in sections:
        start = sections[names][1] + name
        title = cubin[start : cubin.index(b"\0", start)].decode()
        at = begin
        while title.startswith(".nv.info.") and at < begin + size:
            form, attribute, length = struct.unpack_from("<BBH", cubin, at)
            if (form, attribute) == (4, 5):
                x, y, z = struct.unpack_from("<III", cubin, at + 4)
                threads[title.removeprefix(".nv.info.")] = x * y * z
            at += 4 + (length if form == 4 else 0)
    return threads


def read_instructions(sass: str) -> defaultdict[str, set[str]]:
    """Which of INSTRUCTIONS and FORBIDDEN each kernel holds."""
    held, name = defaultdict[str, set[str]](set), ""
    for line in demangle(sass.replace("\n.text.", "\n.text. ")).splitlines():
        if line.startswith(".text. "):
            name = short_name(line.removeprefix(".text. ").rstrip(":"))
        else:
            forms = INSTRUCTIONS | FORBIDDEN
            held[name] |= {what for what, form in forms.items() if re.search(form, line)}
    return held


def objections(name: str, held: set[str]) -> list[tuple[str, str]]:
    """What the machine code of a kernel lacks or must not hold."""
    lacks = [f"no {what}" for what in required(name) if what not in held]
    return [(name, what) for what in [*lacks, *(what for what in FORBIDDEN if what in held)]]


def required(name: str) -> list[str]:
    """What the machine code of this kernel must hold."""
    if name.startswith("mma_product<"):
        rounded = "Matrix<__nv_bfloat16>" in name  # four of them are 8 bytes
        return [TENSOR, COPY, SHARED_LOAD_OF_BF16 if rounded else SHARED_LOAD]
    return [LOAD] if uses_vectors(name) else []


def demangle(text: str) -> str:
    """C++ names as they are written."""
    return subprocess.run(
        ["c++filt"], input=text, capture_output=True, text=True, check=True
    ).stdout


def short_name(name: str) -> str:
    """Without namespaces, result and parameters: few_tokens_forward<float, 4, 1, 1, 4>."""
    depth = 0
    for end, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:end]
            break
    name = name.removeprefix("void ").replace("px::cuda::", "").replace(" >", ">")
    return name.replace("(Contiguous)0", "r").replace("(Contiguous)1", "row")


def uses_vectors(name: str) -> bool:
    """Whether the kernel's template says that it accesses several elements at a time."""
    if re.match(r"(count_scores|count_equal|write_chunks)<", name):
        return True  # where arrays are aligned
    form = (
        r"(?:few_tokens_\w+|gate_kernel)<\w+, (\d+),|(?:add_planes|round_to_bf16)<(\d+)[,>]"
        r"|tiled_product<Tile<[^>]*>, (\d+),"
    )
    found = re.match(form, name)
    return found is not None and next(group for group in found.groups() if group) != "1"


# ---- The table


def compare(committed: Table, measured: Table) -> list[str]:
    """What became worse. Registers compare between builds of one compiler only."""
    if committed["nvcc"] != measured["nvcc"]:
        versions = f"nvcc {measured['nvcc']}, table of nvcc {committed['nvcc']}"
        print(f"{versions}: registers not compared")
        return []
    problems = []
    for name in sorted(committed["kernels"].keys() ^ measured["kernels"].keys()):
        where = "is gone" if name in committed["kernels"] else "is new"
        problems.append(f"{name} {where}: run tools/check_cuda.py --update")
    for name in sorted(committed["kernels"].keys() & measured["kernels"].keys()):
        for architecture, now in measured["kernels"][name].items():
            was = committed["kernels"][name][architecture]
            for what in ("registers", "shared"):
                if now[what] > was[what]:
                    change = f"{what} {was[what]} -> {now[what]}"
                    problems.append(f"{name} on {architecture}: {change}")
    return problems


def resident_warps(usage: Usage, architecture: str) -> int:
    """How many warps of a kernel a multiprocessor holds: by registers, shared memory and blocks.

    Registers are given to warps by 256, from a quarter of 65536 for each of four schedulers; a
    block takes 1 KiB of shared memory besides its own.
    """
    most, shared, blocks = MULTIPROCESSORS[architecture]
    in_block = -(-usage["threads"] // 32)
    by_registers = 4 * (16384 // (-(-usage["registers"] * 32 // 256) * 256))
    limits = min(most, by_registers) // in_block, shared // (usage["shared"] + 1024), blocks
    return min(limits) * in_block


def as_json(table: Table) -> str:
    """One line a kernel, so that a change is easy to read."""
    kernels = sorted(table["kernels"].items())
    lines = [f"  {json.dumps(name)}: {json.dumps(usages)}" for name, usages in kernels]
    body = ",\n".join(lines)
    return f'{{\n "nvcc": {json.dumps(table["nvcc"])},\n "kernels": {{\n{body}\n }}\n}}\n'


def render(table: Table) -> str:
    """The kernels for float32 weights in vectors, attention, and the most of all, as Markdown."""
    lines = [
        f"nvcc {table['nvcc']}, float32 weights in vectors, and attention; no spills. Registers of "
        "a thread / warps that a multiprocessor holds by them and by static shared memory (of 64, "
        "sm_120 of 48):",
        "",
        f"| kernel | threads | {' | '.join(ARCHITECTURES)} | shared memory, bytes |",
        f"|---|{'---:|' * (len(ARCHITECTURES) + 2)}",
    ]
    shown = {
        name: usages
        for name, usages in sorted(table["kernels"].items())
        if (uses_vectors(name) or name.startswith(("attend", "mma_product")))
        and not re.search(
            r"double|__half|__nv_bfloat16|Cut, (short|long)>",
            name.replace("Matrix<__nv_bfloat16>", ""),
        )
    }
    for name, usages in shown.items():
        registers = " | ".join(
            f"{usages[a]['registers']} / {resident_warps(usages[a], a)}" for a in ARCHITECTURES
        )
        label = re.sub(r"<float>|\bfloat, ", "", name).replace("__nv_bfloat16", "bf16")
        dynamic = name.partition("<")[0] in DYNAMIC
        first = usages[ARCHITECTURES[0]]
        shared = "dynamic" if dynamic else first["shared"]
        lines.append(f"| `{label}` | {first['threads']} | {registers} | {shared} |")
    every = table["kernels"].values()
    most = " | ".join(str(max(u[a]["registers"] for u in every)) for a in ARCHITECTURES)
    static = max(usage["shared"] for usages in every for usage in usages.values())
    lines.append(
        f"| the most of all {len(table['kernels'])}, whatever weight | | {most} | {static} static |"
    )
    return "\n".join(lines)


def with_table(document: str, table: Table) -> str:
    """The document with the table between its markers."""
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise SystemExit(f"{DOCUMENT} must hold {BEGIN} and {END} once each")
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n{render(table)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.exit(main())
