"""Vision transformers of three libraries at full size: time and memory of a score.

Every network is built as it is initialised, but for linear layers of zeros, without downloads, and
`pxfast.score` is timed in turn with a plain forward of the same random images, in a process of its
own: px, which without masks skips the pass over the data, px with that pass all the same, and
px-joint. Small networks of the same kinds are compared with the literal reference, entry by entry,
in tests/architectures/test_*_transformers.py. ViT-g has a job of its own, `giant`.

Every network that is finished is kept in build/transformers, so an interrupted job, or one that has
used up its `--minutes`, goes on where it stopped; remove that folder to measure anew.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings

import torch
from torch import nn

from bench import score
from bench._cells import Cells, digest
from bench._harness import Work, paired_apart, peak_memory, ratio, spread
from bench._libraries import load
from bench._machine import ROOT
from bench._result import Result

TIMM = [
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224",
    "vit_large_patch16_224", "vit_huge_patch14_224",
    "deit_tiny_patch16_224", "deit_base_distilled_patch16_224", "deit3_base_patch16_224",
    "beit_base_patch16_224", "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224",
    "swinv2_tiny_window8_256", "eva02_base_patch14_224", "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224", "maxvit_tiny_tf_224",
    "convnextv2_tiny", "vit_small_r26_s32_224",
]  # fmt: skip
TORCHVISION = ["vit_b_16", "swin_t", "swin_v2_t", "maxvit_t"]
TRANSFORMERS = {  # a model and its configuration, whose default is the base size
    "ViT": "ViTForImageClassification",
    "DeiT": "DeiTForImageClassificationWithTeacher",
    "Dinov2": "Dinov2ForImageClassification",
    "Swin": "SwinForImageClassification",
    "Beit": "BeitForImageClassification",
    "CLIPVision": "CLIPVisionModelWithProjection",
}
NETWORKS = [
    *(f"timm:{name}" for name in TIMM),
    *(f"torchvision:{name}" for name in TORCHVISION),
    *(f"transformers:{name}" for name in TRANSFORMERS),
]
CRITERIA = ("px", score.FORCED, "px-joint")
FOLDER = ROOT / "build" / "transformers"
SOURCES = ("transformers.py", "score.py", "_harness.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--names", nargs="*", default=NETWORKS, help="library:network")
    parser.add_argument("--images", type=int, default=8, help="random images in the batch")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is timed")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="after which no other network is begun"
    )
    parser.add_argument("--record", default="vision", help="name of the record, of a part of them")


def measure(arguments: argparse.Namespace) -> Result:
    """Time and weigh every network."""
    settings = {"images": arguments.images, "repeats": arguments.repeats}
    of = digest(SOURCES, {**settings, "threads": torch.get_num_threads()})
    cells = Cells(FOLDER / "cells.jsonl", of)
    start = time.monotonic()
    for number, name in enumerate(arguments.names, start=1):
        if (name,) not in cells and time.monotonic() - start < 60 * arguments.minutes:
            cells.keep((name,), row(name, arguments.images, arguments.repeats))
            print(f"{number}/{len(arguments.names)}", *cells[name,].values(), flush=True)
    left = [name for name in arguments.names if (name,) not in cells]
    if left:
        print("not measured yet:", *left)
    rows = [cells[name,] for name in arguments.names if (name,) in cells]
    if not rows:
        raise SystemExit("--minutes: no network was begun")
    return Result(
        subject=arguments.record,
        settings=settings,
        rows=rows,
        notes=[
            "× forward is the time in plain forwards of the same images: medians of runs in turn, "
            "in brackets the quartiles. MiB is what one run takes at its peak on top of model and "
            "images."
        ],
    )


def row(name: str, images: int, repeats: int) -> dict[str, object]:
    """Measure one network."""
    model, size = network(name)
    columns: dict[str, object] = {
        "network": name,
        "parameters M": round(sum(map(torch.numel, model.parameters())) / 1e6, 1),
        "image": size,
    }
    del model
    network.cache_clear()  # what is measured runs in processes of its own
    candidates = ("forward", *CRITERIA)
    times = paired_apart(prepare, candidates, repeats=repeats, name=name, images=images)
    columns["forward ms"] = spread([1e3 * value for value in times["forward"]])
    for criterion in CRITERIA:
        columns[f"{criterion} × forward"] = ratio(times[criterion], times["forward"])
    for candidate in candidates:
        memory = peak_memory(prepare, candidate=candidate, name=name, images=images)
        columns[f"{candidate} MiB"] = memory
    return columns


@functools.lru_cache(maxsize=1)
def network(name: str) -> tuple[nn.Module, int]:
    """Return a network, `library:name`, as it is initialised, and the size of its images.

    A process has one of a name: all candidates share it.
    """
    library, _, kind = name.partition(":")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = load(library)
        size = 224
        if library == "timm":
            sized = "dinov2" in kind  # made for 518
            model = module.create_model(kind, **({"img_size": size} if sized else {}))
            size = size if sized else model.default_cfg["input_size"][-1]
        elif library == "torchvision":
            model = getattr(module.models, kind)(weights=None)
        else:
            configuration = getattr(module, f"{kind}Config")(image_size=size)
            model = getattr(module, TRANSFORMERS[kind])(configuration)
    return model.eval(), size


def prepare(candidate: str, name: str, images: int, small: bool) -> Work:
    """Prepare one run of a candidate."""
    model, size = network(name)
    for layer in model.modules():  # torchvision's last one is 0: without a path px refuses it
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.trunc_normal_(layer.weight, std=0.02)
    batch = torch.rand(1 if small else images, 3, size, size)

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights that the output never uses
            score.run(candidate, model, batch, None)

    return work
