"""What the tests of this folder cover, library by library, and the table of it in
docs/integrations.md.

    python tests/integrations/matrix.py           # writes the table
    python tests/integrations/matrix.py --check   # fails if it is stale

A row's adapter is the stem of three files: pxfast/integrations/<adapter>.py,
tests/integrations/test_in_<adapter>.py and examples/in_<adapter>.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "integrations.md"
MARKED = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


class Row(NamedTuple):
    """One library, or one group of libraries that share an adapter.

    Attributes:
        library: What users call it.
        packages: Its packages on PyPI, pinned in constraints.txt.
        modules: What to import; PXFAST_REQUIRE takes these names.
        extra: The extra of pxfast that installs it, "" for torch's own parts.
        adapter: Stem of its files.
        write: What one writes, in Markdown.
        cannot: What it cannot do, in Markdown.
        version: What was tested, where no package says it.
    """

    library: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    extra: str
    adapter: str
    write: str
    cannot: str
    version: str = ""


MATRIX = (
    Row(
        "torch.nn.utils.prune",
        ("torch",),
        ("torch",),
        "",
        "torch_utils_prune",
        "`prune.global_unstructured(parameters, PXUnstructured, "
        "scores.as_importance_scores(model), amount=0.9)`, `PXUnstructured.apply(…)`, "
        "`masks.apply_(model)`, `Masks.from_model(model)`",
        "prune parametrized weights, or the output projection of nn.MultiheadAttention, by torch's "
        "own functions: their hooks never run there. `masks.apply_` can",
    ),
    Row(
        "torch.ao.pruning",
        ("torch",),
        ("torch",),
        "",
        "torch_ao_pruning",
        "`PXSparsifier(data, sparsity_level=0.9)`, then `prepare(model)`, `step()` and "
        "`squash_mask()`, with or without a scheduler",
        "be pickled with its data; give weights back when the level falls",
    ),
    Row(
        "Torch-Pruning",
        ("torch-pruning",),
        ("torch_pruning",),
        "torch-pruning",
        "torch_pruning",
        "`tp.pruner.BasePruner(model, x, importance=PXImportance(data), …)`",
        "score biases and norms; know the sizes that a model keeps by itself (head sizes in timm): "
        "set them before the next step",
    ),
    Row(
        "Synaptic-Flow, the official PX code, NTK-SAP, and their forks",
        (),
        ("torch",),
        "",
        "synflow",
        "`from pxfast.integrations.synflow import PX`, then their `prune_loop` as it is; "
        "`PX(…, per_class=10)` where the loader is the whole training set",
        "score biases, norms and identity shortcuts (`prune_bias`, `prune_batchnorm`, "
        "`prune_residual`)",
        "interfaces of [Synaptic-Flow](https://github.com/ganguli-lab/Synaptic-Flow), "
        "[px-ntk-pruning](https://github.com/iurada/px-ntk-pruning) and "
        "[NTK-SAP](https://github.com/YiteWang/NTK-SAP), rewritten in the tests",
    ),
    Row(
        "Lightning",
        ("lightning",),
        ("lightning",),
        "lightning",
        "lightning",
        "`Trainer(callbacks=[PXPruning(density=0.05)])`",
        "prune under FSDP, DeepSpeed or tensor parallelism, where no process holds whole weights; "
        "prune parametrized weights; prune again during training",
    ),
    Row(
        "NVIDIA ModelOpt",
        ("nvidia-modelopt",),
        ("modelopt",),
        "modelopt",
        "modelopt",
        "`set_masks(model, masks)`, then its own `mto.save`, quantisation, `mts.export`; "
        "`masks_of(model)`",
        "hold masks of layers other than nn.Linear and nn.Conv2d, or of fused attention weights",
    ),
    Row(
        "NNCF",
        ("nncf",),
        ("nncf",),
        "nncf",
        "nncf",
        "`set_masks(model, masks)`, then its own training, `nncf.pruning_statistic(model)`, "
        "`nncf.strip(model, strip_format=nncf.StripFormat.IN_PLACE)`; `masks_of(model)`",
        "wrap an nn.Sequential that is the whole model; hold masks of parametrized weights",
    ),
    Row(
        "zero-cost-nas, NASLib",
        (),
        ("torch",),
        "",
        "zero_cost",
        "`register(measure)`, then the measures `px`, `px_joint` and `px_trace` by name; "
        "`proxy(net, images)`, `per_layer(net, images)`",
        "measure one number per channel (`mode='channel'`)",
        "interfaces of [zero-cost-nas](https://github.com/SamsungLabs/zero-cost-nas) and "
        "[NASLib](https://github.com/automl/NASLib), rewritten in the tests; NAS-Bench-201 cells",
    ),
    Row(
        "Hugging Face transformers",
        ("transformers",),
        ("transformers",),
        "transformers",
        "transformers",
        '`pxfast.score(model, {"pixel_values": images})`, `output="pooler_output"` for a tower; '
        "`save_pretrained(model, folder)`, `load_masks(folder)`. Tested: ViT, DeiT, Swin, DINOv2, "
        "ConvNeXt, ConvNeXtV2, CLIP's vision tower",
        "score language models",
    ),
    Row(
        "Hugging Face accelerate",
        ("accelerate",),
        ("accelerate",),
        "transformers",
        "accelerate",
        "`pxfast.score(model, data)` after `cpu_offload(model)`, `disk_offload(model, folder)` or "
        "a device_map; `apply_masks(model, masks)`",
        "score models split over several GPUs, or by criteria other than px and px-joint; count an "
        "offloaded weight that two layers share as one. Offloading from a GPU is written and not "
        "yet run on one",
    ),
    Row(
        "ONNX, torch.export",
        ("onnx", "onnxscript"),
        ("onnx", "onnxscript"),
        "onnx",
        "onnx",
        '`pxfast.integrations.onnx.export(model, (images,), "model.onnx")`, which checks every '
        "zero; `torch.export.export(pxfast.bake(model), (images,))`",
        "store zeros in fewer bytes or make the runtime skip them; find the zeros of a weight that "
        "the exporter both folds and splits (an error says so)",
    ),
)


def pinned() -> dict[str, str]:
    """Versions by package, as CI installs them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def table(rows: tuple[Row, ...] = MATRIX) -> str:
    """The table of docs/integrations.md."""
    pins = pinned()
    lines = [
        "| library | version tested | install | one writes | it cannot |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        version = row.version or ", ".join(
            pins[package] if len(row.packages) == 1 else f"{package} {pins[package]}"
            for package in row.packages
        )
        install = f"`pxfast[{row.extra}]`" if row.extra else "nothing more"
        library = f"[{row.library}](../examples/in_{row.adapter}.py)"
        lines.append(f"| {library} | {version} | {install} | {row.write} | {row.cannot} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table, or with ``--check`` return 1 if it differs."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = MARKED.sub(lambda _: table(), text)
    if wanted == text:
        return 0
    if "--check" in sys.argv:
        print(f"{PAGE.relative_to(ROOT)} is stale: run make tables")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
