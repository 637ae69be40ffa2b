from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.test_in_transformers import MODELS, built, images
from libraries import library
from torch import Tensor, nn

import pxfast
from pxfast.errors import MaskError, PxfastError
from pxfast.integrations.accelerate import apply_masks
from pxfast.offload import Offloaded
from pxfast.selection.fingerprint import model_fingerprint

accelerate = library("accelerate")

Offload = Callable[[nn.Module, Path], None]


def mapped(model: nn.Module, folder: Path) -> None:
    """A device_map: the first child stays in memory, the rest is on disk."""
    names = [name for name, _ in model.named_children()]
    places = {name: "disk" if index else "cpu" for index, name in enumerate(names)}
    accelerate.dispatch_model(
        model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


WAYS: dict[str, Offload] = {
    "cpu_offload": lambda model, folder: accelerate.cpu_offload(model),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, str(folder)),
    "device_map": mapped,
}
WAY = pytest.mark.parametrize("way", WAYS)
BATCH = {"pixel_values": images()}


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def small() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def assert_offloaded_as(model: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert any(parameter.is_meta for parameter in after.values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_scores_are_those_of_the_model_in_memory(name, criterion):
    model, output = built(name)
    options: dict[str, Any] = {"output": output, "criterion": criterion}
    expected = pxfast.score(model, BATCH, **options)
    masks = expected.masks(density=0.3)
    under_masks = pxfast.score(model, BATCH, masks=masks, **options)

    accelerate.cpu_offload(model)
    before = dict(model.named_parameters())
    scores = pxfast.score(model, BATCH, **options)
    assert list(scores) == list(expected)
    assert all(torch.equal(scores[n], expected[n]) for n in scores)
    assert all(score.device.type == "cpu" for score in scores.values())
    scores = pxfast.score(model, BATCH, masks=masks, **options)
    assert all(torch.equal(scores[n], under_masks[n]) for n in scores)
    assert_offloaded_as(model, before)


@WAY
def test_every_way_of_offloading_gives_the_same_masks(way, tmp_path):
    expected = pxfast.prune(convnet(), small(), density=0.2, rounds=3, progress=False)
    model = convnet()
    WAYS[way](model, tmp_path)
    before = dict(model.named_parameters())
    masks = pxfast.prune(model, small(), density=0.2, rounds=3, progress=False)
    assert masks == expected
    assert_offloaded_as(model, before)


class Watched(Mapping):
    """A map of weights that counts how many of those it has handed out are still alive."""

    def __init__(self, inner: Mapping[str, Tensor], alive: list[weakref.ref], most: list[int]):
        self.inner, self.alive, self.most = inner, alive, most

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.inner[key].clone()
        self.alive.append(weakref.ref(tensor.untyped_storage()))
        self.alive[:] = [reference for reference in self.alive if reference() is not None]
        self.most[0] = max(self.most[0], len(self.alive))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_weights_are_held_layer_by_layer(criterion):
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(6, 6, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(4, 6)
    expected = pxfast.score(model, x, criterion=criterion)
    accelerate.cpu_offload(model)
    alive: list[weakref.ref] = []
    most = [0]
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and hook.weights_map is not None:
            hook.weights_map = Watched(hook.weights_map, alive, most)
    scores = pxfast.score(model, x, criterion=criterion)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
    assert 1 <= most[0] <= 3, f"{most[0]} of 12 weights at once"


class Refuses(nn.Module):
    """Raises between two modules, when none has its weights loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.special.digamma(self.first(x)))


class Interrupted(nn.Module):
    """Raises inside the forward of a module whose weights are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(torch.special.digamma(x), self.weight)


@pytest.mark.parametrize("kind", [Refuses, Interrupted])
def test_the_model_is_still_offloaded_where_scoring_raises(kind):
    model = nn.Sequential(kind(), nn.Linear(3 if kind is Refuses else 2, 2))
    accelerate.cpu_offload(model)
    before = dict(model.named_parameters())
    with pytest.raises(pxfast.errors.NoRuleError, match="digamma"):
        pxfast.score(model, torch.rand(2, 3))
    assert_offloaded_as(model, before)
    assert all(parameter.is_meta for parameter in model.parameters())


class TiedInterrupted(Interrupted):
    """The same with a buffer, and with a weight that a layer before it uses, too."""

    def __init__(self, tied: nn.Linear) -> None:
        super().__init__()
        self.weight = tied.weight
        self.register_buffer("shift", torch.zeros(3))


def test_an_interrupted_forward_leaves_nothing_loaded(tmp_path):
    """Neither a buffer nor the copy of a tied weight that accelerate's hooks share."""
    first = nn.Linear(3, 3)
    model = nn.Sequential(first, TiedInterrupted(first), nn.Linear(3, 2))
    accelerate.dispatch_model(
        model, dict.fromkeys("012", "disk"), main_device="cpu", offload_dir=str(tmp_path),
        offload_buffers=True, force_hooks=True,
    )  # fmt: skip
    shared = model[1]._hf_hook.tied_params_map
    with pytest.raises(pxfast.errors.NoRuleError, match="digamma"):
        pxfast.score(model, torch.rand(2, 3))
    assert model[1].shift.is_meta
    assert shared and not any(shared.values())


def test_a_forward_that_looks_at_values_is_scored_too():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return self.head(x if x.sum() > 0 else x.relu())

    torch.manual_seed(0)
    model, x = Looks().eval(), torch.rand(3, 3)
    expected = pxfast.score(model, x)
    accelerate.cpu_offload(model)
    before = dict(model.named_parameters())
    scores = pxfast.score(model, x)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
    assert_offloaded_as(model, before)


@WAY
def test_masks_set_zeros_where_the_weights_are_stored(way, tmp_path):
    model = convnet()
    masks = pxfast.score(model, small()).masks(density=0.3)
    expected = masks.apply_(copy.deepcopy(model), in_place=True)
    with torch.no_grad():
        outputs = expected(small())
    WAYS[way](model, tmp_path)
    before = dict(model.named_parameters())
    assert apply_masks(model, masks) is model
    assert_offloaded_as(model, before)
    with torch.no_grad():
        assert torch.equal(model(small()), outputs)
    assert all(torch.equal(offloaded_value(model, n) != 0, masks[n]) for n in masks)


def offloaded_value(model: nn.Module, name: str) -> Tensor:
    offloaded = Offloaded(model)
    return offloaded.load(name) if name in offloaded else model.get_parameter(name)


def test_masks_apply_refuses_an_offloaded_model_and_says_what_to_call():
    model = convnet()
    masks = pxfast.score(model, small()).masks(density=0.3)
    accelerate.cpu_offload(model)
    for in_place in (True, False):
        with pytest.raises(MaskError, match=r"offloaded by accelerate.*accelerate\.apply_masks"):
            masks.apply_(model, in_place=in_place)


def test_weights_in_a_checkpoint_file_are_not_changed(tmp_path):
    transformers = library("transformers")
    model, _ = built("ViT")
    expected = pxfast.score(model, BATCH)
    model.save_pretrained(tmp_path / "model")
    files = {file: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    loaded = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "model", device_map={"vit": "disk", "classifier": "cpu"},
        offload_folder=tmp_path / "offload",
    ).eval()  # fmt: skip
    assert any(parameter.is_meta for parameter in loaded.parameters())
    scores = pxfast.score(loaded, BATCH)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
    with pytest.raises(MaskError, match=r"is read from the checkpoint .*save_pretrained"):
        apply_masks(loaded, scores.masks(density=0.5))
    assert all(file.read_bytes() == content for file, content in files.items())


def test_a_model_has_the_fingerprint_that_it_has_in_memory():
    model, other = convnet(), convnet()
    expected = model_fingerprint(model)
    accelerate.cpu_offload(model)
    assert model_fingerprint(model) == expected
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1
    accelerate.cpu_offload(other)
    assert model_fingerprint(other) != expected


def test_nan_in_an_offloaded_weight_is_named():
    model = convnet()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    accelerate.cpu_offload(model)
    with pytest.raises(PxfastError, match=r"4\.weight holds NaN"):
        pxfast.score(model, small())


def test_criteria_that_need_the_weights_in_memory_say_so():
    model = convnet()
    accelerate.cpu_offload(model)
    with pytest.raises(PxfastError, match="only px and px-joint score such a model"):
        pxfast.score(model, (small(), torch.zeros(5).long()), criterion="snip")


def test_a_weight_on_meta_without_a_hook_is_named():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(PxfastError, match=r"0\.weight is on the meta device, and no hook"):
        pxfast.score(model, torch.rand(2, 3))


def test_float64_stays_float64():
    model = convnet().double()
    expected = pxfast.score(model, small().double())
    accelerate.cpu_offload(model)
    scores = pxfast.score(model, small().double())
    assert all(scores[name].dtype == torch.float64 for name in scores)
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
