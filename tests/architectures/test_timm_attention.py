"""timm's networks with attention against the literal reference in float64: one of every kind that
test_timm_transformers has not; `-m sweep` runs them all."""

from __future__ import annotations

import pytest
from libraries import library
from tolerances import ARCHITECTURE, IN_FLOAT32

from bench import _attention_networks, architectures

NETWORKS = (
    "efficientvit, msra",  # the query has layers of its own, heads in a cascade
    "gcvit",  # a global query
    "hiera",  # pooled queries in mask units
    "levit",  # a table of biases, kept between forwards
    "pvt 2, linear",  # keys and values pooled
    "tnt",  # a transformer within each token
    "twins, svt",  # local and subsampled attention
)
CASTING = ("deepseek", "efficientvit, mit", "qwen 3")  # norms in float32, whatever the dtype
REFUSED = {
    "byoanet, lambda": r"LambdaLayer.*pxfast\.as_gate",
    "coat": r"FactorAttnConvRelPosEnc.*pxfast\.as_gate",
    "coat lite": r"FactorAttnConvRelPosEnc.*pxfast\.as_gate",
    "csatv2": r"SpatialTransformerBlock.*mixes the samples",
    "efficientvim": r"HSMSSD.*pxfast\.as_gate",
    "sequencer": r"torch\.lstm has no rule .*LSTM.*Write its steps out",
}


@pytest.mark.filterwarnings("ignore:the output never uses", "ignore:no path sum opens")
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_the_reference(name):
    library("timm")
    assert architectures.difference(*_attention_networks.network(name)) <= ARCHITECTURE


@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_with_its_module_and_a_remedy(name, criterion):
    library("timm")
    model, x = _attention_networks.network(name)
    with pytest.raises(architectures.pxfast.errors.NoRuleError, match=REFUSED[name]):
        architectures.pxfast.score(model, x, criterion=criterion)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore:the output never uses", "ignore:no path sum opens")
def test_all_of_them():
    library("timm")
    rows = [architectures.examine(name, True) for name in _attention_networks.NETWORKS]
    assert [row["network"] for row in rows if row["scored"] == "no"] == sorted(REFUSED)
    compared = [row for row in rows if row["error"] != ""]
    assert len(compared) > 45
    for row in compared:
        limit = IN_FLOAT32 if row["network"] in CASTING else ARCHITECTURE
        assert row["error"] <= limit, row
