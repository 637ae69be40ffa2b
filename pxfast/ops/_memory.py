"""Memory of large results that is kept for the next ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pxfast import _native


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keep the memory of large results on the CPU that are dropped for those that come next.

    The system gives large memory page by page and cleared, which a pass over many layers pays for
    in every one of them. What is kept and what is in use never take more together than was once in
    use; at the end all that is kept goes back. Blocks nest, and threads share what is kept.

    Example:
        >>> with kept_memory():
        ...     pass  # sparse_dual_conv2d, again and again
    """
    if _native.problem is not None or _native.stale is not None:
        yield
        return
    torch.ops.pxfast.keep_memory(True)
    try:
        yield
    finally:
        torch.ops.pxfast.keep_memory(False)
