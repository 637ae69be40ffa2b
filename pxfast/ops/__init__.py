"""What native kernels compute; each op has a twin of the same name in `pxfast.reference`."""

from pxfast.ops._memory import kept_memory
from pxfast.ops.dual_max_pool2d import dual_max_pool2d
from pxfast.ops.gate import gate, gated
from pxfast.ops.masked_ones import (
    masked_ones_conv2d,
    masked_ones_linear,
    masked_ones_linear_backward,
    masked_ones_pays,
    pack_ones,
    unpack_ones,
)
from pxfast.ops.select_threshold import Bins, Threshold, narrow, score_histogram, select_threshold
from pxfast.ops.sparse_dual_conv2d import sparse_dual_conv2d, sparse_dual_conv2d_pays
from pxfast.ops.sparse_dual_linear import sparse_dual_linear, sparse_dual_linear_pays
from pxfast.ops.squared_attention import squared_attention
from pxfast.ops.squared_conv2d import (
    squared_conv2d,
    squared_conv2d_backward,
    squared_conv2d_backward_by_columns,
    squared_conv2d_columns_pay,
    squared_conv2d_pays,
)
from pxfast.ops.squared_linear import squared_linear, squared_linear_backward
from pxfast.ops.write_masks import write_masks

__all__ = [
    "Bins",
    "Threshold",
    "dual_max_pool2d",
    "gate",
    "gated",
    "kept_memory",
    "masked_ones_conv2d",
    "masked_ones_linear",
    "masked_ones_linear_backward",
    "masked_ones_pays",
    "narrow",
    "pack_ones",
    "score_histogram",
    "select_threshold",
    "sparse_dual_conv2d",
    "sparse_dual_conv2d_pays",
    "sparse_dual_linear",
    "sparse_dual_linear_pays",
    "squared_attention",
    "squared_conv2d",
    "squared_conv2d_backward",
    "squared_conv2d_backward_by_columns",
    "squared_conv2d_columns_pay",
    "squared_conv2d_pays",
    "squared_linear",
    "squared_linear_backward",
    "unpack_ones",
    "write_masks",
]
