"""prune() with patterns and floors: schedules, choices of layers, resuming, files, warnings."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

import pxfast
from pxfast.errors import FileFormatError, MaskError
from pxfast.patterns import NM, Channels, HeadLayout, Heads

BATCHES = [torch.rand(4, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 16), nn.ReLU(),
                             nn.Linear(16, 4))  # fmt: skip


class Varying:
    """|θ| under the masks, times random numbers that depend on the masks; notes what it saw."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.stop_before, self.masks = stop_before, []

    def score(self, model: nn.Module, data, *, masks):
        if len(self.masks) + 1 == self.stop_before:
            raise KeyboardInterrupt
        self.masks.append({name: mask.clone() for name, mask in masks.items()})
        seed = sum(int(mask.sum()) for mask in masks.values())
        generator = torch.Generator().manual_seed(seed)
        return {
            name: weight.abs()
            * torch.rand(weight.shape, generator=generator)
            * masks.get(name, torch.ones(()))
            for name, weight in model.named_parameters()
            if weight.dim() > 1
        }


def run(model: nn.Module | None = None, **options):
    given = {"criterion": Varying(), "rounds": 4, "progress": False, **options}
    return pxfast.prune(net() if model is None else model, BATCHES, **given)


def channels(mask: Tensor) -> int:
    return int(mask.flatten(1).any(1).sum())


def whole_rows(mask: Tensor) -> bool:
    rows = mask.flatten(1)
    return torch.equal(rows.any(1), rows.all(1))


# ---- the rounds ----

SCHEDULES = [
    ("exponential", [2 ** (-r / 4) for r in range(1, 5)]),
    ("linear", [0.875, 0.75, 0.625, 0.5]),
    ([0.9, 0.5, 0.5], [0.9, 0.5, 0.5]),
]


@pytest.mark.parametrize(("schedule", "fractions"), SCHEDULES)
def test_channels_by_any_schedule(schedule, fractions):
    criterion = Varying()
    masks = run(density=0.5, pattern="channels", schedule=schedule, criterion=criterion)
    rounds = [*criterion.masks[1:], masks]
    assert all(whole_rows(mask) for seen in rounds for mask in seen.values())
    assert [sum(map(channels, seen.values())) for seen in rounds] == [
        round(fraction * 32) for fraction in fractions
    ]
    assert not any(
        bool((after[name] & ~before[name]).any())
        for before, after in itertools.pairwise(rounds)
        for name in after
    )


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(("schedule", "fractions"), SCHEDULES)
def test_the_rounds_end_at_two_of_four(schedule, fractions, scope):
    """On the way the two best of each group are safe, and all others compete."""
    criterion = Varying()
    masks = run(pattern="2:4", schedule=schedule, scope=scope, criterion=criterion)
    rounds = [*criterion.masks[1:], masks]
    sizes = [masks[name].numel() for name in masks]
    for seen, fraction in zip(rounds, fractions, strict=True):
        kept = [int(mask.sum()) for mask in seen.values()]
        assert sum(kept) == round(fraction * sum(sizes))
        if scope == "layer":
            assert kept == [round(fraction * size) for size in sizes]
        assert all(bool((mask.view(-1, 4).sum(1) >= 2).all()) for mask in seen.values())
    assert all(bool((mask.view(-1, 4).sum(1) == 2).all()) for mask in masks.values())
    uneven = [mask.view(-1, 4).sum(1).unique() for mask in rounds[0].values()]
    assert any(len(counts) > 1 for counts in uneven)
    assert masks.provenance["density"] == 0.5
    assert masks.provenance["pattern"] == "2:4"


def test_floors_hold_in_every_round():
    class Uneven(Varying):
        def score(self, model, data, *, masks):
            scores = super().score(model, data, masks=masks)
            return {n: s * (1e-9 if n == "2.weight" else 1.0) for n, s in scores.items()}

    criterion = Uneven()
    options = {"density": 0.2, "pattern": Channels(), "rounds": 5}
    masks = run(**options, min_density=0.1, criterion=criterion)
    counts = [channels(seen["2.weight"]) for seen in [*criterion.masks[1:], masks]]
    assert counts[-1] == 2  # of 16
    assert sum(map(channels, masks.values())) == round(0.2 * 32)
    assert masks.provenance["min_density"] == 0.1
    with pytest.warns(UserWarning, match=r"left no weight in 2\.weight"):
        run(**options, criterion=Uneven())


def test_px_with_patterns_is_two_scores_in_two_rounds():
    model = net().eval()
    masks = run(model, pattern="2:4", rounds=2, criterion="px")
    pattern, first = NM(2, 4), pxfast.score(model, BATCHES)
    safe = first.masks(pattern=pattern)
    count = round(0.5**0.5 * first.total) - safe.kept
    others = pxfast.Scores({n: s.masked_fill(safe[n], -1) for n, s in first.items()})
    more = others.masks(density=count / first.total)
    between = {name: safe[name] | more[name] for name in safe}
    assert sum(int(mask.sum()) for mask in between.values()) == round(0.5**0.5 * first.total)
    second = pxfast.score(model, BATCHES, masks=between)
    assert masks == second.masks(pattern=pattern, masks=between)


def test_heads_are_found_in_the_model():
    torch.manual_seed(0)
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 4), "fc": nn.Linear(8, 4)})
    masks = run(model, density=0.5, pattern="heads", rounds=2)
    assert [int(mask.sum()) for mask in masks.values()] == [96, 32, 32]
    with pytest.raises(MaskError, match=r"has no nn\.MultiheadAttention"):
        run(density=0.5, pattern="heads")


# ---- which layers, and which weights are left ----


def test_layers_left_out_have_no_masks():
    masks = run(density=0.5, pattern="channels", criterion="px", exclude="4.*")
    assert list(masks) == ["0.weight", "2.weight"]
    assert sum(map(channels, masks.values())) == 14
    masks = run(pattern="2:4", criterion="px", include=["2.*"])
    assert list(masks) == ["2.weight"]


def test_layers_that_do_not_fit_are_named_once():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.warns(UserWarning) as caught:
        masks = run(model, pattern="2:4")
    (warning,) = caught
    assert str(warning.message) == (
        "pattern=2:4 does not fit, and leaves dense: 2.weight (6 inputs)"
    )
    assert warning.filename == __file__
    assert [layer.density for layer in masks.layers] == [0.5, 1.0]


def test_earlier_masks_may_have_left_less_than_the_pattern():
    """From 30% of the weights, 2:4 keeps what it can: two of a group at most."""
    generator = torch.Generator().manual_seed(0)
    start = {
        name: torch.rand(weight.shape, generator=generator) < 0.3
        for name, weight in net().named_parameters()
        if weight.dim() > 1
    }
    criterion = Varying()
    masks = run(pattern="2:4", masks=start, criterion=criterion)
    for name, mask in masks.items():
        alive = start[name].view(-1, 4).sum(1)
        assert torch.equal(mask.view(-1, 4).sum(1), alive.clamp(max=2))
        assert not (mask & ~start[name]).any()
    counts = [sum(int(m.sum()) for m in seen.values()) for seen in [*criterion.masks, masks]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


@pytest.mark.filterwarnings("ignore:round .* left no weight")
def test_the_schedule_starts_from_the_channels_that_are_left():
    start = {"0.weight": torch.ones(12, 8), "2.weight": torch.ones(16, 12)}
    start["2.weight"][:8] = 0
    start["2.weight"][8:, 1:] = 0  # 8 channels with one weight each
    criterion = Varying()
    options = {"density": 0.25, "pattern": "channels", "masks": start}
    masks = run(**options, schedule="linear", criterion=criterion)
    seen = [sum(map(channels, given.values())) for given in [*criterion.masks[1:], masks]]
    assert seen == [20, 16, 12, 8]  # from 24 of 32
    with pytest.raises(MaskError, match=r"channels in 3 layers is 26 channels, but .* only 24"):
        run(density=0.8, pattern="channels", masks=start)


def test_no_warnings_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pattern="2:4", criterion="px")
        run(density=0.6, pattern="channels", criterion="px", scope="layer")


# ---- resuming and files ----

LAYOUT = HeadLayout(2, outputs={"0.weight": 1}, inputs={"2.weight": 1})
PATTERNS = [
    {"pattern": "2:4"}, {"pattern": Channels(), "density": 0.4},
    {"pattern": Heads({"a": LAYOUT}), "density": 0.5}, {"min_density": 0.1, "density": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("options", PATTERNS, ids=["2:4", "channels", "heads", "floors"])
@pytest.mark.parametrize("stop", [2, 4])
def test_resumed_runs_end_at_the_same_bits(tmp_path, options, stop):
    whole = run(**options)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "c", **options, criterion=Varying(stop_before=stop))
    criterion = Varying()
    resumed = run(checkpoint=tmp_path / "c", **options, criterion=criterion)
    assert len(criterion.masks) == 4 - stop + 1
    assert resumed == whole
    assert resumed.provenance == whole.provenance


@pytest.mark.parametrize("other", range(5))
def test_checkpoints_of_other_patterns_are_refused(tmp_path, other):
    layouts = {"a": HeadLayout(4, LAYOUT.outputs, LAYOUT.inputs)}
    options = [{"pattern": "1:4"}, {"pattern": None, "density": 0.5}, {"pattern": "channels",
               "density": 0.5}, {"pattern": Heads(layouts), "density": 0.5},
               {"min_density": 0.1, "density": 0.5}]  # fmt: skip
    first = {"pattern": Heads({"a": LAYOUT}), "density": 0.5} if other == 3 else {"pattern": "2:4"}
    run(checkpoint=tmp_path / "c", **first)
    with pytest.raises(FileFormatError, match=r"checkpoint of a run with (pattern|density|min_)"):
        run(checkpoint=tmp_path / "c", **options[other])


@pytest.mark.parametrize("options", PATTERNS, ids=["2:4", "channels", "heads", "floors"])
def test_masks_and_their_pattern_are_in_the_file(tmp_path, options):
    masks = run(**options)
    expected = {name: masks.provenance.get(name) for name in ("pattern", "min_density", "scope")}
    assert expected["pattern"] == (str(options["pattern"]) if "pattern" in options else None)
    assert expected["min_density"] == options.get("min_density")
    masks.save(tmp_path / "m.safetensors")
    loaded = pxfast.Masks.load(tmp_path / "m.safetensors")
    assert loaded == masks
    assert loaded.provenance == masks.provenance


def test_scores_of_any_criterion_from_a_file_take_patterns(tmp_path):
    scores = pxfast.Scores(Varying().score(net(), BATCHES, masks={}), {"criterion": "mine"})
    scores.save(tmp_path / "s.safetensors")
    loaded = pxfast.Scores.load(tmp_path / "s.safetensors")
    for options in PATTERNS:
        masks = loaded.masks(**options)
        assert masks == scores.masks(**options) == run(rounds=1, **options)
        assert masks.provenance["criterion"] == "mine"
