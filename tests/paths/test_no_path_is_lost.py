"""Code that could drop a path while the value goes on: each is right, or a clear error."""

from __future__ import annotations

import nets
import pytest
import torch
import torch.nn.functional as F
from tolerances import SMALL_NET, close
from torch import nn
from torch.utils.checkpoint import checkpoint

import pxfast
from pxfast.errors import NoRuleError, PxfastError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
CRITERIA = ("px", "px-joint")


class Net(nn.Module):
    """Linear, something in the middle, linear."""

    def __init__(self, middle):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.middle = middle

    def forward(self, x):
        return self.b(self.middle(self.a(x)))


MASKS = nets.random_masks(Net(F.relu), 0.7)


def assert_same_as_relu(middle):
    for criterion in CRITERIA:
        expected = pxfast.score(Net(F.relu), X, criterion=criterion, masks=MASKS)
        scores = pxfast.score(Net(middle), X, criterion=criterion, masks=MASKS)
        for name in expected:
            close(scores[name], expected[name], SMALL_NET[torch.float32], name)


@torch.jit.script
def scripted_relu(x: torch.Tensor) -> torch.Tensor:
    return x * (x > 0)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.relu(x)

    @staticmethod
    def backward(ctx, dy):
        return dy


class Binarised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, dy):
        return dy


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scripted_functions_raise(criterion):
    with pytest.raises(NoRuleError, match="scripted or traced"):
        pxfast.score(Net(scripted_relu), X, criterion=criterion, masks=MASKS)


def test_a_scripted_function_raises_even_if_its_error_is_swallowed():
    def swallow(x):
        try:
            return scripted_relu(x)
        except Exception:
            return F.relu(x)

    with pytest.raises(NoRuleError, match="scripted or traced"):
        pxfast.score(Net(swallow), X, masks=MASKS)


def test_autograd_functions_go_by_the_rules_inside_their_forward():
    assert_same_as_relu(Doubled.apply)
    with pytest.raises(PxfastError, match="does not depend on its input"):
        pxfast.score(Net(Binarised.apply), X, masks=MASKS)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing(reentrant):
    assert_same_as_relu(lambda x: checkpoint(F.relu, x, use_reentrant=reentrant))


def test_in_place_operations():
    def added(x):
        x = x.clone()
        x += 1
        x -= 1
        return x.relu_()

    assert_same_as_relu(added)
    assert_same_as_relu(nn.ReLU(inplace=True))
    assert_same_as_relu(lambda x: F.relu(x, True))
    assert_same_as_relu(lambda x: x.clamp_(min=0))


def test_writing_to_a_view_is_an_error_if_the_base_is_read_again():
    def through_view(x):
        x[:, :2].relu_()
        x[:, 2:].relu_()
        return x

    with pytest.raises(NoRuleError, match="in-place operation had changed it"):
        pxfast.score(Net(through_view), X, masks=MASKS)


def test_reading_a_view_whose_base_was_written_is_an_error():
    def stale_view(x):
        view = x[:, :4]
        x.relu_()
        return view

    with pytest.raises(NoRuleError, match="in-place operation had changed it"):
        pxfast.score(Net(stale_view), X, masks=MASKS)


def test_assigning_entries_is_right():
    def assigned(x):
        y = x.clone()
        y[:, :2] = F.relu(x[:, :2])
        y[:, 2:] = F.relu(x[:, 2:])
        return y

    assert_same_as_relu(assigned)

    def cleared(x):
        y = F.relu(x)
        y[:, 1] = 0.0
        return y

    keep = torch.tensor([1.0, 0, 1, 1])
    scores = pxfast.score(Net(cleared), X, criterion="px-joint")
    expected = pxfast.score(Net(lambda x: F.relu(x) * keep), X, criterion="px-joint")
    for name in expected:
        close(scores[name], expected[name], SMALL_NET[torch.float32], name)


def test_writing_a_path_into_a_plain_tensor_is_an_error():
    def preallocated(x):
        y = torch.zeros(x.shape)
        y[:] = F.relu(x)
        return y

    with pytest.raises(NoRuleError, match=r"into a tensor that carries none.*torch\.cat"):
        pxfast.score(Net(preallocated), X, masks=MASKS)
    with pytest.raises(NoRuleError, match="out="):
        pxfast.score(Net(lambda x: torch.add(x, x, out=torch.zeros(3, 4))), X, masks=MASKS)


def test_a_tensor_kept_by_a_hook_is_unusable_afterwards_and_says_so():
    kept = []
    model = Net(F.relu)
    model.a.register_forward_hook(lambda module, args, output: kept.append(output))
    pxfast.score(model, X, masks=MASKS)
    with pytest.raises(NoRuleError, match="after scoring has ended"):
        kept[0] + 1


def test_hooks_can_read_values():
    seen = {}

    def hook(module, args, output):
        seen["mean"] = output.mean().item()
        seen["array"] = output.detach().cpu().numpy()
        seen["text"] = f"{output}"

    model = Net(F.relu)
    expected = model.a(X)
    model.a.register_forward_hook(hook)
    pxfast.score(model, X, criterion="px-joint")
    assert seen["mean"] == pytest.approx(expected.mean().item())
    assert torch.equal(torch.from_numpy(seen["array"]), expected.detach())
    assert "PathTensor" in seen["text"]


class Branching(nn.Module):
    """A forward that looks at values."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        if x.abs().max() > 1e9:
            x = x / 2
        return self.b(F.relu(x))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_control_flow_on_values(criterion):
    torch.manual_seed(1)  # some draws close every path
    model = Branching()
    plain = nn.Sequential(model.a, nn.ReLU(), model.b)
    masks = {"a.weight": MASKS["a.weight"], "b.weight": MASKS["b.weight"]}
    scores = pxfast.score(model, X, criterion=criterion, masks=masks)
    renamed = {"0.weight": MASKS["a.weight"], "2.weight": MASKS["b.weight"]}
    expected = pxfast.score(plain, X, criterion=criterion, masks=renamed)
    for mine, theirs in zip(scores.values(), expected.values(), strict=True):
        close(mine, theirs, SMALL_NET[torch.float32])


def test_gradients_inside_forward_are_refused():
    def differentiates(x):
        x.sum().backward()
        return x

    with pytest.raises(NoRuleError, match="backward was called while scoring"):
        pxfast.score(Net(differentiates), X)


# ---- gate tensors ------------------------------------------------------------------------------


class Shaped(nn.Module):
    """A power of a ReLU in a residual branch, which the rules know as a gate tensor only."""

    def __init__(self, function):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.function = function

    def forward(self, x):
        return self.head(x + self.down(self.function(F.relu(self.up(x)))))


@pytest.mark.parametrize(
    "function",
    [torch.sqrt, lambda x: 2 * (x**3).flip(1), lambda x: nn.Dropout()(torch.exp(x)) - 1],
)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_gate_tensor_that_reaches_a_weight_is_an_error(function, criterion):
    with pytest.raises(NoRuleError, match=r"makes a gate tensor.*reaches the weight down\.weight"):
        pxfast.score(Shaped(function), X, criterion=criterion)


def test_an_output_that_is_a_gate_tensor_is_an_error_that_names_the_function():
    model = nn.Sequential(Net(F.relu), nn.Softplus(), Exponential())
    with pytest.raises(PxfastError, match=r"does not depend on its input \(torch\.exp \(in 2 "):
        pxfast.score(model, X, masks={f"0.{name}": mask for name, mask in MASKS.items()})


class Exponential(nn.Module):
    def forward(self, x):
        return torch.exp(x)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(-1)])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_softmax_over_classes_is_left_off(last, criterion):
    masks = {f"0.{name}": mask for name, mask in MASKS.items()}
    plain = nn.Sequential(Net(F.relu))
    expected = pxfast.score(plain, X, criterion=criterion, masks=masks)
    scores = pxfast.score(nn.Sequential(*plain, last), X, criterion=criterion, masks=masks)
    for name in expected:
        assert torch.equal(scores[name], expected[name]), name
