"""squared_attention against torch's own attention and against the formula in blocks of queries.

One attention layer in float32, q, k and v as a qkv projection gives them. Path sums of one column
for all heads (behind an unpruned projection) or of as many as the values have. Times are shares of
torch's scaled_dot_product_attention on the same q, k and v, timed in turn in one process.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from bench._harness import Work, paired, ratio, spread
from bench._result import Result
from pxfast import ops
from pxfast.ops.squared_attention import in_blocks, in_blocks_backward


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument("--batch", type=int, default=8, help="N")
    parser.add_argument("--heads", type=int, default=12, help="H")
    parser.add_argument("--tokens", type=int, default=197, help="T and S")
    parser.add_argument("--features", type=int, default=64, help="D and E, of a head")
    parser.add_argument("--repeats", type=int, default=9, help="how often each is timed")


def measure(arguments: argparse.Namespace) -> Result:
    """Time forward and backward for narrow and wide path sums."""
    N, H, T, D = arguments.batch, arguments.heads, arguments.tokens, arguments.features
    q, k, v = torch.randn(N, T, 3, H, D).permute(2, 0, 3, 1, 4)
    rows = []
    for columns, heads in ((1, 1), (D, H)):
        path, dy = torch.rand(N, heads, T, columns), torch.rand(N, H, T, columns)
        rows += _measure(q, k, v, path, dy, arguments.repeats)
    return Result(
        subject=f"{N}x{H}x{T}x{D}",
        settings={"dtype": "float32", "repeats": arguments.repeats},
        rows=rows,
        notes=[
            "Shares of the time that scaled_dot_product_attention takes; medians and in brackets "
            "the quartiles. The formula is plain torch, softmax by softmax for blocks of queries.",
        ],
    )


def _measure(
    q: Tensor, k: Tensor, v: Tensor, path: Tensor, dy: Tensor, repeats: int
) -> list[dict[str, object]]:
    scale = q.shape[-1] ** -0.5
    kernel = torch.ops.pxfast
    pairs: dict[str, tuple[Work, Work]] = {
        "path sums": (
            lambda: kernel.squared_attention(q, k, path, None, None, scale),
            lambda: in_blocks(q, k, path, None, None, scale),
        ),
        "output and path sums": (
            lambda: ops.squared_attention(q, k, path, v),
            lambda: in_blocks(q, k, path, v, None, scale),
        ),
        "backward": (
            lambda: kernel.squared_attention_backward(dy, q, k, None, scale),
            lambda: in_blocks_backward(dy, q, k, None, scale),
        ),
    }
    candidates: dict[str, Work] = {"attention": lambda: F.scaled_dot_product_attention(q, k, v)}
    for name, (ours, formula) in pairs.items():
        candidates |= {name: ours, f"formula of {name}": formula}
    title = f"{path.shape[-1]} columns"
    seconds = paired(candidates, repeats=repeats, title=title)
    return [
        {
            "columns": path.shape[-1],
            "what": name,
            "pxfast ms": spread([1e3 * s for s in seconds[name]]),
            "of attention": ratio(seconds[name], seconds["attention"]),
            "formula, of attention": ratio(seconds[f"formula of {name}"], seconds["attention"]),
            "× formula": ratio(seconds[f"formula of {name}"], seconds[name]),
        }
        for name in pairs
    ]
