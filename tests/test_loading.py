from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pxfast.errors import FileFormatError, MissingPackageError, ModelError
from pxfast.loading import load_model, load_weights_, parse_arguments

SOURCE = """
import torch
from torch import nn

NUMBER = 3

def net(inputs=4, hidden=5):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 2))

def tensor():
    return torch.zeros(3)

def fails():
    raise KeyError("gone")
"""


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "my_nets.py"
    path.write_text(SOURCE)
    return path


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# ---- models


def test_a_module_and_its_factory():
    model = load_model("pxfast.models:resnet20", {"num_classes": 7, "in_channels": 1})
    assert model.fc.weight.shape == (7, 64)
    assert not model.training


def test_a_file_and_its_factory(source):
    assert load_model(f"{source}:net", {"hidden": 9})[0].weight.shape == (9, 4)


def test_a_module_in_the_current_folder(source, monkeypatch):
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert isinstance(load_model("my_nets:net"), nn.Sequential)
    sys.modules.pop("my_nets")


def test_a_file_cannot_hide_a_module(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(SOURCE)
    load_model(f"{path}:net")
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet20", "expected pkg.module:factory, .* got 'resnet20'"),
        (":net", "expected pkg.module:factory"),
        ("pxfast.models:", "expected pkg.module:factory"),
        ("no_such_module:net", "cannot import no_such_module: ModuleNotFoundError"),
        ("pxfast.models:resnet99", "pxfast.models has no attribute 'resnet99'"),
        ("{source}:nothing", "has no attribute 'nothing'"),
        ("{source}:NUMBER", "NUMBER is not callable, got a int"),
        ("{source}:tensor", "expected a torch.nn.Module, got a Tensor"),
        ("{source}:fails", r"the factory failed when called with \(\): KeyError: 'gone'"),
        ("nowhere/net.py:net", "no file nowhere/net.py"),
        ("hf:nowhere", "no file nowhere/config.json"),
    ],
)
def test_what_cannot_be_built_is_named(source, spec, message):
    with pytest.raises(ModelError, match=message):
        load_model(spec.format(source=source))


def test_a_wrong_factory_argument_is_named(source):
    with pytest.raises(ModelError, match=r"\(depth=3\): TypeError: .*'depth'"):
        load_model(f"{source}:net", {"depth": 3})


def test_a_file_that_does_not_run_is_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def net(:\n")
    with pytest.raises(ModelError, match=r"broken\.py failed: SyntaxError"):
        load_model(f"{path}:net")


@pytest.mark.parametrize("library", ["timm", "torchvision.models", "transformers"])
def test_a_missing_library_is_named(library, monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, library, None)
    name = library.partition(".")[0]
    spec = f"hf:{tmp_path}" if name == "transformers" else f"{name}:some_name"
    with pytest.raises(MissingPackageError, match=f"needs {library}.*pip install '{name}'"):
        load_model(spec)


@pytest.mark.parametrize(
    ("library", "function"), [("timm", "create_model"), ("torchvision.models", "get_model")]
)
def test_libraries_get_the_name_and_the_arguments(library, function, monkeypatch):
    calls = []

    def build(name, **arguments):
        calls.append((name, arguments))
        return net()

    fake = types.ModuleType(library)
    setattr(fake, function, build)
    monkeypatch.setitem(sys.modules, library, fake)
    load_model(f"{library.partition('.')[0]}:hub:vit_tiny", {"num_classes": 4})
    assert calls == [("hub:vit_tiny", {"num_classes": 4})]


class FakeTransformers(types.ModuleType):
    """The three things that loading uses; says what was called."""

    def __init__(self):
        super().__init__("transformers")
        self.calls = []
        calls = self.calls

        class Net(nn.Linear):
            def __init__(self, config):
                super().__init__(2, config.labels)
                calls.append("from config")

            @classmethod
            def from_pretrained(cls, folder, config, local_files_only):
                assert local_files_only
                model = cls(config)
                calls.append(f"weights of {folder.name}")
                return model

        class AutoConfig:
            @staticmethod
            def from_pretrained(folder, local_files_only, **arguments):
                assert local_files_only
                content = json.loads((folder / "config.json").read_text())
                return types.SimpleNamespace(**{"labels": 2, **content, **arguments})

        self.Net, self.AutoConfig = Net, AutoConfig


def test_transformers_folders(tmp_path, monkeypatch):
    fake = FakeTransformers()
    monkeypatch.setitem(sys.modules, "transformers", fake)
    config = tmp_path / "config.json"
    config.write_text('{"architectures": ["Net"]}')
    assert load_model(f"hf:{tmp_path}", {"labels": 5}).weight.shape == (5, 2)
    assert fake.calls == ["from config"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    load_model(f"hf:{tmp_path}")
    assert fake.calls[1:] == ["from config", f"weights of {tmp_path.name}"]
    config.write_text('{"architectures": ["Unheard"]}')
    with pytest.raises(ModelError, match=r"must name a class of transformers .* \['Unheard'\]"):
        load_model(f"hf:{tmp_path}")


# ---- checkpoints


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_torch_checkpoints(tmp_path, nest, prefix):
    state = net().state_dict()
    stored = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({nest: stored, "epoch": 3} if nest else stored, tmp_path / "net.pth")
    model = net()
    assert not same(model, state)
    load_weights_(model, tmp_path / "net.pth")
    assert same(model, state)


def test_safetensors_checkpoints(tmp_path):
    state = net().state_dict()
    save_file(state, tmp_path / "net.safetensors")
    model = net()
    load_weights_(model, tmp_path / "net.safetensors")
    assert same(model, state)


def test_a_prefix_that_the_model_has_too_stays(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = net()

    state = Wrapped().state_dict()
    torch.save(state, tmp_path / "net.pt")
    model = Wrapped()
    load_weights_(model, tmp_path / "net.pt")
    assert same(model, state)


def test_batchnorm_counters_may_be_missing(tmp_path):
    state = {k: v for k, v in net().state_dict().items() if not k.endswith("tracked")}
    torch.save(state, tmp_path / "net.pt")
    model = net()
    load_weights_(model, tmp_path / "net.pt")
    assert torch.equal(model[0].weight, state["0.weight"])


def test_names_and_shapes_that_do_not_fit_are_told(tmp_path):
    state = net().state_dict()
    state["head.weight"] = state.pop("0.weight")
    state["2.weight"] = torch.zeros(3, 5)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ModelError) as caught:
        load_weights_(net(), tmp_path / "net.pt")
    message = str(caught.value)
    assert "missing from the file: 0.weight;" in message
    assert "unknown to the model: head.weight;" in message
    assert "of another shape: 2.weight (model [2, 5], file [3, 5])" in message


@pytest.mark.parametrize("change", ["missing", "unknown", "of another shape"])
def test_a_model_that_a_checkpoint_does_not_fit_stays_as_it_was(tmp_path, change):
    state = net().state_dict()
    if change == "missing":
        del state["2.bias"]
    else:
        state["head.bias" if change == "unknown" else "2.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "net.pt")
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=change):
        load_weights_(model, tmp_path / "net.pt")
    assert same(model, before)


def test_long_lists_of_names_are_cut(tmp_path):
    torch.save({f"extra{k}": torch.zeros(1) for k in range(20)}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match="extra4 and 15 more"):
        load_weights_(net(), tmp_path / "net.pt")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_checkpoint_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": Bomb()}, "net.pt")
    with pytest.raises(FileFormatError, match="save a plain state_dict"):
        load_weights_(net(), "net.pt")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"foreign", "truncated"])
def test_damaged_checkpoints_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"net.{suffix}"
    if content == "truncated":
        state = net().state_dict()
        (save_file if suffix == "safetensors" else torch.save)(state, path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=f"net.{suffix} cannot be read"):
        load_weights_(net(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "expected a state_dict, got a Tensor"),
        ({}, "expected a state_dict, got a dict"),
        ({"weight": 3}, "not tensors: weight"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(FileFormatError, match=message):
        load_weights_(net(), tmp_path / "net.pt")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"no file .*gone\.pt"):
        load_weights_(net(), tmp_path / "gone.pt")


# ---- arguments


def test_arguments_are_literals_or_strings():
    pairs = ["a=3", "b=0.5", "c=False", "d=gelu", "e=[1, 2]", "f=x=y", "g=", "h=None", "i='3'"]
    assert parse_arguments(pairs) == {
        **{"a": 3, "b": 0.5, "c": False, "d": "gelu", "e": [1, 2]},
        **{"f": "x=y", "g": "", "h": None, "i": "3"},
    }


@pytest.mark.parametrize("pair", ["width", "=3", "my-width=3", "3=4"])
def test_arguments_have_a_form(pair):
    with pytest.raises(ModelError, match=f"expected KEY=VALUE, got '{pair}'"):
        parse_arguments([pair])


def test_an_argument_comes_once():
    with pytest.raises(ModelError, match="'width' is given twice"):
        parse_arguments(["width=3", "width=4"])
