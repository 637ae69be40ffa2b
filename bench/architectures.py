"""Which networks of timm can be scored, and whether the scores are right.

Every convolutional network up to a size, or a small one of each kind with attention, is built with
random weights, norms and biases, and scored by px and px-joint, whole and under random masks, in
float64 on one small random image. The scores are compared with the literal reference. The results
are in docs/architectures.md.
"""

from __future__ import annotations

import argparse
import gc
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import pxfast
from bench import _attention_networks
from bench._attention_networks import randomised as randomised
from bench._libraries import load
from bench._result import Result
from pxfast.errors import PxfastError
from pxfast.reference import px

# modules of timm whose networks are convolutional, some with attention in a few blocks
TIMM_MODULES = [
    "byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn",
    "edgenext", "efficientnet", "fasternet", "fastvit", "ghostnet", "hardcorenas", "hgnet",
    "hrnet", "inception_next", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2",
    "mambaout", "mobilenetv3", "mobilenetv5", "nasnet", "nfnet", "pnasnet", "rdnet", "regnet",
    "repghost", "repvit", "res2net", "resnest", "resnet", "resnetv2", "rexnet", "selecsls",
    "senet", "sknet", "starnet", "tresnet", "vgg", "vovnet", "xception", "xception_aligned",
]  # fmt: skip
DENSITY = 0.7
SMALL, LARGE = 64, 128
NEEDS_LARGE = ("inception", "nasnet", "pnasnet", "legacy_xception")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--largest", type=float, default=8.0, help="millions of parameters of the largest network"
    )
    parser.add_argument("--family", choices=("convolutional", "attention"), default="convolutional")
    parser.add_argument("--names", nargs="*", help="only these networks")


def measure(arguments: argparse.Namespace) -> Result:
    """Score and compare every network."""
    rows: list[dict[str, object]] = []
    attention = arguments.family == "attention"
    every = _attention_networks.NETWORKS if attention else convnets(arguments.largest)
    names = arguments.names or list(every)
    for number, name in enumerate(names, start=1):
        row = examine(name, attention)
        rows.append(row)
        print(f"{number}/{len(names)}", *row.values(), flush=True)
        gc.collect()
    sizes: dict[str, object] = {
        "parameters": f"up to {arguments.largest:g} million",
        "image": f"{SMALL} x {SMALL} ({LARGE} x {LARGE} where it must be)",
    }
    return Result(
        subject="timm-attention" if attention else "timm",
        settings={
            "timm": load("timm").__version__,
            **({} if attention else sizes),
            "density of the masks": DENSITY,
        },
        rows=rows,
        notes=[
            "error: the largest difference from the reference over both criteria, whole and "
            "masked, relative to the largest score of the layer. Both compute in float64.",
        ],
    )


def convnets(largest: float) -> list[str]:
    """Return the names of timm's convolutional networks with at most that many million weights."""
    timm = load("timm")
    names = []
    for module in TIMM_MODULES:
        for name in timm.list_models(module=module):
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parameters = timm.create_model(name, num_classes=7).parameters()
                if sum(map(torch.numel, parameters)) <= largest * 1e6:
                    names.append(name)
    return names


def build(name: str, **options: Any) -> nn.Module:
    """Return a network of timm in float64, its norms and biases not the identity."""
    timm = load("timm")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, num_classes=7, **options)
    return randomised(model).double().eval()


def image(name: str, model: Any) -> Tensor:
    """Return one random image of the smallest size that the network takes."""
    channels, _, full = model.default_cfg["input_size"]
    sizes = [LARGE] if name.startswith(NEEDS_LARGE) else [SMALL]
    for size in (*sizes, full):
        x = torch.randn(1, channels, size, size, dtype=torch.float64)
        try:
            with torch.no_grad():
                model(x)
        except (RuntimeError, AssertionError, ValueError):
            continue
        return x
    raise ValueError(f"{name} takes no image of {channels} x {full} x {full}")


def masks_of(model: nn.Module, density: float = DENSITY) -> dict[str, Tensor]:
    """Return random masks; every output unit keeps one weight at least."""
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and parameter.numel() > parameter.shape[0]:
            noise = torch.rand(parameter.shape, generator=generator)
            smallest = noise.flatten(1).amin(1).view(-1, *[1] * (noise.dim() - 1))
            masks[name] = (noise < density) | (noise == smallest)
    return masks


def examine(name: str, attention: bool = False) -> dict[str, object]:
    """Score one network in four ways and compare."""
    if attention:
        model, x = _attention_networks.network(name)
    else:
        model = build(name)
        x = image(name, model)
    row: dict[str, object] = {
        "network": name,
        "parameters M": round(sum(map(torch.numel, model.parameters())) / 1e6, 1),
    }
    try:
        error = difference(model, x)
    except PxfastError as reason:
        return row | {"scored": "no", "error": "", "why": _short(reason)}
    except Exception as reason:
        return row | {"scored": "yes", "error": "", "why": f"no reference: {_short(reason)}"}
    return row | {"scored": "yes", "error": error, "why": ""}


def difference(model: nn.Module, x: Tensor, density: float = DENSITY) -> float:
    """Return the largest difference of a score from the reference, relative to its layer.

    Infinite where one of them scores other weights than the other, or gives NaN.
    """
    largest, given = 0.0, masks_of(model, density)
    for masked in (False, True):
        for criterion in ("px", "px-joint"):
            masks = given if masked else {}
            scores = pxfast.score(model, x, criterion=criterion, masks=masks)
            expected = px.score(model, x, criterion=criterion, masks=masks)
            given = {name: mask for name, mask in given.items() if name in scores}
            if list(scores) != list(expected):
                return math.inf
            for weight, score in scores.items():
                scale = max(float(expected[weight].abs().max()), torch.finfo(score.dtype).tiny)
                error = float((score - expected[weight]).abs().max()) / scale
                largest = max(largest, math.inf if math.isnan(error) else error)
    return largest


def _short(reason: Exception) -> str:
    text = str(reason).partition("\n")[0].replace("|", "/")
    return text if len(text) < 200 else f"{text[:197]}..."
