"""Which weights are kept or removed as one: what ``pattern=`` takes."""

from pxfast.selection.patterns import NM, Channels, HeadLayout, Heads, Pattern, Units

__all__ = ["NM", "Channels", "HeadLayout", "Heads", "Pattern", "Units"]
