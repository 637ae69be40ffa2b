"""PXImportance in Torch-Pruning's own pruners."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from libraries import library
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast

tp = library("torch_pruning")
adapter = pxfast.integrations.torch_pruning
PXImportance = adapter.PXImportance


class Residual(nn.Module):
    """Layers of every kind, a residual stream, a concatenation and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.inner = nn.Conv2d(4, 6, 1)
        self.outer = nn.Conv2d(6, 4, 3, padding=1)
        self.joined = nn.Conv2d(8, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 4, 1, groups=2)
        self.up = nn.ConvTranspose2d(4, 5, 2, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(5 * 4, 7)
        self.fc = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = x + self.outer(torch.relu(self.inner(self.depthwise(x))))
        y = self.grouped(torch.relu(self.joined(torch.cat([x, y], 1))))
        y = self.pool(self.pool(self.up(torch.relu(y))))
        return self.fc(torch.relu(self.hidden(y.flatten(1))))


IMAGES = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def net() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def group_of(model: nn.Module, layer: str, channels: list[int] | None = None) -> object:
    graph = tp.DependencyGraph().build_dependency(model, IMAGES[:1])
    module = model.get_submodule(layer)
    if channels is None:
        channels = list(range(graph.get_out_channels(module)))
    prune = tp.prune_linear_out_channels if layer == "hidden" else tp.prune_conv_out_channels
    return graph.get_pruning_group(module, prune, channels)


def removed_scores(
    model: nn.Module, scores: pxfast.Scores, layer: str, channels: list[int]
) -> float:
    """The sum of the scores that Torch-Pruning cuts out with some channels: the scores take the
    weights' places, and what is left is subtracted."""
    model = copy.deepcopy(model)
    for name, score in scores.items():
        model.get_parameter(name).data.copy_(score)
    group_of(model, layer, channels).prune()
    left = [model.get_parameter(name).detach().sum(dtype=torch.float64) for name in scores]
    return sum(scores.totals().values()) - float(sum(left))


# ---- the importance of a group ----


@pytest.mark.parametrize("layer", ["stem", "inner", "up", "hidden"])
def test_the_importance_is_the_sum_of_the_scores_that_go(layer):
    """stem: residual, depthwise and concatenated; up: transposed, then flattened."""
    model = net()
    scores = pxfast.score(model, IMAGES)
    importance = PXImportance(IMAGES)(group_of(model, layer))
    channels = range(len(importance))
    expected = torch.tensor([removed_scores(model, scores, layer, [c]) for c in channels])
    close(importance, expected, SMALL_NET[torch.float32])


def test_a_channel_of_a_grouped_convolution_goes_with_those_of_the_other_groups():
    model = net()
    scores = pxfast.score(model, IMAGES)
    importance = PXImportance(IMAGES)(group_of(model, "joined"))
    together = importance.view(2, 3).sum(0)  # two groups of three inputs
    expected = [removed_scores(model, scores, "joined", [c, c + 3]) for c in range(3)]
    close(together, torch.tensor(expected), SMALL_NET[torch.float32])


def test_a_channel_s_importance_is_twice_the_mass_of_its_paths():
    """inner is crossed by the branch alone: what comes in goes out."""
    model = net()
    scores = pxfast.score(model, IMAGES)
    importance = PXImportance(IMAGES)(group_of(model, "inner"))
    close(importance, 2 * scores["inner.weight"].sum((1, 2, 3)), SMALL_NET[torch.float32])


def test_some_channels_of_a_group_have_their_own_importance():
    model, importance = net(), PXImportance(IMAGES)
    whole = importance(group_of(model, "inner"))
    assert torch.equal(importance(group_of(model, "inner", [4, 1])), whole[[4, 1]])


def test_what_has_no_scores_is_left_alone():
    model = net()
    importance = PXImportance(IMAGES, exclude=["joined", "grouped"])
    assert importance(group_of(model, "joined")) is None
    assert importance(group_of(model, "grouped")) is not None  # up reads it


def test_options_are_those_of_score():
    model = net()
    scores = pxfast.score(model, IMAGES, criterion="px-joint")
    importance = PXImportance(IMAGES, "px-joint")(group_of(model, "hidden"))
    expected = scores["hidden.weight"].sum(1) + scores["fc.weight"].sum(0)
    close(importance, expected, SMALL_NET[torch.float32])


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


def test_an_attention_counts_all_of_its_projections():
    layer = SelfAttention(4, 2, batch_first=True)
    rows = pxfast.Scores({
        "in_proj_weight": torch.arange(48.0).view(12, 4), "out_proj.weight": torch.rand(4, 4)
    })  # fmt: skip
    importance = PXImportance(IMAGES)
    with mock.patch.object(adapter, "score", return_value=rows):
        importance._update(layer)
    found = importance._of_layer(layer, True)
    packed, out = rows["in_proj_weight"].double(), rows["out_proj.weight"].double()
    by_hand = [
        packed[[c, c + 4, c + 8]].sum() + packed[:, c].sum() + out[c].sum() + out[:, c].sum()
        for c in range(4)
    ]
    close(found, torch.stack(by_hand), SMALL_NET[torch.float64])


# ---- the pruners ----


@pytest.mark.parametrize("pruner", ["BasePruner", "MetaPruner"])
def test_local_pruning_removes_the_lowest_channels_of_each_layer(pruner):
    model = net()
    scores = {name: PXImportance(IMAGES)(group_of(model, name)) for name in ("stem", "inner")}
    kept = {
        name: score.argsort()[len(score) // 2 :].sort().values for name, score in scores.items()
    }
    weight = model.inner.weight.detach()[kept["inner"]][:, kept["stem"]]
    getattr(tp.pruner, pruner)(
        model, IMAGES[:1], PXImportance(IMAGES), pruning_ratio=0.5, ignored_layers=[model.fc]
    ).step()
    assert torch.equal(model.inner.weight, weight)
    assert model(IMAGES).shape == (4, 3)


def test_global_pruning_in_steps_scores_once_a_step():
    model = net()
    images = IMAGES[:1]
    calls = []

    def counted(*args, **kwargs):
        calls.append(sum(parameter.numel() for parameter in model.parameters()))
        return pxfast.score(*args, **kwargs)

    with mock.patch.object(adapter, "score", counted):
        pruner = tp.pruner.BasePruner(
            model, images, PXImportance(IMAGES), global_pruning=True, pruning_ratio=0.4,
            iterative_steps=3, max_pruning_ratio=0.8, ignored_layers=[model.fc],
        )  # fmt: skip
        for _ in range(3):
            pruner.step()
    assert len(calls) == 3
    assert calls == sorted(calls, reverse=True)
    assert len(set(calls)) == 3
    assert model(IMAGES).isfinite().all()


def test_changed_weights_are_scored_again():
    model, importance = net(), PXImportance(IMAGES)
    before = importance(group_of(model, "hidden"))
    assert torch.equal(importance(group_of(model, "hidden")), before)
    with torch.no_grad():
        model.hidden.weight[0].mul_(2)
    after = importance(group_of(model, "hidden"))
    assert after[0] > before[0]


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("name", ["resnet50", "densenet"])
def test_torchvision_s_networks(name, scope):
    models = library("torchvision.models")
    torch.manual_seed(0)
    model = (
        models.resnet50(num_classes=5)
        if name == "resnet50"
        else models.DenseNet(12, (3, 4, 6, 4), 24, num_classes=5)
    ).eval()
    images = torch.randn(1, 3, 32, 32)
    classifier = model.fc if name == "resnet50" else model.classifier
    before = sum(parameter.numel() for parameter in model.parameters())
    pruner = tp.pruner.BasePruner(
        model, images, PXImportance(images), global_pruning=scope == "global", pruning_ratio=0.3,
        max_pruning_ratio=0.9, iterative_steps=2, ignored_layers=[classifier],
    )  # fmt: skip
    for _ in range(2):
        pruner.step()
        assert model(images).shape == (1, 5)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.75 * before


# ---- transformers ----


def vit() -> nn.Module:
    torch.manual_seed(0)
    return library("timm").create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, num_classes=5, embed_dim=24, depth=2,
        num_heads=4,
    ).eval()  # fmt: skip


def swin() -> nn.Module:
    torch.manual_seed(0)
    return library("timm").create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, num_classes=5, embed_dim=12,
        depths=(2, 2), num_heads=(2, 4),
    ).eval()  # fmt: skip


def attentions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "qkv")]


def tell_head_sizes(model: nn.Module, num_heads: dict[nn.Module, int]) -> None:
    """timm's attention keeps its sizes as attributes."""
    for attention in attentions(model):
        attention.num_heads = num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
@pytest.mark.parametrize("whole_heads", [True, False])
def test_vit_loses_its_lowest_heads_or_parts_of_all(whole_heads):
    model, images = vit(), torch.randn(2, 3, 16, 16)
    scores = pxfast.score(model, images)
    before = {a.qkv: a.qkv.weight.detach().clone() for a in attentions(model)}
    importance = {}  # of each head, by hand: its rows of qkv and its columns of proj
    for index, attention in enumerate(attentions(model)):
        rows = scores[f"blocks.{index}.attn.qkv.weight"].sum(1).view(3, 4, 6).sum((0, 2))
        columns = scores[f"blocks.{index}.attn.proj.weight"].sum(0).view(4, 6).sum(1)
        importance[attention.qkv] = rows + columns
    num_heads = {a.qkv: a.num_heads for a in attentions(model)}
    pruner = tp.pruner.BasePruner(
        model, images[:1], PXImportance(images), pruning_ratio=0.5, num_heads=num_heads,
        prune_num_heads=whole_heads, prune_head_dims=not whole_heads, head_pruning_ratio=0.5,
        ignored_layers=[model.head, *(b.attn.proj for b in model.blocks), model.patch_embed],
    )  # fmt: skip
    pruner.step()
    tell_head_sizes(model, pruner.num_heads)
    assert model(images).shape == (2, 5)
    for qkv, weight in before.items():
        assert num_heads[qkv] == (2 if whole_heads else 4)
        assert qkv.weight.shape == (36, 24)
        if whole_heads:
            kept = importance[qkv].argsort()[2:].sort().values
            expected = weight.view(3, 4, 6, 24)[:, kept].reshape(36, 24)
            assert torch.equal(qkv.weight, expected)
    assert [block.mlp.fc1.out_features for block in model.blocks] == [48, 48]


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("build", [vit, swin])
def test_transformers_in_steps(build, scope):
    """The embedding of Swin stays: Torch-Pruning does not follow timm's merging of patches."""
    model = build()
    images = torch.randn(2, 3, *[16 if build is vit else 32] * 2)
    fixed = [model.patch_embed, model.head]
    if build is swin:
        fixed += [layer.downsample for layer in model.layers]
        fixed += [m for n, m in model.named_modules() if n.endswith(("attn.proj", "mlp.fc2"))]
    before = sum(parameter.numel() for parameter in model.parameters())
    pruner = tp.pruner.BasePruner(
        model, images[:1], PXImportance(images), pruning_ratio=0.5, iterative_steps=2,
        max_pruning_ratio=0.7, global_pruning=scope == "global", ignored_layers=fixed,
        num_heads={a.qkv: a.num_heads for a in attentions(model)},
    )  # fmt: skip
    for _ in range(2):
        pruner.step()
        tell_head_sizes(model, pruner.num_heads)
        assert model(images).shape == (2, 5)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.8 * before
    assert pxfast.score(model, images).total < before
