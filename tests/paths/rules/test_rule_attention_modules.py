"""nn.MultiheadAttention and nn.Transformer's layers, with all options, against attention spelled
with torch's own function, which test_rule_attention compares with the sums written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attending import BAND, CAUSAL, HEADS, TOKENS, minus
from middles import Case, data_pass_forced
from nets import random_batch, random_masks, seeded
from tolerances import SMALL_NET, close
from torch import Tensor, nn

import pxfast

WIDTH = 4
sdpa = F.scaled_dot_product_attention


class Around(nn.Module):
    """A stem [3 → 4], attention of queries and of two other inputs, a head."""

    def __init__(self, attention: nn.Module, call: Callable[..., Any], others: tuple[int, int]):
        super().__init__()
        self.stem, self.attention, self.call = nn.Linear(3, WIDTH), attention, call
        self.keys, self.values = (nn.Linear(3, width) for width in others)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.stem(x)
        return self.head(q + self.call(self.attention, q, self.keys(x), self.values(x)))


class Spelled(nn.Module):
    """What nn.MultiheadAttention computes, of [N, T, E], with its parameters."""

    def __init__(self, mha: nn.MultiheadAttention) -> None:
        super().__init__()
        self.mha = mha

    def project(self, index: int, x: Tensor) -> Tensor:
        mha = self.mha
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        packed = mha.in_proj_weight
        weight = getattr(mha, names[index]) if packed is None else packed.chunk(3)[index]
        bias = None if mha.in_proj_bias is None else mha.in_proj_bias.chunk(3)[index]
        return F.linear(x, weight, bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        mha, n = self.mha, len(q)
        q, k, v = (self.project(index, x) for index, x in enumerate((q, k, v)))
        if mha.bias_k is not None:
            k, v = (
                torch.cat([x, bias.expand(n, 1, -1)], 1)
                for x, bias in ((k, mha.bias_k), (v, mha.bias_v))
            )
        if mha.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        return mha.out_proj(sdpa(q, k, v, mask).transpose(1, 2).flatten(2))


PADDED = torch.tensor([False, False, False, True, True])
EXTENDED = F.pad(minus(BAND, math.inf), (0, 2))


def itself(mha: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return mha(q, q, q, **options)[0]


def crossed(mha: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return mha(q, k, v, **options)[0]


def tokens_first(mha: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return mha(*(x.transpose(0, 1) for x in (q, k, v)))[0].transpose(0, 1)


def unbatched(mha: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return mha(q[0], k[0], v[0], key_padding_mask=PADDED)[0][None]


def padding(q: Tensor) -> Tensor:
    return PADDED.expand(len(q), -1)


def both(q: Tensor) -> Tensor:
    return minus(CAUSAL & ~PADDED, math.inf).to(q)


def native(mha: nn.MultiheadAttention, q: Tensor, **options: Any) -> Tensor:
    """The fast path, called as nn.MultiheadAttention calls it."""
    weights = (mha.in_proj_weight, mha.in_proj_bias, mha.out_proj.weight, mha.out_proj.bias)
    return torch._native_multi_head_attention(q, q, q, WIDTH, HEADS, *weights, **options)[0]


# how it is called, what that stands for, options of the module
MULTIHEAD: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "self-attention": (
        lambda m, q, k, v: itself(m, q, k, v), lambda s, q, k, v: s(q, q, q), {},
    ),
    "without weights": (
        lambda m, q, k, v: itself(m, q, k, v, need_weights=False),
        lambda s, q, k, v: s(q, q, q), {},
    ),
    "cross-attention": (crossed, lambda s, q, k, v: s(q, k, v), {}),
    "keys that are values": (
        lambda m, q, k, v: m(q, k, k, average_attn_weights=False)[0],
        lambda s, q, k, v: s(q, k, k), {},
    ),
    "kdim and vdim": (crossed, lambda s, q, k, v: s(q, k, v), {"kdim": 3, "vdim": 2}),
    "no bias": (crossed, lambda s, q, k, v: s(q, k, v), {"bias": False}),
    "tokens first": (
        tokens_first, lambda s, q, k, v: s(q, k, v), {"batch_first": False}
    ),
    "bias_k": (crossed, lambda s, q, k, v: s(q, k, v), {"add_bias_kv": True}),
    "add_zero_attn": (crossed, lambda s, q, k, v: s(q, k, v), {"add_zero_attn": True}),
    "both, and a mask": (
        lambda m, q, k, v: crossed(m, q, k, v, attn_mask=~BAND),
        lambda s, q, k, v: s(q, k, v, EXTENDED.to(q)),
        {"add_zero_attn": True, "add_bias_kv": True},
    ),
    "a bool mask": (
        lambda m, q, k, v: crossed(m, q, k, v, attn_mask=~BAND, need_weights=False),
        lambda s, q, k, v: s(q, k, v, BAND), {},
    ),
    "a mask to add": (
        lambda m, q, k, v: crossed(m, q, k, v, attn_mask=minus(BAND, math.inf).to(q)),
        lambda s, q, k, v: s(q, k, v, BAND), {},
    ),
    "a mask by head": (
        lambda m, q, k, v: crossed(m, q, k, v, attn_mask=(~BAND).expand(HEADS * len(q), -1, -1)),
        lambda s, q, k, v: s(q, k, v, BAND), {},
    ),
    "padding": (
        lambda m, q, k, v: crossed(m, q, k, v, key_padding_mask=padding(q)),
        lambda s, q, k, v: s(q, k, v, ~PADDED[None]), {},
    ),
    "padding and causal": (
        lambda m, q, k, v: itself(
            m, q, k, v, key_padding_mask=padding(q), attn_mask=~CAUSAL, is_causal=True
        ),
        lambda s, q, k, v: s(q, q, q, both(q)), {},
    ),
    "causal": (
        lambda m, q, k, v: itself(
            m, q, k, v, attn_mask=~CAUSAL, is_causal=True, need_weights=False
        ),
        lambda s, q, k, v: s(q, q, q, CAUSAL), {},
    ),
    "the fast path": (lambda m, q, k, v: native(m, q), lambda s, q, k, v: s(q, q, q), {}),
    "the fast path, without weights": (
        lambda m, q, k, v: native(m, q, mask=~BAND, mask_type=0, need_weights=False),
        lambda s, q, k, v: s(q, q, q, BAND), {},
    ),
    "the fast path, padding": (
        lambda m, q, k, v: native(m, q, mask=padding(q), mask_type=1),
        lambda s, q, k, v: s(q, q, q, ~PADDED[None]), {},
    ),
}  # fmt: skip


def around(options: dict[str, Any], call: Any, spelled: bool) -> Around:
    """The network in float64; the same weights for both spellings."""

    def build() -> nn.Module:
        mha: nn.Module = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True} | options)
        others = (options.get("kdim", WIDTH), options.get("vdim", WIDTH))
        return Around(Spelled(mha) if spelled else mha, call, others)

    model = seeded(build, 4).double()
    assert isinstance(model, Around)
    return model


def same_scores(model: nn.Module, twin: nn.Module, samples: int = 3) -> None:
    """The same scores, weight by weight in order, for both criteria and under masks."""
    x = random_batch((TOKENS, 3), samples, 7).double()
    weights = list(zip(model.named_parameters(), twin.named_parameters(), strict=True))
    names = {name: theirs for (name, _), (theirs, _) in weights}
    assert all(torch.equal(ours, other) for (_, ours), (_, other) in weights)
    close(model(x), twin(x), SMALL_NET[torch.float64], "values")
    masks = random_masks(model, 0.6)
    for name, weight in model.named_parameters():
        if name.endswith("proj_weight"):
            masks[name] = random_batch(weight.shape, 1)[0] > -0.5
    for criterion in ("px", "px-joint"):
        for given in ({}, masks):
            with data_pass_forced():
                scores = pxfast.score(model, x, criterion=criterion, masks=given)
                renamed = {names[name]: mask for name, mask in given.items()}
                expected = pxfast.score(twin, x, criterion=criterion, masks=renamed)
            assert {names[name] for name in scores} == set(expected)
            for name, score in scores.items():
                close(
                    score, expected[names[name]], SMALL_NET[torch.float64], f"{criterion}: {name}"
                )


@pytest.mark.parametrize("name", MULTIHEAD)
def test_multihead_attention(name):
    call, stands_for, options = MULTIHEAD[name]
    same_scores(around(options, call, False), around(options, stands_for, True))


def test_multihead_attention_without_a_batch():
    same_scores(
        around({}, unbatched, False),
        around({}, lambda s, q, k, v: s(q, k, v, ~PADDED[None]), True),
        samples=1,
    )  # fmt: skip


class Layer(nn.Module):
    """nn.TransformerEncoderLayer's parameters, put together as it says."""

    def __init__(self, layer: nn.TransformerEncoderLayer, mask: Tensor | None) -> None:
        super().__init__()
        self.layer, self.mask = layer, mask

    def forward(self, x: Tensor) -> Tensor:
        layer, attention = self.layer, Spelled(self.layer.self_attn)

        def feed_forward(x: Tensor) -> Tensor:
            return layer.linear2(layer.activation(layer.linear1(x)))

        if layer.norm_first:
            y = layer.norm1(x)
            x = x + attention(y, y, y, self.mask)
            return x + feed_forward(layer.norm2(x))
        x = layer.norm1(x + attention(x, x, x, self.mask))
        return layer.norm2(x + feed_forward(x))


def fast_layer(layer: nn.TransformerEncoderLayer, x: Tensor, mask: Tensor | None) -> Tensor:
    """The fast path of the whole layer, called as nn.TransformerEncoderLayer calls it."""
    attention = layer.self_attn
    return torch._transformer_encoder_layer_fwd(
        x, WIDTH, HEADS, attention.in_proj_weight, attention.in_proj_bias,
        attention.out_proj.weight, attention.out_proj.bias, layer.activation is F.gelu,
        layer.norm_first, layer.norm1.eps, layer.norm1.weight, layer.norm1.bias,
        layer.norm2.weight, layer.norm2.bias, layer.linear1.weight, layer.linear1.bias,
        layer.linear2.weight, layer.linear2.bias, mask, None if mask is None else 0,
    )  # fmt: skip


class Between(nn.Module):
    """A stem, something, a head."""

    def __init__(self, middle: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(3, WIDTH), middle, nn.Linear(WIDTH, 2)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.middle, self.stem(x)))


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 6, batch_first=True, **options)


LAYERS: dict[str, tuple[Any, Tensor | None, dict[str, Any]]] = {
    "post-norm": (lambda m, x: m(x), None, {}),
    "pre-norm": (lambda m, x: m(x), None, {"norm_first": True, "activation": F.gelu}),
    "a mask": (lambda m, x: m(x, src_mask=~BAND), BAND, {}),
    "padding": (lambda m, x: m(x, src_key_padding_mask=padding(x)), ~PADDED[None], {}),
    "causal": (lambda m, x: m(x, src_mask=~CAUSAL, is_causal=True), CAUSAL, {}),
    "the fast path": (lambda m, x: fast_layer(m, x, None), None, {}),
    "the fast path, pre-norm": (
        lambda m, x: fast_layer(m, x, ~BAND),
        BAND,
        {"norm_first": True, "activation": F.gelu},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_encoder_layers(name):
    call, mask, options = LAYERS[name]
    model = seeded(lambda: Between(encoder_layer(**options), call), 4).double()
    twin = seeded(
        lambda: Between(Layer(encoder_layer(**options), mask), lambda m, x: m(x)), 4
    ).double()
    same_scores(model, twin)


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("training", [False, True])
def test_encoders_and_decoders(criterion, training):
    """Each runs in both modes, its residual stream carries all paths."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
            self.transformer = nn.Transformer(WIDTH, HEADS, 2, 2, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            target = x[:, :3]
            mask = nn.Transformer.generate_square_subsequent_mask(3).to(x.dtype)
            return self.head(self.transformer(x, target, tgt_mask=mask, tgt_is_causal=True))

    model = seeded(Both, 3).double().train(training)
    scores = pxfast.score(model, random_batch((TOKENS, 3), 3).double(), criterion=criterion)
    assert len(scores) == sum("weight" in name for name, p in model.named_parameters()
                              if p.dim() == 2)  # fmt: skip
    for name in ("stem.weight", "head.weight"):
        close(scores[name].sum(), torch.ones(()), SMALL_NET[torch.float64], name)
    for name, score in scores.items():
        if "in_proj_weight" in name:
            q, k, v = (part.sum() for part in score.chunk(3))
            close(q, v, SMALL_NET[torch.float64], f"{name}: q")
            close(k, v, SMALL_NET[torch.float64], f"{name}: k")


class Columns(nn.Module):
    """Attention over the columns of [N, E, T]."""

    def __init__(self, call: Callable[..., Any], middle: nn.Module) -> None:
        super().__init__()
        self.call, self.middle = call, middle

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.middle, x.mT)


def mha() -> nn.Module:
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)


def left_aligned(x: Tensor) -> bool:
    there = torch.ones(x.shape[:2], dtype=torch.bool)
    return torch._nested_tensor_from_mask_left_aligned(x[..., None], there)


CALLS = {"nn.TransformerEncoder's question": left_aligned}
CASES = {
    "nn.MultiheadAttention": Case(
        lambda: Columns(lambda m, x: m(x, x, x)[0], mha()), (WIDTH, TOKENS)
    ),
    "its fast path": Case(lambda: Columns(native, mha()), (WIDTH, TOKENS)),
    "a layer's fast path": Case(
        lambda: Columns(lambda m, x: fast_layer(m, x, None), encoder_layer()), (WIDTH, TOKENS)
    ),
}
