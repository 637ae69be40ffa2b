"""The errors that pxfast raises. Each says what was wrong, what was expected and what to do."""

from __future__ import annotations


class PxfastError(ValueError):
    """Base of every error that pxfast raises about its input."""


class NoRuleError(PxfastError):
    """An operation of the model has no rule that says how paths go through it."""


class RangeError(PxfastError):
    """Path sums left the range of their dtype, or no path reaches the output."""


class NoPathError(RangeError):
    """No path reaches the output: R = 0."""


class MaskError(PxfastError):
    """Masks do not fit the model, or a density cannot be reached with them."""


class FileFormatError(PxfastError):
    """A file of masks, scores or a checkpoint is damaged, truncated or of another kind."""


class DataError(PxfastError):
    """The data cannot be fed to the model, or holds NaN or infinity."""


class ModelError(PxfastError):
    """A model could not be built, or a checkpoint does not fit it."""


class MissingPackageError(PxfastError, ImportError):
    """A package that only this use of pxfast needs is not installed, or cannot be imported."""
