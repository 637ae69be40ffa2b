"""Vision transformers of three libraries at full size: time and memory of a score.

Every network is built as it is initialised, without downloads, and `pxfast.score` is timed in turn
with a plain forward of the same random images, in a process of its own: px, which without masks
skips the pass over the data, px with that pass all the same, and px-joint. Small networks of the
same kinds are compared with the literal reference, entry by entry, in
tests/architectures/test_*_transformers.py.
"""

from __future__ import annotations

import argparse
import gc
import warnings

import torch
from torch import Tensor, nn

from bench import score
from bench._harness import Work, paired_apart, peak_memory, ratio, spread
from bench._libraries import load
from bench._result import Result

TIMM = [
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224",
    "vit_large_patch16_224", "vit_huge_patch14_224", "vit_giant_patch14_224",
    "deit_tiny_patch16_224", "deit_base_distilled_patch16_224", "deit3_base_patch16_224",
    "beit_base_patch16_224", "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224",
    "swinv2_tiny_window8_256", "eva02_base_patch14_224", "vit_base_patch14_reg4_dinov2",
    "vit_giant_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "maxvit_tiny_tf_224",
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--names", nargs="*", default=NETWORKS, help="library:network")
    parser.add_argument("--images", type=int, default=8, help="random images in the batch")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time and weigh every network."""
    rows: list[dict[str, object]] = []
    for number, name in enumerate(arguments.names, start=1):
        rows.append(row(name, arguments.images, arguments.repeats))
        print(f"{number}/{len(arguments.names)}", *rows[-1].values(), flush=True)
        gc.collect()
    return Result(
        subject="vision",
        settings={"images": arguments.images, "repeats": arguments.repeats},
        rows=rows,
        notes=[
            "× forward is the time in plain forwards of the same images: medians of runs in turn, "
            "in brackets the quartiles. MiB is what one run takes at its peak on top of model and "
            "images."
        ],
    )


def row(name: str, images: int, repeats: int) -> dict[str, object]:
    """Measure one network."""
    model, batch = setting(name, images)
    columns: dict[str, object] = {
        "network": name,
        "parameters M": round(sum(map(torch.numel, model.parameters())) / 1e6, 1),
        "image": batch.shape[-1],
    }
    del model, batch
    candidates = ("forward", *CRITERIA)
    times = paired_apart(prepare, candidates, repeats=repeats, name=name, images=images)
    columns["forward ms"] = spread([1e3 * value for value in times["forward"]])
    for criterion in CRITERIA:
        columns[f"{criterion} × forward"] = ratio(times[criterion], times["forward"])
    for candidate in candidates:
        memory = peak_memory(prepare, candidate=candidate, name=name, images=images)
        columns[f"{candidate} MiB"] = memory
    return columns


def setting(name: str, images: int) -> tuple[nn.Module, Tensor]:
    """Return a network, `library:name`, as it is initialised, and random images for it."""
    library, _, network = name.partition(":")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = load(library)
        size = 224
        if library == "timm":
            sized = "dinov2" in network  # made for 518
            model = module.create_model(network, **({"img_size": size} if sized else {}))
            size = size if sized else model.default_cfg["input_size"][-1]
        elif library == "torchvision":
            model = getattr(module.models, network)(weights=None)
        else:
            configuration = getattr(module, f"{network}Config")(image_size=size)
            model = getattr(module, TRANSFORMERS[network])(configuration)
    return model.eval(), torch.rand(images, 3, size, size)


def prepare(candidate: str, name: str, images: int, small: bool) -> Work:
    """Prepare one run of a candidate."""
    model, batch = setting(name, 1 if small else images)

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights that the output never uses
            score.run(candidate, model, batch, None)

    return work
