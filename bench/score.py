"""One scoring pass, in plain forwards and against the official algorithm.

For masks of several densities, `pxfast.score` is timed in turn with a plain forward of the same
images, all in one batch, and a plain forward and backward of one of them, in a process for each
criterion; and, in another process, in turn with a plain forward and the official algorithm
(`pxfast.reference.official`). They are apart because the memory that one of them has mapped makes
the next one faster: behind the official algorithm a plain forward of ResNet-50 takes two thirds of
its time. `--alone` leaves the official algorithm out, for networks that it has no memory for.
The masks come from `pxfast.prune` in a few rounds. Without masks px can skip the data pass; it is
also timed with the pass all the same. Peak memory is that of one score, or of the plain forward, in
a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from unittest import mock

import torch
from torch import Tensor, nn

import pxfast
from bench import _setting
from bench._harness import Work, paired_apart, peak_memory, ratio, spread
from bench._result import Result
from pxfast.paths.passes import Passes
from pxfast.reference import official

MASK_ROUNDS = 5
FORCED = "px, data pass forced"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    _setting.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=11, help="how often each is timed")
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[1.0, 0.5, 0.1, 0.02], help="of the masks"
    )
    parser.add_argument(
        "--alone", action="store_true", help="without the official algorithm (ViT-L: over 20 GB)"
    )


def measure(arguments: argparse.Namespace) -> Result:
    """Time and weigh scoring passes at every density."""
    chosen = _setting.of(arguments)
    model, images = _setting.setting(**chosen)
    rows: list[dict[str, object]] = []
    beside = [] if arguments.alone else ["official"]
    for density in arguments.densities:
        masks = masks_of(model, images, density)
        criteria = ("px", FORCED, "px-joint") if density == 1 else ("px", "px-joint")
        with _file_of(masks) as file:
            work = {"masks": file, **chosen}
            times = {name: _times(name, arguments.repeats, **work) for name in criteria}
            if beside:
                for name, columns in _times_beside(criteria, arguments.repeats, **work).items():
                    times[name] |= columns
            memory = {
                candidate: peak_memory(prepare_score, candidate=candidate, **work)
                for candidate in (*criteria, *beside, "forward")
            }
        for criterion in criteria:
            data_pass = _data_pass(run(criterion, model, images, masks))
            mebibytes = {f"{name} MiB": memory[name] for name in (*beside, "forward")}
            rows.append(
                {
                    "criterion": criterion,
                    "density": density,
                    "data pass": data_pass,
                    **times[criterion],
                    "pxfast MiB": memory[criterion],
                    **mebibytes,
                }
            )
    rows.sort(key=lambda row: str(row["criterion"]))
    return Result(
        subject=_setting.subject(arguments.model, images),
        settings={
            **_setting.settings(images),
            "repeats": arguments.repeats,
            "rounds that made the masks": MASK_ROUNDS,
            "MiB of weights": round(sum(p.nbytes for p in model.parameters()) / 2**20, 1),
        },
        rows=rows,
        notes=[
            "× forward is the time in plain forwards of the same images, in one batch as well: of "
            "pxfast in a process without the official algorithm, of that, and beside it, in one "
            "with it. Medians of runs in turn, in brackets the quartiles.",
            "One image is a plain forward and backward of one image, in forwards of all of them: "
            "what the kernel pass does.",
            "MiB is what one score, or the plain forward, takes at its peak on top of model and "
            "images.",
        ],
    )


def masks_of(model: nn.Module, images: Tensor, density: float) -> pxfast.Masks | None:
    """Return masks of a density as pruning in a few rounds leaves them; None for all weights."""
    if density == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that residual branches became empty
        return pxfast.prune(model, images, density=density, rounds=MASK_ROUNDS)


@contextlib.contextmanager
def _file_of(masks: pxfast.Masks | None) -> Iterator[str | None]:
    """A file of the masks, for other processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = None if masks is None else f"{folder}/masks.safetensors"
        if masks is not None:
            masks.save(file)
        yield file


def run(
    candidate: str, model: nn.Module, images: Tensor, masks: Mapping[str, Tensor] | None
) -> object:
    """Do once what is measured: score, or one of the plain passes to compare with.

    Args:
        candidate: `"px"`, `"px-joint"`, `FORCED`, `"official"`, `"forward"` or `"one image"`.
        model: what is scored.
        images: one batch.
        masks: by weight name, or None for all weights.
    """
    if candidate == "forward":
        with torch.no_grad():
            return model(images)
    if candidate == "one image":
        return torch.autograd.grad(model(images[:1]).sum(), list(model.parameters()))
    if candidate == "official":
        return official.score(model, images, masks=masks)
    if candidate == FORCED:  # all of `pxfast.score` runs, but for the proof that the data cancel
        with mock.patch.object(Passes, "data_cancels", lambda passes, batch: False):
            return pxfast.score(model, images, masks=masks)
    return pxfast.score(model, images, criterion=candidate, masks=masks)


def prepare_score(candidate: str, masks: str | None, small: bool, **setting: object) -> Work:
    """Prepare runs of a candidate in another process, under the masks of a file."""
    model, images = _setting.setting(**setting)
    loaded = None if masks is None else pxfast.Masks.load(masks)
    images = images[:2] if small else images
    return lambda: run(candidate, model, images, loaded)


def _times(criterion: str, repeats: int, **arguments: object) -> dict[str, object]:
    """Columns of a criterion timed in turn with the plain passes alone."""
    alone = paired_apart(
        prepare_score, ["forward", "one image", criterion], repeats=repeats, **arguments
    )
    return {
        "forward ms": spread([1e3 * value for value in alone["forward"]]),
        "pxfast × forward": ratio(alone[criterion], alone["forward"]),
        "one image × forward": ratio(alone["one image"], alone["forward"]),
    }


def _times_beside(
    criteria: Sequence[str], repeats: int, **arguments: object
) -> dict[str, dict[str, object]]:
    """Columns, by criterion, of all of them timed in turn with the official algorithm."""
    beside = paired_apart(
        prepare_score, ["forward", *criteria, "official"], repeats=repeats, **arguments
    )
    return {
        criterion: {
            "forward ms beside official": spread([1e3 * value for value in beside["forward"]]),
            "pxfast × forward beside official": ratio(beside[criterion], beside["forward"]),
            "official × forward": ratio(beside["official"], beside["forward"]),
            "official ÷ pxfast": ratio(beside["official"], beside[criterion]),
        }
        for criterion in criteria
    }


def _data_pass(scores: object) -> str:
    """Return "run" or "skipped", as the scores' provenance says."""
    assert isinstance(scores, pxfast.Scores)
    return str(scores.provenance["data_pass"]).partition(":")[0]
