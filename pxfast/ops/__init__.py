"""What native kernels compute; each op has a twin of the same name in `pxfast.reference`."""

from pxfast.ops.squared_linear import squared_linear, squared_linear_backward

__all__ = ["squared_linear", "squared_linear_backward"]
