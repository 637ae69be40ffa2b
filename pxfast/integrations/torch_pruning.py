"""Torch-Pruning: PX scores as the importance of channels that are cut out of a network together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pxfast._optional import require
from pxfast.paths.names import named_weights
from pxfast.scoring import score

if TYPE_CHECKING:
    from pxfast.criteria import Criterion

torch_pruning: Any = require("torch_pruning", "pxfast.integrations.torch_pruning",
                             "pxfast[torch-pruning]")  # fmt: skip


class PXImportance(torch_pruning.importance.Importance):
    """The importance of a channel: the sum of the scores of all weights that go with it.

    A path enters a channel through one weight and leaves it through one, each time it comes. So the
    sum is twice the share of the paths' sum that runs through the channel, whether one layer reads
    it or, as in residual networks, many do; and layers compare with each other as they are, without
    a normaliser. Biases and norms have no scores.

    The model is scored when a pruner first asks, and again after it has lost channels or its
    weights have changed. It must run: where a model keeps sizes of its own, such as the head size
    of an attention, set them anew before the next step.

    Args:
        data: What to score on, as for `pxfast.score`.
        criterion: As for `pxfast.score`.
        options: Further options of `pxfast.score`, such as ``output``.

    Example:
        >>> import torch_pruning as tp
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> pruner = tp.pruner.BasePruner(
        ...     model, x, PXImportance(x), pruning_ratio=0.5, ignored_layers=[model[2]]
        ... )
        >>> pruner.step()
        >>> model[0].weight.shape, model[2].weight.shape
        (torch.Size([4, 4]), torch.Size([2, 4]))
    """

    def __init__(self, data: Any, criterion: str | Criterion = "px", **options: Any):
        self.data, self.criterion, self.options = data, criterion, options
        self._scored: list[tuple[nn.Parameter, int]] = []  # parameters and their versions
        self._scores: dict[int, Tensor] = {}  # by id(parameter)

    def __call__(self, group: Any) -> Tensor | None:
        """Returns the importance of a group's channels.

        Args:
            group: A ``tp.Group``.

        Returns:
            Float32, one number per channel of the group's first layer, at least 0; None if nothing
            in the group has scores, so that Torch-Pruning leaves it alone.
        """
        self._update(group._DG.model)
        roots = group[0].root_idxs
        total = torch.zeros(max(roots, default=-1) + 1, dtype=torch.float64)
        has_scores = False
        for item in group:
            layer, idxs, own_roots = item.dep.layer, item.idxs, item.root_idxs
            is_output = group._DG.is_out_channel_pruning_fn(item.dep.pruning_fn)
            sums = self._of_layer(layer, is_output)
            if sums is None or any(root is None for root in own_roots):
                continue
            total.index_add_(0, torch.tensor(own_roots), _take(sums, idxs))
            has_scores = True
        return total[torch.tensor(roots)].float() if has_scores else None

    def _update(self, model: nn.Module) -> None:
        """Scores the model, unless it is still the one that was scored."""
        parameters = [parameter for _, parameter in named_weights(model)]
        now = [(parameter, parameter._version) for parameter in parameters]
        if len(now) == len(self._scored) and all(
            a is b and version == earlier
            for (a, version), (b, earlier) in zip(now, self._scored, strict=True)
        ):
            return
        scores = score(model, self.data, criterion=self.criterion, progress=False, **self.options)
        self._scores = {
            id(parameter): scores[name].double().cpu()
            for name, parameter in named_weights(model)
            if name in scores
        }
        self._scored = now

    def _of_layer(self, layer: Any, is_output: bool) -> Tensor | None:
        """The sums of a layer's scores by output or by input channel, or None if it has none."""
        if isinstance(layer, nn.MultiheadAttention):
            return self._of_attention(layer)
        if not isinstance(layer, (nn.Linear, _ConvNd)):
            return None
        scores = self._scores.get(id(layer.weight))
        if scores is None:
            return None
        groups = getattr(layer, "groups", 1)
        first, second = scores.shape[:2]
        grouped = scores.reshape(groups, first // groups, second, -1)
        by_first = grouped.sum((2, 3)).flatten()
        by_second = grouped.sum((1, 3)).flatten()
        return by_first if is_output != isinstance(layer, _ConvTransposeNd) else by_second

    def _of_attention(self, layer: nn.MultiheadAttention) -> Tensor | None:
        """The sums over all projections by embedding channel, which is input and output at once."""
        packed = [layer.in_proj_weight, layer.q_proj_weight, layer.k_proj_weight,
                  layer.v_proj_weight, layer.out_proj.weight]  # fmt: skip
        found = [self._scores[id(w)] for w in packed if w is not None and id(w) in self._scores]
        if not found:
            return None
        width = layer.embed_dim
        return torch.stack([w.sum(1).view(-1, width).sum(0) + w.sum(0) for w in found]).sum(0)


def _take(sums: Tensor, idxs: Sequence[int]) -> Tensor:
    return sums[torch.tensor(idxs)]
