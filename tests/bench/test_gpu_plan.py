"""bench/gpu.py without a GPU: its plan, its refusal, and every case, small, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from pathlib import Path

import nets
import pytest
import torch

import pxfast
from bench import _gpu_cases, _gpu_measure, gpu
from bench._result import load_all
from pxfast.ops._declare import kernels_of, references

CPU = torch.device("cpu")
SMALL = [
    _gpu_cases.linear("layer", 8, 6, 1, torch.float32),
    _gpu_cases.linear("layer", 8, 6, 9, torch.bfloat16),
    _gpu_cases.linear("layer", 8, 6, 9, torch.float32, precision="high"),
    _gpu_cases.convolution(3, 5, 4, 3, 2),
    _gpu_cases.convolution(4, 5, 4, 3, 1, 4),
    _gpu_cases.packing("layer", 8, 40),
    _gpu_cases.ones_linear("layer", 8, 40, 3),
    _gpu_cases.ones_convolution(2, 4, 5, 6, 3, 2),
    _gpu_cases.activation("gelu", (2, 3, 4), torch.float32),
    _gpu_cases.attention("model", 2, 3, 5, 4, 1, torch.float32),
    _gpu_cases.attention("model", 2, 3, 5, 4, 4, torch.bfloat16),
    _gpu_cases.attention_backward("model", 2, 3, 5, 4, 4),
    _gpu_cases.selection("model", 1000, 4),
]


def test_the_plan_keeps_to_eight_minutes(capsys) -> None:
    assert gpu.main(["--dry-run"]) == 0
    shown = capsys.readouterr().out
    steps = gpu.plan("9.0a", Path("rows"))
    assert sum(step.seconds for step in steps) <= gpu.LIMIT == 480
    assert "ViT-L 4096×1024, T = 1, float32; 0.0156 ms at least on an H200" in shown
    for step in steps:
        assert f"{step.name}, at most {step.seconds} s" in shown
    for step in steps:  # what the commands name exists
        for word in step.command:
            assert not word.startswith("tests/") or (gpu.ROOT / word).exists()


def test_it_starts_as_a_program() -> None:
    command = [sys.executable, str(gpu.ROOT / "bench" / "gpu.py"), "--dry-run"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and "squared_attention" in ran.stdout, ran.stderr


def test_every_op_on_both_devices_is_timed() -> None:
    timed = " ".join(case.what for case in _gpu_cases.cases())
    for name in {
        n.removesuffix("_backward") for n, devices in kernels_of.items() if "cuda" in devices
    }:
        assert {"score_histogram": "select_threshold"}.get(name, name) in timed


def test_without_a_gpu_it_refuses(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    error = capsys.readouterr().err
    assert "sees none" in error and "--dry-run" in error


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.size)
def test_both_candidates_of_a_case_agree(case: _gpu_cases.Case) -> None:
    torch.manual_seed(0)
    arguments = case.build(CPU)
    results = []
    for step in case.pair:
        given = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        given = [a if not isinstance(a, list) else [t.clone() for t in a] for a in given]
        out = step(*given)
        flat = [t for t in (out if isinstance(out, (list, tuple)) else [out])]
        results.append([flat[-1], *(a for a in given if isinstance(a, torch.Tensor))])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), plain.double(), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.size)
def test_a_case_gives_a_row(case: _gpu_cases.Case) -> None:
    rates = {"float32": 1e9, "bfloat16": 1e9}
    row = _gpu_measure.time_case(case, CPU, 1e9, rates, fill=1)
    assert row["pxfast ms"] > 0 and row["× torch"] > 0 and row["% of floor"] > 0
    assert case.floor(1e9, rates) == max(case.bytes, case.flops) / 1e9


def test_a_case_is_timed_in_its_precision() -> None:
    case, seen = _gpu_cases.linear("layer", 8, 6, 9, torch.float32, precision="medium"), []
    note = lambda *a: seen.append(torch.get_float32_matmul_precision())  # noqa: E731
    object.__setattr__(case, "pair", (note, note))
    rates = {"float32": 1e9, "bfloat16": 1e9}
    assert "medium precision" in str(_gpu_measure.time_case(case, CPU, 1e9, rates, fill=1)["size"])
    assert set(seen) == {"medium"} and torch.get_float32_matmul_precision() == "highest"


def test_a_case_that_fails_says_why_and_leaves_the_others(monkeypatch) -> None:
    monkeypatch.setattr(_gpu_measure, "ceilings", lambda device: iter([
        {"ceiling": "copy", "rate": 1e9}, {"ceiling": "float32", "rate": 1e9},
        {"ceiling": "bfloat16", "rate": 1e9},
    ]))  # fmt: skip
    monkeypatch.setattr(_gpu_measure, "RING_BYTES", 1)
    wrong = _gpu_cases.convolution(3, 5, 4, 3, 2)
    object.__setattr__(wrong, "pair", (lambda *a: 1 / 0, lambda *a: None))
    rows = list(_gpu_measure.ops_rows(CPU, [wrong, SMALL[0]]))
    assert "division by zero" in str(rows[0]["failed"]) and "pxfast ms" in rows[1]


def test_ceilings_and_rows_are_written_as_they_come(tmp_path: Path, monkeypatch) -> None:
    rows = list(_gpu_measure.ceilings(CPU, size=1000, side=16))
    assert [row["ceiling"] for row in rows] == ["copy", "float32", "bfloat16"]
    monkeypatch.setitem(_gpu_measure.PARTS, "ceilings", lambda device: iter(rows))
    out = tmp_path / "rows.jsonl"
    _gpu_measure.main(["ceilings", str(out), "--device", "cpu"])
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


@pytest.fixture
def small_models(monkeypatch) -> None:
    """Every network of the library is a small one."""

    def create_model(name: str) -> torch.nn.Module:
        model = nets.mlp()
        model.default_cfg = {"input_size": (4,)}
        return model

    library = types.SimpleNamespace(create_model=create_model)
    monkeypatch.setattr(_gpu_measure._libraries, "load", lambda name: library)


def test_models_are_scored_with_kernels_and_without(monkeypatch, small_models) -> None:
    calls = []
    reference = references["squared_linear"]
    monkeypatch.setitem(references, "squared_linear", lambda *a: calls.append(a) or reference(*a))
    rows = {}
    ceiling = {"ceiling": "copy", "rate": 1e9}
    monkeypatch.setattr(_gpu_measure, "ceilings", lambda device: iter([ceiling]))
    for row in _gpu_measure.model_rows(CPU, ("net",)):
        rows[row["what"]] = (row["ms"], len(calls))
        if row["what"] == "net, px":
            seconds = 3 * sum(p.nbytes for p in nets.mlp().parameters()) / 1e9
            assert row["% of floor"] == pytest.approx(1e5 * seconds / row["ms"])
    assert [*rows] == [
        "net, forward",
        "net, px",
        "net, px in plain torch",
        "net, px-joint",
        "net, px-joint in plain torch",
        "net, official",
    ]
    assert rows["net, px"][1] == 0 < rows["net, px in plain torch"][1]
    assert rows["net, px-joint"][1] == rows["net, px in plain torch"][1]


def test_the_whole_score_is_one_graph_for_the_compiler(monkeypatch, small_models) -> None:
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda graph: graphs.append(graph) or graph)
    rows = list(_gpu_measure.compiled_rows(CPU, ("net",)))
    assert [row["what"] for row in rows] == [
        "net, px in compiled torch",
        "net, px-joint in compiled torch",
    ]
    assert all(row["ms"] > 0 and row["compile s"] > 0 for row in rows)
    model, images = _gpu_measure._model("net", CPU)
    for criterion, graph in zip(("px", "px-joint"), graphs, strict=True):
        kinds = {str(node.target) for node in graph.graph.nodes}
        assert not any("pxfast" in kind for kind in kinds) and len(kinds) > 10
        again = _gpu_measure.traced(model, images, criterion)
        scores = pxfast.score(model, images, criterion=criterion).values()
        for ours, theirs in zip(scores, again(images), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_graph_that_cannot_be_compiled_is_said(monkeypatch, small_models) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph: 1 / 0)
    assert "division by zero" in str(next(_gpu_measure.compiled_rows(CPU, ("net",)))["failed"])


def test_a_step_that_fails_or_is_stopped_is_named() -> None:
    python = gpu.sys.executable
    assert gpu.Step("a", [python, "-c", ""], 20).run(60).startswith("passed")
    assert gpu.Step("a", [python, "-c", "exit(3)"], 20).run(60).startswith("failed (3)")
    assert "limit of 1 s" in gpu.Step("a", [python, "-c", "while True: pass"], 1).run(60)
    assert "not installed" in gpu.Step("a", ["no-such"], 1, needs="no-such").run(60)


def test_a_step_that_is_stopped_ends_what_it_started(tmp_path: Path) -> None:
    python, trace = gpu.sys.executable, tmp_path / "trace"
    child = f"import time; time.sleep(3); open({str(trace)!r}, 'w')"
    parent = f"import subprocess; subprocess.run([{python!r}, '-c', {child!r}])"
    assert "limit" in gpu.Step("a", [python, "-c", parent], 1).run(60)
    time.sleep(3)
    assert not trace.exists()


def test_half_a_line_is_no_row(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text('{"what": "op"}\n{"what": "o')
    assert gpu.written(out) == [{"what": "op"}]


def test_the_whole_command_on_a_machine_that_claims_a_gpu(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert gpu.architecture() == "9.0a"

    def steps(architecture: str, out: Path) -> list[gpu.Step]:
        write = f'print(\'{{"what": "op", "pxfast ms": 1.5}}\', file=open({str(out)!r}, \'a\'))'
        python = gpu.sys.executable
        saved = f"from pathlib import Path; assert [*Path({str(tmp_path)!r}).glob('*.json')]"
        return [
            gpu.Step("early", [python, "-c", saved], 20),
            gpu.Step("ops", [python, "-c", write], 20),
            gpu.Step("saved", [python, "-c", saved], 20),
            gpu.Step("bad", [python, "-c", "x"], 9),
        ]

    monkeypatch.setattr(gpu, "plan", steps)
    assert gpu.main(["--results", str(tmp_path)]) == 1  # a step failed
    (result,) = load_all(tmp_path)
    assert result.job == "gpu" and result.machine["gpu"] == "Some GPU"
    assert result.rows == [{"what": "op", "pxfast ms": 1.5}]
    assert str(result.settings["bad"]).startswith("failed")
    assert str(result.settings["early"]).startswith("failed")
    assert str(result.settings["saved"]).startswith("passed")
    assert "1.5" in capsys.readouterr().out
