"""Models by name, and checkpoints.

A checkpoint never runs code: torch files are read with ``weights_only=True``, safetensors files
hold nothing but tensors. A model's factory is ordinary Python code of the user.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pxfast._optional import require
from pxfast.errors import FileFormatError, ModelError, PxfastError
from pxfast.suggest import did_you_mean

MODEL_NAMES = "pkg.module:factory, path/to/file.py:factory, timm:NAME, torchvision:NAME or hf:DIR"

_LIBRARIES = ("timm", "torchvision", "hf")
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIX = re.compile(r"(module\.|_orig_mod\.)*")  # DataParallel and DDP, torch.compile
_NAMES_SHOWN = 5


def load_model(spec: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds the model that a name stands for.

    Args:
        spec: ``"pkg.module:factory"`` or ``"path/to/file.py:factory"`` (a function or class that
            returns a module), ``"timm:NAME"``, ``"torchvision:NAME"``, or ``"hf:DIR"`` (a local
            transformers folder with ``config.json``; its weights are loaded if they are there).
        arguments: Keyword arguments of the factory, such as ``{"num_classes": 10}``.

    Returns:
        The model in evaluation mode, on the device where its factory put it.

    Raises:
        ModelError: If the name is none of these, nothing of that name exists, or the factory
            fails or returns something else than a module.
        MissingPackageError: If timm, torchvision or transformers is needed and not installed.
    """
    kind, _, name = spec.partition(":")
    if kind not in _LIBRARIES:
        kind, _, name = spec.rpartition(":")
    if not kind or not name:
        meant = f"; did you mean timm:{spec} or torchvision:{spec}?" if spec.isidentifier() else ""
        raise ModelError(f"model: expected {MODEL_NAMES}, got {spec!r}{meant}")
    factory = _factory(spec, kind, name)
    try:
        model = factory(**dict(arguments or {}))
    except PxfastError:
        raise
    except Exception as error:  # the factory is the user's code and can raise anything
        _check_known(spec, kind, name)
        given = ", ".join(f"{key}={value!r}" for key, value in (arguments or {}).items())
        raise ModelError(
            f"model {spec!r}: the factory failed when called with ({given}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {spec!r}: expected a torch.nn.Module, got a {type(model).__name__}"
        )
    return model.eval()


def load_weights_(model: nn.Module, path: str | Path) -> None:
    """Loads a checkpoint into a model, in place.

    Args:
        model: The model; every one of its parameters and buffers must be in the file.
        path: A ``.safetensors`` file, or a torch file that holds a state_dict, alone or under the
            key ``state_dict``, ``model_state_dict`` or ``model``. Prefixes that DataParallel, DDP
            and torch.compile put before every name are taken off.

    Raises:
        FileFormatError: If the file is missing, damaged, or holds anything but tensors.
        ModelError: If names or shapes do not match; the first few of each kind are named. The
            model is unchanged then.
    """
    own = model.state_dict()
    state = _strip_prefix(_read_state(Path(path)), own)
    # Checkpoints from before torch 0.4.1 lack BatchNorm's step counter, which nothing here reads.
    missing = [
        name for name in own if name not in state and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in own]
    differing = [
        f"{name} (model {list(own[name].shape)}, file {list(tensor.shape)})"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing from the file", missing),
            ("unknown to the model", unexpected),
            ("of another shape", differing),
        )
        if names
    ]
    if problems:
        raise ModelError(f"checkpoint {path} does not fit the model; {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


def parse_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads ``key=value`` pairs; a value that is a Python literal is one, else it is a string.

    Args:
        pairs: Such as ``["num_classes=10", "batchnorm=False", "act=gelu"]``.

    Returns:
        The keyword arguments.

    Raises:
        ModelError: If a pair is not of the form ``key=value`` or a key comes twice.

    Example:
        >>> parse_arguments(["num_classes=10", "act=gelu"])
        {'num_classes': 10, 'act': 'gelu'}
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key.isidentifier():
            raise ModelError(f"model argument: expected KEY=VALUE, got {pair!r}")
        if key in arguments:
            raise ModelError(f"model argument {key!r} is given twice")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key] = text
    return arguments


def _factory(spec: str, kind: str, name: str) -> Callable[..., Any]:
    """The function that builds the model."""
    if kind == "timm":
        create_model = require("timm", f"model {spec!r}", "timm").create_model
        return lambda **arguments: create_model(name, **arguments)
    if kind == "torchvision":
        get_model = require("torchvision.models", f"model {spec!r}", "torchvision").get_model
        return lambda **arguments: get_model(name, **arguments)
    if kind == "hf":
        return lambda **arguments: _transformers_model(spec, Path(name), arguments)
    module = _file_module(spec, Path(kind)) if kind.endswith(".py") else _module(spec, kind)
    if not hasattr(module, name):
        made = (other for other, value in vars(module).items() if callable(value))
        meant = did_you_mean(name, made)
        raise ModelError(f"model {spec!r}: {kind} has no attribute {name!r}{meant}")
    factory = getattr(module, name)
    if not callable(factory):
        raise ModelError(f"model {spec!r}: {name} is not callable, got a {type(factory).__name__}")
    return factory


def _check_known(spec: str, library: str, name: str) -> None:
    """Raises a ModelError if the library that failed to build a model has none of that name."""
    if library not in ("timm", "torchvision") or ":" in name:  # timm takes hf-hub:… and others
        return
    package = "timm" if library == "timm" else "torchvision.models"
    known = require(package, f"model {spec!r}", library).list_models()
    if name.lower().partition(".")[0] not in known:  # timm's names of weights follow a dot
        meant = did_you_mean(name, known)
        raise ModelError(f"model {spec!r}: {library} has no model {name!r}{meant}") from None


def _module(spec: str, name: str) -> ModuleType:
    """Imports a module by name; the current folder is searched last."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing runs the user's code, which can raise anything
        gone = isinstance(error, ModuleNotFoundError) and error.name == name
        meant = did_you_mean(name, [f"{library}:NAME" for library in _LIBRARIES]) if gone else ""
        raise ModelError(
            f"model {spec!r}: cannot import {name}: {type(error).__name__}: {error}{meant}"
        ) from error


def _file_module(spec: str, path: Path) -> ModuleType:
    """Imports a Python file by its path, under a name that cannot hide another module."""
    if not path.is_file():
        raise ModelError(f"model {spec!r}: no file {path}")
    name = f"pxfast_user_model_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(
            f"model {spec!r}: {path} failed: {type(error).__name__}: {error}"
        ) from error
    return module


def _transformers_model(spec: str, folder: Path, arguments: Mapping[str, Any]) -> nn.Module:
    """The architecture that a transformers folder names, with the folder's weights if any."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {spec!r}: no file {folder / 'config.json'}")
    transformers = require("transformers", f"model {spec!r}", "transformers")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **arguments)
    names = config.architectures or []
    kinds = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not kinds:
        raise ModelError(
            f"model {spec!r}: config.json must name a class of transformers under "
            f"'architectures', got {names}"
        )
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return kinds[0].from_pretrained(folder, config=config, local_files_only=True)
    return kinds[0](config)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state_dict in a checkpoint file."""
    if not path.is_file():
        raise FileFormatError(f"checkpoint: no file {path}")
    try:
        if path.suffix == ".safetensors":
            content = require("safetensors.torch", f"checkpoint {path}", "safetensors").load_file(
                path
            )
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PxfastError:
        raise
    except Exception as error:  # damaged files raise anything
        raise FileFormatError(
            f"checkpoint {path} cannot be read as {path.suffix or 'a torch file'} with tensors "
            f"only ({type(error).__name__}); save a plain state_dict: "
            f"torch.save(model.state_dict(), ...)"
        ) from error
    for key in _NESTED_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise FileFormatError(
            f"checkpoint {path}: expected a state_dict, got a {type(content).__name__}"
        )
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise FileFormatError(
            f"checkpoint {path}: expected a state_dict, not tensors: {_some(odd)}"
        )
    return content


def _strip_prefix(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Takes off what wrappers put before every name, unless the model's names have it too."""
    match = _WRAPPER_PREFIX.match(next(iter(state)))
    prefix = match.group() if match else ""
    if any(name.startswith(prefix) for name in own):
        return state
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
