"""Names that are almost right are suggested wherever a name is chosen."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

import pxfast
from pxfast.errors import DataError, ModelError, PxfastError
from pxfast.loading import load_model
from pxfast.suggest import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("px_joint", ["px", "px-joint"], "; did you mean px-joint?"),
        ("ResNet5O", ["resnet50", "vgg"], "; did you mean resnet50?"),
        ("net", ["nets", "ne", "other"], "; did you mean nets or ne?"),
        ("vit", ["vit1", "vit2", "vit3", "vit4"], "; did you mean vit4, vit3 or vit2?"),
        ("cifr10:my/data", ["cifar10:DIR", "digits"], "; did you mean cifar10:DIR?"),
        ("quantum", ["px", "snip"], ""),
        ("net", [], ""),
    ],
)
def test_close_names_end_the_sentence(name, known, said):
    assert did_you_mean(name, known) == said


def test_criteria():
    model = nn.Linear(4, 2)
    for name, meant in (("px_joint", "px-joint"), ("synflw", "synflow or synflow-l2")):
        with pytest.raises(PxfastError, match=rf"got '{name}'; did you mean {meant}\?$"):
            pxfast.score(model, torch.ones(1, 4), criterion=name)


def test_data():
    with pytest.raises(DataError, match=r"got 'digit'; did you mean digits\?$"):
        pxfast.data.load("digit")
    with pytest.raises(DataError, match=r"did you mean imagefolder:DIR\?$"):
        pxfast.data.load("ImageFolders:photos")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pxfast.models:resnet2", r"did you mean resnet20 or ResNet\?$"),
        ("resnet50", r"did you mean timm:resnet50 or torchvision:resnet50\?$"),
        ("tim:resnet50", r"No module named 'tim'; did you mean timm:NAME\?$"),
        ("torchvison:resnet50", r"No module named 'torchvison'; did you mean torchvision:NAME\?$"),
        ("pxfast.models:resnet20,", r"did you mean resnet20 or ResNet\?$"),
    ],
)
def test_models(spec, said):
    with pytest.raises(ModelError, match=said):
        load_model(spec)


@pytest.mark.parametrize(
    ("library", "function"), [("timm", "create_model"), ("torchvision.models", "get_model")]
)
def test_models_of_libraries(library, function, monkeypatch):
    def build(name, **arguments):
        raise RuntimeError(f"refused: {name}")

    fake = types.ModuleType(library)
    setattr(fake, function, build)
    fake.list_models = lambda: ["resnet50", "vit_base"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library, fake)
    name = library.partition(".")[0]
    said = rf"^model '{name}:resnet5O': {name} has no model 'resnet5O'; did you mean resnet50\?$"
    with pytest.raises(ModelError, match=said):
        load_model(f"{name}:resnet5O")
    for known in ("resnet50", "ResNet50", "resnet50.a1_in1k", "hf-hub:someone/resnet5O"):
        with pytest.raises(ModelError, match=f"the factory failed .* refused: {known}$"):
            load_model(f"{name}:{known}")
