"""Every path of a tiny network, one by one, and the sums over paths that PX is made of.

`units` unrolls the network into scalar units and the edges between them. A path walks from an
output unit back to an input element and collects the weights on its edges (their product is `v_p`),
the gates at each sample (their product is `a_p(x_n)`) and the coefficients that an operation such
as average pooling applies as it is (`c_p`). With nothing but these,

    h_k(x_n) = Σ_p a_p(x_n)² c_p x_n²        over the paths p that end in output k
    g_k      = Σ_p v_p² c_p
    R        = Σ_k (Σ_n h_k(x_n)) g_k
    J        = Σ_n Σ_k Σ_p a_p(x_n)² v_p² c_p x_n²

The cost grows with the number of paths: use it on networks of a few dozen units.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pxfast.reference.units import Index, Unit, Units, Weight, unroll


@dataclass
class Path:
    """A path from input element `start` to output unit `end`."""

    start: Index
    end: Index
    weights: tuple[Weight, ...]  # from the input to the output
    v: float
    a: Tensor  # [N]
    c: float
    x: Tensor  # [N], the input element it starts from


@dataclass
class PathSums:
    """What the paths of a network add up to."""

    output: Tensor  # [N, K], the real network's, as the scalar units compute it
    s: Tensor  # [K], Σ_n h_k(x_n)
    g: Tensor  # [K]
    R: float
    J: float
    px: dict[str, Tensor]  # S/R of every parameter that lies on a path, float64
    joint: dict[str, Tensor]  # S/J, likewise


def enumerate_paths(
    model: nn.Module,
    x: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
) -> list[Path]:
    """List every path of `model`; a path over a masked weight does not exist.

    Args:
        model: a tiny network made of the layers that `units` can unroll.
        x: inputs, [N, ...].
        masks: 0/1 or bool tensors by parameter name; a missing name keeps everything.
        batchnorm: "running" or "data".
    """
    return _walk(unroll(model, x, masks, batchnorm))


def sums_over_paths(
    model: nn.Module,
    x: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    batchnorm: str = "running",
) -> PathSums:
    """Add up s, g, R, J and both scores over the explicit list of paths."""
    units = unroll(model, x, masks, batchnorm)
    paths = _walk(units)
    a, x2 = (torch.stack(rows) for rows in zip(*((p.a, p.x**2) for p in paths), strict=True))
    v, c = torch.tensor([(p.v, p.c) for p in paths], dtype=torch.float64).T
    in_h = (a**2 * x2).sum(1) * c  # Σ_n a_p(x_n)² c_p x_n², for every path
    in_g = v**2 * c  # v_p² c_p
    in_joint = in_h * v**2

    s, g = dict.fromkeys(units, 0.0), dict.fromkeys(units, 0.0)
    for path, h_term, g_term in zip(paths, in_h.tolist(), in_g.tolist(), strict=True):
        s[path.end] += h_term
        g[path.end] += g_term
    R = sum(s[k] * g[k] for k in units)
    J = float(in_joint.sum())
    if R == 0:
        raise ValueError("paths: R = 0, every path is closed or masked")
    return PathSums(
        output=torch.stack([unit.value for unit in units.values()], dim=1),
        s=torch.tensor(list(s.values()), dtype=torch.float64),
        g=torch.tensor(list(g.values()), dtype=torch.float64),
        R=R,
        J=J,
        px=_by_weight(
            model, paths, [s[p.end] * t / R for p, t in zip(paths, in_g.tolist(), strict=True)]
        ),
        joint=_by_weight(model, paths, (in_joint / J).tolist()),
    )


def _by_weight(model: nn.Module, paths: list[Path], terms: list[float]) -> dict[str, Tensor]:
    """Give every weight the terms of the paths that cross it; crossed twice, it counts twice."""
    sums: dict[Weight, float] = {}
    for path, term in zip(paths, terms, strict=True):
        for weight in path.weights:  # twice: ∂(θ²)²/∂θ² = 2 θ²
            sums[weight] = sums.get(weight, 0.0) + term
    names = {name for name, _ in sums}
    scores = {n: torch.zeros_like(p).double() for n, p in model.state_dict().items() if n in names}
    for (name, index), total in sums.items():
        scores[name][index] = total
    return scores


def score_by_paths(
    model: nn.Module,
    x: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    criterion: str = "px",
    batchnorm: str = "running",
) -> dict[str, Tensor]:
    """Return S/R ("px") or S/J ("px-joint") of every parameter that lies on a path."""
    sums = sums_over_paths(model, x, masks, batchnorm)
    return {"px": sums.px, "px-joint": sums.joint}[criterion]


def exact_ntk_trace(
    model: nn.Module, x: Tensor, masks: Mapping[str, Tensor] | None = None
) -> float:
    """Return tr Θ = Σ_{n,k} ‖∂f_k(x_n)/∂θ‖² of the masked network, from its Jacobian in float64."""
    model = copy.deepcopy(model).double().eval()
    masks = masks or {}
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def f(parameters: dict[str, Tensor]) -> Tensor:
        masked = {n: p * masks[n].double() if n in masks else p for n, p in parameters.items()}
        return torch.func.functional_call(model, masked, (x.double(),))

    jacobian = torch.func.jacrev(f)(parameters)
    return sum(float(entries.square().sum()) for entries in jacobian.values())


def _walk(outputs: Units) -> list[Path]:
    """Follow the edges back from every output, depth first, multiplying on the way."""
    paths = []
    ones = torch.ones_like(next(iter(outputs.values())).value)
    for end, output in outputs.items():
        todo: list[tuple[Unit, tuple[Weight, ...], float, Tensor, float]]
        todo = [(output, (), 1.0, ones, 1.0)]
        while todo:
            unit, weights, v, a, c = todo.pop()
            if unit.start is not None:
                paths.append(Path(unit.start, end, weights, v, a, c, unit.value))
            for edge in unit.edges:
                further = weights if edge.weight is None else (edge.weight, *weights)
                todo.append((edge.source, further, v * edge.value, a * edge.gate,
                             c * edge.coefficient))  # fmt: skip
    return paths
