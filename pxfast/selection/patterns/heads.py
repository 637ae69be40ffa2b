"""Whole attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pxfast.errors import MaskError
from pxfast.selection.patterns.pattern import Pattern, Units
from pxfast.selection.sums import row_sums
from pxfast.unwrap import unwrapped


@dataclass(frozen=True)
class HeadLayout:
    """Where the heads of one attention layer lie in its weights.

    Along its outputs (or inputs) a weight holds one or more blocks, and each block the heads one
    after the other: the packed projection of nn.MultiheadAttention and timm is three blocks, for
    queries, keys and values; a separate projection is one. If several query heads share a key and
    value head, these make one group: give the number of groups as `heads`.

    Args:
        heads: Number of heads.
        outputs: Weights whose outputs [blocks · heads · d, …] belong to heads: their number of
            blocks by name.
        inputs: Weights whose inputs [O, blocks · heads · d, …] do, such as the output projection.

    Example:
        The names of transformers' ViT:

        >>> name = "vit.encoder.layer.0.attention"
        >>> layout = HeadLayout(
        ...     heads=12,
        ...     outputs={f"{name}.attention.{x}.weight": 1 for x in ("query", "key", "value")},
        ...     inputs={f"{name}.output.dense.weight": 1},
        ... )
    """

    heads: int
    outputs: Mapping[str, int]
    inputs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {"heads": self.heads, **self.outputs, **self.inputs}
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"HeadLayout: {name} must be a whole number >= 1, got {count!r}")

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of all weights, the projections in first."""
        return (*self.outputs, *self.inputs)

    def owners(self, name: str, weight: Tensor) -> tuple[int, Tensor]:
        """Returns the dimension of a weight along which heads lie, and each index's head.

        Raises:
            MaskError: If the weight's shape does not hold that many heads.
        """
        dim, blocks = (0, self.outputs[name]) if name in self.outputs else (1, self.inputs[name])
        size = weight.shape[dim] if weight.dim() > dim else 0
        if size == 0 or size % (blocks * self.heads):
            raise MaskError(
                f"'{name}' of shape {list(weight.shape)} cannot hold {blocks} x {self.heads} heads "
                f"along dimension {dim}"
            )
        head_size = size // (blocks * self.heads)
        return dim, torch.arange(size, device=weight.device) // head_size % self.heads


@dataclass(frozen=True)
class Heads(Pattern):
    """Attention heads are kept or removed whole: queries, keys, values and the output's inputs.

    The score of a head is the sum of its weights' scores. ``density=`` is the fraction of the
    *heads* that are kept, ``round(density * heads)`` of them exactly, in the network or in each
    layer. All other layers stay as they are. Attention layers without any score are left out.

    ``Heads().of(model)``, which `pxfast.prune` calls by itself, finds the heads of
    nn.MultiheadAttention and of modules with `num_heads`, `qkv` and `proj`, as timm has them. For
    any other attention, give the names of its weights.

    Args:
        layouts: Where the heads are, by the name of the attention layer.

    Example:
        >>> import pxfast
        >>> model = nn.MultiheadAttention(8, num_heads=4)
        >>> scores = pxfast.Scores({
        ...     "in_proj_weight": torch.rand(24, 8), "out_proj.weight": torch.rand(8, 8),
        ... })
        >>> masks = scores.masks(density=0.25, pattern=Heads().of(model))
        >>> masks["out_proj.weight"].sum(1)
        tensor([2, 2, 2, 2, 2, 2, 2, 2])
    """

    layouts: Mapping[str, HeadLayout] = field(default_factory=dict)

    noun = "attention heads"

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for attention, layout in self.layouts.items():
            if not isinstance(layout, HeadLayout):
                raise TypeError(f"Heads: '{attention}' must have a HeadLayout, got {layout!r}")
            for name in layout.weights:
                if other := owner.get(name):
                    raise ValueError(f"Heads: '{name}' belongs to '{other}' and to '{attention}'")
                owner[name] = attention

    def __str__(self) -> str:
        return "heads"

    def of(self, model: nn.Module) -> Pattern:
        """Returns the pattern with the heads found in a model, unless layouts were given.

        Raises:
            MaskError: If none are found.
        """
        if self.layouts:
            return self
        layouts = {
            name: layout
            for name, module in unwrapped(model).named_modules()
            if (layout := _found(name, module)) is not None
        }
        if not layouts:
            raise MaskError(
                "pattern=heads: the model has no nn.MultiheadAttention and no module with "
                "num_heads, qkv and proj. Name the weights: Heads({'layer': HeadLayout(…)})"
            )
        return type(self)(layouts)

    def units(self, scores: Mapping[str, Tensor], alive: Mapping[str, Tensor]) -> Units:
        """Returns one unit per head."""
        unit_scores, unit_alive = {}, {}
        for attention, layout in self._scored(scores).items():
            parts = [
                _by_head(layout, name, scores[name], alive.get(name)) for name in layout.weights
            ]
            device = parts[0][0].device
            unit_scores[attention] = row_sums(torch.cat([x.to(device) for x, _ in parts], 1))
            lives = torch.stack([living.to(device) for _, living in parts])
            unit_alive[attention] = lives.any(0)
        return Units(unit_scores, unit_alive)

    def spread(
        self, kept: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Returns masks in which the slices of a head are all 1 or all 0."""
        masks = {}
        for attention, heads in kept.items():
            layout = self.layouts[attention]
            for name in layout.weights:
                weight = scores[name]
                dim, owners = layout.owners(name, weight)
                shape = [-1 if i == dim else 1 for i in range(weight.dim())]
                mask = heads.to(weight.device)[owners].view(shape)
                masks[name] = mask.expand(weight.shape).contiguous()
        return masks

    def _scored(self, scores: Mapping[str, Tensor]) -> dict[str, HeadLayout]:
        """Returns the layouts of attention layers that have scores, in the scores' order."""
        position = {name: index for index, name in enumerate(scores)}
        first: dict[str, int] = {}
        for attention, layout in self.layouts.items():
            missing = [name for name in layout.weights if name not in position]
            if not missing:
                first[attention] = min(position[name] for name in layout.weights)
            elif len(missing) < len(layout.weights):
                raise MaskError(
                    f"pattern=heads: '{attention}' is scored in part; these have no score: "
                    f"{', '.join(missing)}. Score all weights of an attention layer, or none"
                )
        if not first:
            known = "knows no attention layers" if not self.layouts else "finds none that is scored"
            raise MaskError(
                f"pattern=heads {known}: give Heads().of(model), or the names of the weights by "
                f"Heads({{'layer': HeadLayout(…)}})"
            )
        return {attention: self.layouts[attention] for attention in sorted(first, key=first.get)}  # type: ignore[arg-type]


def _found(name: str, module: nn.Module) -> HeadLayout | None:
    """Returns the layout of an attention layer of a known kind."""
    prefix = f"{name}." if name else ""
    if isinstance(module, nn.MultiheadAttention):
        packed = {f"{prefix}in_proj_weight": 3}
        separate = {f"{prefix}{x}_proj_weight": 1 for x in "qkv"}
        projections = packed if module._qkv_same_embed_dim else separate
        return HeadLayout(module.num_heads, projections, {f"{prefix}out_proj.weight": 1})
    heads = getattr(module, "num_heads", None)
    fused = all(isinstance(getattr(module, x, None), nn.Module) for x in ("qkv", "proj"))
    if isinstance(heads, int) and fused:
        return HeadLayout(heads, {f"{prefix}qkv.weight": 3}, {f"{prefix}proj.weight": 1})
    return None


def _by_head(
    layout: HeadLayout, name: str, score: Tensor, alive: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns a weight's scores by head [heads, weights], and which heads are alive in it."""
    dim, owners = layout.owners(name, score)
    order = owners.argsort(stable=True)

    def by_head(values: Tensor) -> Tensor:
        return values.movedim(dim, 0)[order].flatten(1).reshape(layout.heads, -1)

    if alive is None:
        return by_head(score), torch.ones(layout.heads, dtype=torch.bool, device=score.device)
    return by_head(score.masked_fill(~alive, 0)), by_head(alive).any(1)
