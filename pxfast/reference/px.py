"""The definition of PX, literally: auxiliary networks h and g as changed copies of the real one.

A deep copy of the model runs on a batch and the torch operations it performs are recorded
(`px_graph`). One pass over that graph is the real, masked network and records what every operation
received; further passes over the same graph are the auxiliary networks, in which every operation is
replaced by its rule (`px_rules`, `px_attention`):

    px        s_k = Σ_n h_k(x_n),   R = Σ_k s_k g_k,   S_j = θ_j² ∂R/∂(θ_j²)      reported as S/R
    px-joint  J = Σ_n Σ_k joint_k(x_n),                S_j = θ_j² ∂J/∂(θ_j²)      reported as S/J

Everything is computed on the CPU in float64, without exponents: h grows with depth by about 10^2 a
layer. ResNet-18 and ResNet-50 stay within range (R is about 10^50 and 10^123); ResNet-152 does not,
and is an error.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pxfast.reference.px_graph import Copy
from pxfast.reference.px_networks import Auxiliary, Real

Data = Tensor | tuple[Any, ...] | Iterable[Any]


@dataclass
class Result:
    """Scores and what they are made of; every tensor is float64 on the CPU."""

    scores: dict[str, Tensor]  # S/R or S/J
    total: float  # R or J
    s: Tensor  # [K], Σ_n h_k(x_n), or Σ_n joint_k(x_n)
    g: Tensor | None  # [K], the kernel network's output ("px" only)


def score(
    model: nn.Module,
    data: Data,
    *,
    criterion: str = "px",
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
) -> dict[str, Tensor]:
    """Return the normalised scores of every weight that a path crosses or a gate depends on.

    Args:
        model: any network whose operations are in `px_rules.RULES`.
        data: a tensor or a tuple (inputs first) is one batch; anything else iterates over batches.
        criterion: "px" or "px-joint".
        masks: 0/1 or bool tensors by parameter name, besides those the model carries itself
            (torch.nn.utils.prune, a parametrisation, a 0/1 tensor that multiplies the weight).
        batchnorm: "running" statistics, or those of the "data" batch by batch.

    Raises:
        TypeError: an operation has no rule.
        ValueError: masks do not fit, or R is 0 or not finite.
    """
    return evaluate(model, data, criterion=criterion, masks=masks, batchnorm=batchnorm).scores


def evaluate(
    model: nn.Module,
    data: Data,
    *,
    criterion: str = "px",
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
) -> Result:
    """Like `score`, with R or J, s and g beside the scores."""
    copy = Copy(model, masks, batchnorm)
    reals = _reals(copy, data)
    if criterion == "px":
        s = _activation(reals)
        kernel = _kernel(reals[0])
        g = kernel.sums[0]
        terms = Terms.of(kernel, (s * g).sum(), _side_rows(kernel))
    elif criterion == "px-joint":
        s, g, parts = torch.zeros((), dtype=torch.float64), None, []
        for real in reals:
            joint = Auxiliary(real, real.x**2, gated=True, weighted=True)
            s = s + joint.sums.detach().sum(0)
            parts.append(Terms.of(joint, joint.sums.sum(), _side_rows(joint)))
        terms = functools.reduce(operator.add, parts)
    else:
        raise ValueError(f"criterion must be 'px' or 'px-joint', got {criterion!r}")
    if not (math.isfinite(terms.total) and terms.total > 0):
        raise ValueError(f"{criterion}: the sum over all paths is {terms.total}, out of range")
    return Result(terms.scores(copy.order), terms.total, s, None if g is None else g.detach())


def path_activation(
    model: nn.Module,
    data: Data,
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
) -> Tensor:
    """Return s_k = Σ_n h_k(x_n), [K] float64."""
    return _activation(_reals(Copy(model, masks, batchnorm), data))


def path_kernel(
    model: nn.Module,
    input_shape: tuple[int, ...],
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
) -> Tensor:
    """Return g_k, [K] float64, for inputs of shape [N, *input_shape]."""
    x = torch.ones(2, *input_shape, dtype=torch.float64)
    (real,) = _reals(Copy(model, masks, batchnorm), x)
    return _kernel(real).sums[0].detach()


def ntk_trace_bound(
    model: nn.Module,
    data: Data,
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
) -> float:
    """Return Σ_{n,k} h_k(x_n) Σ_j ∂g_k/∂(θ_j²), which bounds tr Θ of a bias-free ReLU network."""
    reals = _reals(Copy(model, masks, batchnorm), data)
    kernel = _kernel(reals[0])
    R = (_activation(reals) * kernel.sums[0]).sum()
    names = list(kernel.squares)
    gradients = torch.autograd.grad(
        R, [kernel.squares[name] for name in names], allow_unused=True, materialize_grads=True
    )
    return sum(
        float((gradient * kernel.masks[name]).sum())
        for name, gradient in zip(names, gradients, strict=True)
    )


def _reals(copy: Copy, data: Data) -> list[Real]:
    """Run the real network on every batch, in float64 on the CPU."""
    batches = [data] if isinstance(data, Tensor | tuple) else list(data)
    if not batches:
        raise ValueError("reference.px: data holds no batch")
    reals = []
    for batch in batches:
        x = (batch if isinstance(batch, Tensor) else batch[0]).detach().cpu().double()
        with copy.default_dtype():
            reals.append(Real(copy.graph(x), x))
    return reals


def _activation(reals: list[Real]) -> Tensor:
    """Run h over the data: s_k = Σ_n h_k(x_n)."""
    s = torch.zeros((), dtype=torch.float64)
    for real in reals:
        s = s + Auxiliary(real, real.x**2, gated=True, weighted=False).sums.sum(0)
    return s


def _kernel(real: Real) -> Auxiliary:
    """Run g on ones; every sample is the same, and the data does not enter."""
    return Auxiliary(real, torch.ones_like(real.x), gated=False, weighted=True)


@dataclass
class Terms:
    """What one differentiated network contributes to the scores; those of batches add up.

    A weight that only shapes a gate (queries and keys, squeeze-and-excite, gated linear units) lies
    on no value path. For every product gate · value of the network, ℓ is the sum of the path sums
    that open the gate; the weights behind it get θ² ∂ℓ/∂(θ²), accumulated over the batches together
    with ℓ and with the mass, the total of the value branch. The sums are scaled at the end: to
    mass/ℓ times what they are, so that every layer of weights behind the gate totals the mass.
    """

    total: float  # R or J
    main: dict[str, Tensor]  # θ² ∂total/∂(θ²)
    masses: list[float]  # for every product, the part of the total that goes through it
    opening: list[float]  # for every product, ℓ
    side: list[dict[str, Tensor]]  # for every product, θ² ∂ℓ/∂(θ²) on the side rows

    @classmethod
    def of(cls, net: Auxiliary, total: Tensor, rows: dict[str, Tensor]) -> Terms:
        """Differentiate `total` by all squared weights of `net`, every ℓ by those of side rows."""
        leaves = list(net.squares.values())
        outputs = [output for output, _ in net.products]
        openings = [opening for _, opening in net.products]
        gradients = torch.autograd.grad(
            total, [*leaves, *outputs], retain_graph=True, allow_unused=True
        )
        cotangents = gradients[len(leaves) :]
        side = []
        for ell in openings:
            behind = [None] * len(rows)  # ℓ may depend on no weight
            if rows and ell.requires_grad:
                squares = [net.squares[name] for name in rows]
                behind = torch.autograd.grad(ell, squares, retain_graph=True, allow_unused=True)
            terms = _terms(net, rows, behind)
            side.append({name: term * rows[name] for name, term in terms.items()})
        return cls(
            total=total.item(),
            main=_terms(net, net.squares, gradients[: len(leaves)]),
            masses=[
                0.0 if cotangent is None else (output * cotangent).sum().item()
                for output, cotangent in zip(outputs, cotangents, strict=True)
            ],
            opening=[ell.item() for ell in openings],
            side=side,
        )

    def __add__(self, other: Terms) -> Terms:
        """Return the terms of both batches."""

        def plus(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
            both = {name: mine[name] + theirs[name] for name in mine.keys() & theirs.keys()}
            return mine | theirs | both

        return Terms(
            self.total + other.total,
            plus(self.main, other.main),
            [a + b for a, b in zip(self.masses, other.masses, strict=True)],
            [a + b for a, b in zip(self.opening, other.opening, strict=True)],
            [plus(a, b) for a, b in zip(self.side, other.side, strict=True)],
        )

    def scores(self, order: list[str]) -> dict[str, Tensor]:
        """Return S/R by name in the order given: value paths, then side rows."""
        scores = dict(self.main)
        for terms, ell, mass in zip(self.side, self.opening, self.masses, strict=True):
            for name, term in terms.items():
                scores[name] = scores.get(name, 0.0) + term * (mass / ell if ell else 0.0)
        return {name: scores[name] / self.total for name in sorted(scores, key=order.index)}


def _terms(
    net: Auxiliary, names: Iterable[str], gradients: Iterable[Tensor | None]
) -> dict[str, Tensor]:
    """Return θ² · ∂/∂θ² of the weights that have a gradient."""
    pairs = zip(names, gradients, strict=True)
    return {name: (net.squares[name] * dy).detach() for name, dy in pairs if dy is not None}


def _side_rows(net: Auxiliary) -> dict[str, Tensor]:
    """Return, for each weight with side rows, 1 on the rows that no value path leaves, else 0."""
    if not net.products:
        return {}
    ones = torch.ones_like(net.real.x)
    structure = Auxiliary(net.real, ones, gated=False, weighted=False, structure=True)
    leaves = structure.squares
    gradients = torch.autograd.grad(
        structure.sums.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    rows = {}
    for (name, leaf), dy in zip(leaves.items(), gradients, strict=True):
        closed = dy.sum(list(range(1, leaf.dim())), keepdim=True) == 0
        if closed.any():
            rows[name] = closed.double()
    return rows
