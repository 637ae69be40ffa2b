"""Names like one that nothing has, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests up to three names, the closest first; empty if none is
    close. Capitals, - for _ and what stands behind a colon do not matter.

    Example:
        >>> did_you_mean("px_joint", ["px", "px-joint", "snip"])
        '; did you mean px-joint?'
    """
    plain = {_plain(other): other for other in known}
    close = [plain[found] for found in difflib.get_close_matches(_plain(name), plain)]
    if not close:
        return ""
    *others, last = close
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def _plain(name: str) -> str:
    return name.partition(":")[0].lower().replace("-", "_")
