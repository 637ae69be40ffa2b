"""What a pruning run needs to go on after a kill, in one file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pxfast.errors import FileFormatError
from pxfast.rng import RngState
from pxfast.selection.files import pack_masks, read_tensors, unpack_masks, write_tensors

KIND = "pxfast.checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a pruning run between two rounds.

    Attributes:
        round: Number of rounds done.
        masks: Masks after them.
        run: What must be the same to go on: settings, fingerprints of the model and the data.
        provenance: Provenance of the masks.
        rng: The states of all generators at the start of every round.
    """

    round: int
    masks: dict[str, Tensor]
    run: dict[str, Any]
    provenance: dict[str, Any]
    rng: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the checkpoint atomically.

        Raises:
            OSError: If the file cannot be written; an earlier one is unchanged.
        """
        packed, shapes = pack_masks(self.masks)
        content = {
            "round": self.round,
            "shapes": shapes,
            "run": self.run,
            "provenance": self.provenance,
            "rng": self.rng,
        }
        write_tensors(path, KIND, packed, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Reads a checkpoint that `save` wrote.

        Raises:
            FileFormatError: If the file is damaged, truncated or no checkpoint.
            OSError: If it cannot be read.
        """
        packed, content = read_tensors(path, KIND)
        masks = unpack_masks(path, packed, content.pop("shapes"))
        return cls(masks=masks, **content)

    def check(self, path: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        """Raises a FileFormatError unless it belongs to this run: the same model and settings."""
        remedy = "Give another checkpoint= path, or delete the file to start anew"
        for name in sorted({*self.run, *run}):
            saved, now = self.run.get(name), run.get(name)
            if saved == now:
                continue
            if name in ("model", "data"):
                raise FileFormatError(
                    f"{path} is the checkpoint of another {name} (fingerprint {saved}, now {now}). "
                    f"{remedy}"
                )
            raise FileFormatError(
                f"{path} is the checkpoint of a run with {name}={saved!r}, now it is {now!r}. "
                f"{remedy}"
            )

    def rng_state(self) -> RngState:
        """Returns the generators' states at the start of every round."""
        return RngState.from_json(self.rng)


class CheckpointFile:
    """A place for checkpoints. A disk that cannot be written is a warning, not the end of a run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._failing = False
        folder = os.path.dirname(os.path.realpath(self.path))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"checkpoint={self.path!r}: there is no folder {folder}")
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"checkpoint={self.path!r} is a folder: give a file's path")

    def load(self) -> Checkpoint | None:
        """Returns the checkpoint in the file, or None if there is no file."""
        return Checkpoint.load(self.path) if os.path.exists(self.path) else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, or warns once if it cannot, until it can again."""
        try:
            checkpoint.save(self.path)
            self._failing = False
        except OSError as error:
            if not self._failing:
                warnings.warn(
                    f"checkpoint={self.path!r} could not be written after round "
                    f"{checkpoint.round} ({error}). Pruning goes on and returns its masks, but a "
                    f"kill would lose the rounds since the last whole checkpoint",
                    UserWarning,
                    stacklevel=4,
                )
            self._failing = True
