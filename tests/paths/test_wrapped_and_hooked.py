"""Models that are wrapped, hooked, compiled, scripted in parts or called through torch.func."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tolerances import SMALL_NET, close
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pxfast
from pxfast.errors import DataError, NoRuleError

CRITERIA = ("px", "px-joint")
X = nets.random_batch((4,), 3)


class Net(nn.Module):
    """Linear, something in the middle, linear."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x)))


def net(middle: Callable[[Tensor], Tensor] = F.relu) -> Net:
    model = nets.seeded(lambda: Net(middle), 0)
    assert isinstance(model, Net)
    return model


MASKS = nets.random_masks(net(), 0.7)


def assert_same_as_relu(model: nn.Module, rename: Callable[[str], str] = str) -> None:
    for criterion in CRITERIA:
        expected = pxfast.score(net(), X, criterion=criterion, masks=MASKS)
        masks = {rename(name): mask for name, mask in MASKS.items()}
        scores = pxfast.score(model, X, criterion=criterion, masks=masks)
        assert len(scores) == len(expected)
        for name in expected:
            close(scores[rename(name)], expected[name], SMALL_NET[torch.float32], name)


# ---- wrappers -----------------------------------------------------------------------------------


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of one process, over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel():
    model = net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert_same_as_relu(wrapped)
    assert all(p.grad is None for p in model.parameters())
    assert_same_as_relu(torch.compile(wrapped, backend="eager"))


def test_data_parallel_and_compiled():
    assert_same_as_relu(nn.DataParallel(net()))
    assert_same_as_relu(torch.compile(net(), backend="eager"))
    assert_same_as_relu(torch.compile(nn.DataParallel(net()), backend="eager"))


def test_a_module_compiled_in_place():
    model = net()
    model.compile(backend="eager")
    assert_same_as_relu(model)


def test_compiled_parts_are_right_or_an_error():
    """A compiled part runs in eager, or raises; it never loses the path."""
    parts = [
        nets.seeded(lambda: Net(torch.compile(nn.ReLU(), backend="eager")), 0),
        nets.seeded(lambda: Net(torch.compile(lambda x: F.relu(x), backend="eager")), 0),
    ]
    for model in parts:
        assert_same_as_relu(model)


def test_inference_mode_and_inputs_made_in_it():
    with torch.inference_mode():
        assert_same_as_relu(net())
        x = X * 1
    expected = pxfast.score(net(), X, masks=MASKS)
    scores = pxfast.score(net(), x, masks=MASKS)
    for name in expected:
        close(scores[name], expected[name], SMALL_NET[torch.float32], name)


class InferenceInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return F.relu(x)


class NoGradInside(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@pytest.mark.parametrize("middle", [InferenceInside(), NoGradInside()])
def test_grad_modes_of_the_model_s_own(middle):
    """Path arithmetic has a grad mode of its own."""
    assert_same_as_relu(net(middle))


def test_the_model_called_through_torch_func():
    class Called(nn.Module):
        """Calls another module with the parameters that it holds itself."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            values = dict(self.inner.named_parameters())
            return torch.func.functional_call(self.inner, values, (x,))

    assert_same_as_relu(Called(), lambda name: f"inner.{name}")


def test_parameters_of_nobody_get_no_scores():
    """functional_call with tensors that are no parameters of the model: constants."""

    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("other", torch.ones(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return torch.func.functional_call(self.b, {"weight": self.other}, (x,))

    with pytest.warns(UserWarning, match=r"never uses these weights.*b\.weight"):
        scores = pxfast.score(Foreign(), X)
    assert list(scores) == ["a.weight"]


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda f: torch.func.jacrev(f)])
def test_transforms_of_torch_func_inside_the_model(transform):
    with pytest.raises((NoRuleError, DataError)):
        pxfast.score(net(lambda x: transform(F.relu)(x).reshape(len(x), -1)[:, :4]), X, masks=MASKS)


# ---- scripted parts -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(4, 3), torch.jit.script(nn.ReLU()), nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Sequential(torch.jit.script(nn.Tanh()))),
        lambda: nn.Sequential(torch.jit.trace(nn.Linear(4, 3), X), nn.Linear(3, 2)),
    ],
)
def test_scripted_modules_inside_are_an_error(build, criterion):
    with pytest.raises((NoRuleError, TypeError), match="scripted or traced"):
        pxfast.score(build(), X, criterion=criterion)


# ---- checkpointing ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_sequences_and_weights(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(lambda x: F.relu(self.a(x)), x, use_reentrant=reentrant)
            return checkpoint_sequential([self.b], 1, x, use_reentrant=reentrant)

    model = nets.seeded(Checkpointed, 0)
    assert_same_as_relu(model)
    assert_same_as_relu(model.train())
    assert model.training


# ---- hooks --------------------------------------------------------------------------------------


def test_hooks_that_change_what_passes():
    """The network is what the hooks make of it."""
    model = net(nn.Identity())
    model.a.register_forward_hook(lambda module, args, output: F.relu(output))
    assert_same_as_relu(model)
    model = net(nn.Identity())
    model.b.register_forward_pre_hook(lambda module, args: (F.relu(args[0]),))
    assert_same_as_relu(model)


def test_hooks_with_keywords_and_global_ones():
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(4, 4), Gate(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.act(self.a(x), closed=True))

    class Gate(nn.Module):
        def forward(self, x: Tensor, closed: bool) -> Tensor:
            return x * 0 if closed else x

    model = nets.seeded(Keywords, 0)
    seen: list[Any] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {"closed": not kwargs["closed"]}

    def after(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        seen.append(kwargs)
        return F.relu(output)

    model.act.register_forward_pre_hook(before, with_kwargs=True)
    model.act.register_forward_hook(after, with_kwargs=True)
    assert_same_as_relu(model)
    assert {"closed": False} in seen
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(out))
    try:
        assert_same_as_relu(net())
    finally:
        handle.remove()


def test_backward_hooks_are_no_hindrance():
    model = net()
    model.a.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    model.b.register_full_backward_pre_hook(lambda module, grad_output: None)
    assert_same_as_relu(model)


def test_attributes_that_forward_sets_are_put_back():
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.latest = x
            return F.relu(x)

    model = net(Remembers())
    first = model.middle.seen
    assert_same_as_relu(model)
    assert model.middle.seen is first and not hasattr(model.middle, "latest")


# ---- values that leave the tensors ---------------------------------------------------------------


@pytest.mark.parametrize(
    "middle",
    [
        lambda x: F.relu(x.data),
        lambda x: F.relu(x.detach()),
        lambda x: F.relu(x) if x.sum().item() < 1e9 else x,
        lambda x: F.relu(x) if float(x.abs().max()) < 1e9 else x,
        lambda x: F.relu(x) if not x.isnan().any() else x,
        lambda x: (x.tolist(), F.relu(x))[1],
    ],
)
def test_models_that_look_at_values(middle):
    assert_same_as_relu(net(middle))


def test_a_tensor_made_from_numpy_carries_no_path():
    """If nothing else reaches the output, that is an error."""
    with pytest.raises(DataError, match="does not depend on its input"):
        pxfast.score(net(lambda x: torch.from_numpy(x.detach().numpy())), X, masks=MASKS)


@pytest.mark.parametrize(
    "middle",
    [
        lambda x: torch.zeros(3, 4).copy_(x),
        lambda x: torch.zeros(3, 4).index_copy_(1, torch.arange(4), x),
        lambda x: torch.empty(3, 4).set_(x),
        lambda x: torch.tensor(x),
        torch.utils.dlpack.from_dlpack,
    ],
)
def test_writing_into_plain_tensors_is_an_error(middle):
    with pytest.raises((NoRuleError, DataError)):
        pxfast.score(net(middle), X, masks=MASKS)
