"""The enumeration of paths, on networks small enough to do by hand."""

from __future__ import annotations

import nets
import pytest
import torch
from tolerances import TINY_REFERENCES
from torch import nn

from pxfast.reference import paths
from pxfast.reference.units import Concat, Sum


def chain(*weights: float) -> nn.Module:
    """Linear units of width 1 with ReLU between them."""
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, weight)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_the_only_path_of_a_chain():
    (path,) = paths.enumerate_paths(chain(2.0, -3.0), torch.tensor([[5.0], [-7.0]]))
    assert (path.start, path.end, path.v, path.c) == ((0,), (0,), -6.0, 1.0)
    assert path.weights == (("0.weight", (0, 0)), ("2.weight", (0, 0)))
    assert path.a.tolist() == [1, 0]  # the second sample closes the ReLU
    assert path.x.tolist() == [5, -7]


def test_sums_of_a_chain():
    sums = paths.sums_over_paths(chain(2.0, -3.0), torch.tensor([[5.0], [-7.0]]))
    assert (sums.s.tolist(), sums.g.tolist(), sums.R, sums.J) == ([25], [36], 900, 900)
    for scores in (sums.px, sums.joint):
        assert {name: score.item() for name, score in scores.items()} == {
            "0.weight": 1,
            "2.weight": 1,
        }


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (nn.Linear(3, 2), (3,), 6),
        (nn.Conv1d(2, 3, 2), (2, 4), 3 * 3 * 2 * 2),
        (nn.Conv1d(2, 4, 1, groups=2), (2, 3), 4 * 3),
        (nn.Conv1d(1, 1, 3, padding=1), (1, 3), 2 + 3 + 2),
        (nn.MaxPool1d(3, stride=1, padding=1), (1, 3), 2 + 3 + 2),
        (nn.AvgPool2d(2), (1, 4, 4), 16),
        (nn.AdaptiveAvgPool1d(2), (1, 3), 4),
        (Sum(nn.Identity(), nn.Linear(2, 2)), (2,), 2 + 4),
        (Concat(nn.Identity(), nn.Linear(2, 3)), (2,), 2 + 6),
    ],
    ids=str,
)
def test_number_of_paths(model, shape, count):
    assert len(paths.enumerate_paths(model, nets.random_batch(shape))) == count


def test_masked_weights_carry_no_path():
    model, x = nn.Linear(3, 2), nets.random_batch((3,))
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    found = {path.weights[0][1] for path in paths.enumerate_paths(model, x, {"weight": mask})}
    assert found == {(0, 0), (0, 2), (1, 2)}


@pytest.mark.parametrize("batchnorm", ["running", "data"])
@pytest.mark.parametrize("name", [name for name in nets.NETS if name != "functional"])
def test_units_compute_the_network(name, batchnorm):
    net = nets.NETS[name]
    model, x = net.build(seed=1).double(), nets.random_batch(net.shape, seed=1).double()
    units = paths.sums_over_paths(model, x, batchnorm=batchnorm).output
    if batchnorm == "data":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.train()
    torch.testing.assert_close(units, model(x), rtol=TINY_REFERENCES, atol=TINY_REFERENCES)


def test_a_weight_met_twice_counts_twice():
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    model = nn.Sequential(layer, nn.Sequential(layer))
    sums = paths.sums_over_paths(model, torch.ones(1, 2))
    assert sum(float(score.sum()) for score in sums.px.values()) == 2


def test_a_closed_network_is_an_error():
    with pytest.raises(ValueError, match="R = 0"):
        paths.sums_over_paths(chain(1.0, 1.0), torch.tensor([[-1.0]]))


def test_a_layer_that_cannot_be_unrolled_is_an_error():
    with pytest.raises(TypeError, match=r"'1'.*Softmax"):
        paths.enumerate_paths(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), torch.ones(1, 2))


def test_exact_trace_of_a_linear_layer():
    """∂f_k/∂θ_ki = x_i, so tr Θ = K Σ x²."""
    model, x = nn.Linear(3, 2, bias=False), nets.random_batch((3,)).double()
    expected = 2 * x.square().sum()
    assert paths.exact_ntk_trace(model, x) == pytest.approx(float(expected), rel=TINY_REFERENCES)
    mask = torch.tensor([[1, 0, 0], [0, 0, 0]])
    masked = paths.exact_ntk_trace(model, x, {"weight": mask})
    assert masked == pytest.approx(float(x[:, 0].square().sum()), rel=TINY_REFERENCES)
