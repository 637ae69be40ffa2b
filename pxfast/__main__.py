"""``python -m pxfast`` is the command ``pxfast``."""

from __future__ import annotations

import sys

from pxfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
