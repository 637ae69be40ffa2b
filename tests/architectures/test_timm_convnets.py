"""timm's convolutional networks against the literal reference in float64.

A network for each kind of block that timm has and torchvision has not; `-m sweep` runs them all.
"""

from __future__ import annotations

import pytest
from libraries import library
from tolerances import ARCHITECTURE, DEEP_ARCHITECTURE

from bench import architectures

NARROW = {"channels": (8, 16, 32, 64)}
NETWORKS = {
    "test_resnet": {},  # deep stem, average pooling in the shortcut
    "resnetblur18": NARROW,  # anti-aliased: a fixed kernel
    "seresnet18": NARROW,
    "ecaresnet26t": NARROW,
    "resnet18": NARROW | {"block_args": {"attn_layer": "cbam"}},
    "skresnet18": NARROW,  # selective kernels: a softmax between branches
    "resnest14d": NARROW,  # split attention
    "mobilenetv3_small_050": {},
    "tf_mobilenetv3_small_minimal_100": {},  # "same" padding
    "test_efficientnet_gn": {},
    "test_convnext": {},
    "test_convnext3": {"use_grn": True, "ls_init_value": None, "conv_mlp": True},  # V2
    "test_nfnet": {},  # scaled weight standardisation
    "test_byobnet": {},
    "test_mambaout": {},  # gated convolutions
    "dla46x_c": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_the_reference(name):
    library("timm")
    model = architectures.build(name, **NETWORKS[name])
    assert architectures.difference(model, architectures.image(name, model)) <= ARCHITECTURE


@pytest.mark.parametrize("factor", [1 + 1e-9, float("nan")])
def test_a_difference_is_seen(factor, monkeypatch):
    library("timm")
    model = architectures.build("test_resnet")
    reference = architectures.px.score

    def other(*args, **kwargs):
        scores = reference(*args, **kwargs)
        next(iter(scores.values()))[0] *= factor
        return scores

    monkeypatch.setattr(architectures.px, "score", other)
    x = architectures.image("test_resnet", model)
    assert not architectures.difference(model, x) <= ARCHITECTURE


@pytest.mark.sweep
def test_all_of_them():
    library("timm")
    rows = [architectures.examine(name) for name in architectures.convnets(8.0)]
    assert len(rows) > 100
    compared = [row for row in rows if row["error"] != ""]
    for row in compared:  # EvoNorm takes its statistics in float32, whatever the model's dtype
        limit = DEEP_ARCHITECTURE if "evos" in row["network"] else ARCHITECTURE
        assert row["error"] <= limit, row
