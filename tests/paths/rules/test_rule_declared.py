"""as_gate: the model says which factor of a product is the gate."""

from __future__ import annotations

import pytest
import torch
from attending import HEADS, NAMES, TOKENS, WIDTH, Attending, attending
from libraries import library
from middles import Case, data_pass_forced, of
from nets import random_batch, random_masks
from tolerances import SMALL_NET, close
from torch import Tensor

import pxfast
from bench import architectures
from pxfast.errors import NoRuleError

CRITERIA = ["px", "px-joint"]
X = random_batch((TOKENS, 3), 3, 7).double()


def factorised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """CoaT's attention: a softmax over the tokens of the keys, and none of the queries."""
    return q @ (k.softmax(2).mT @ v)


def declared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pxfast.as_gate(q) @ (k.softmax(2).mT @ v)


def scaled_and_moved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    gate = pxfast.as_gate(q.mT * 2).mT.reshape(q.shape) / 2
    return gate @ (k.softmax(2).mT @ v)


def written_out(model: Attending, criterion: str, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """S/R: q² and the squared softmax on the value path, 1 and 1/T in g; ℓ the sum of what enters
    either gate."""
    theta = {name: model.get_parameter(name).detach() * masks.get(name, 1.0) for name in NAMES}
    squares = {name: (weight**2).requires_grad_() for name, weight in theta.items()}
    ones = {name: masks.get(name, torch.ones(())).double().expand_as(theta[name]) for name in NAMES}
    with torch.no_grad():
        inner = X @ theta["stem.weight"].mT + model.stem.bias
        q, k, _ = model.split(inner @ theta["qkv.weight"].mT + model.qkv.bias)
        gates = q**2, k.softmax(2) ** 2
    opened = torch.ones_like(q[:1]), torch.full_like(k[:1], 1 / TOKENS)

    def through(weights, x, gates):
        inner = x @ weights["stem.weight"].mT
        _, _, v = model.split(inner @ weights["qkv.weight"].mT)
        context = gates[1].mT @ v
        behind = gates[0] @ context
        out = inner + behind.transpose(1, 2).flatten(2) @ weights["proj.weight"].mT
        q, k, _ = model.split(inner.detach() @ weights["qkv.weight"].mT)
        return out @ weights["head.weight"].mT, (behind, context), (q.sum(), k.sum())

    if criterion == "px":
        s = through(ones, X**2, gates)[0].sum(0).detach()
        out, gated, ells = through(squares, torch.ones_like(X[:1]), opened)
        total = (s * out).sum()
    else:
        out, gated, ells = through(squares, X**2, gates)
        total = out.sum()
    *main, first, second = torch.autograd.grad(total, [*squares.values(), *gated],
                                               retain_graph=True)  # fmt: skip
    scores = {name: squares[name] * slope for name, slope in zip(NAMES, main, strict=True)}
    qkv, size = squares["qkv.weight"], HEADS * WIDTH
    for rows, ell, cotangent, value in zip(
        (slice(size), slice(size, 2 * size)), ells, (first, second), gated, strict=True
    ):
        side = torch.autograd.grad(ell, qkv, retain_graph=True)[0]
        mass = (cotangent * value).sum()
        scores["qkv.weight"][rows] += (qkv * side * mass / ell)[rows]
    return {name: (score / total).detach() for name, score in scores.items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("spelling", [declared, scaled_and_moved])
def test_attention_without_a_softmax_of_queries(spelling, criterion, masked):
    model = attending(spelling)
    masks = random_masks(model, 0.6, 3) if masked else {}
    with data_pass_forced():
        scores = pxfast.score(model, X, criterion=criterion, masks=masks)
    expected = written_out(model, criterion, masks)
    for name in NAMES:
        close(scores[name], expected[name], SMALL_NET[torch.float64], name)
    q, k, v = scores["qkv.weight"].chunk(3)
    for part in (q, k):
        close(part.sum(), v.sum(), SMALL_NET[torch.float64])


def test_the_error_names_the_module_and_says_what_to_do():
    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = attending(factorised)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(NoRuleError, match=r"matmul \(in inner \(Attending\)\).*pxfast\.as_gate"):
        pxfast.score(Outer(), X)


def test_outside_of_scoring_it_is_the_tensor_itself():
    assert pxfast.as_gate(X) is X
    close(attending(declared)(X), attending(factorised)(X), 0.0)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_coat(criterion, monkeypatch):
    """timm's network, once its attention says so."""
    coat = library("timm.models.coat")

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        context = k.softmax(dim=2).transpose(-1, -2) @ v
        x = self.scale * (pxfast.as_gate(q) @ context) + self.crpe(q, v, size=size)
        return self.proj(x.transpose(1, 2).flatten(2))

    model = coat.CoaT(
        img_size=64,
        patch_size=4,
        embed_dims=(8, 16, 16, 24),
        serial_depths=(1,) * 4,
        num_classes=5,
    )
    model = architectures.randomised(model).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = model(x)
    with pytest.raises(NoRuleError, match="FactorAttnConvRelPosEnc"):
        pxfast.score(model, x, criterion=criterion)
    monkeypatch.setattr(coat.FactorAttnConvRelPosEnc, "forward", forward)
    close(model(x), before, SMALL_NET[torch.float64], "the forward")
    scores = pxfast.score(model, x, criterion=criterion)
    assert sum("qkv" in name for name in scores) == 4
    close(scores["head.weight"].sum(), torch.ones(()), SMALL_NET[torch.float64], "the head")


CASES: dict[str, Case] = {"as_gate": of(lambda x: pxfast.as_gate(x[:, :2]) * x[:, 2:])}
