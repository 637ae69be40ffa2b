"""torch.einsum, as the permutations, sums and the matrix product that it stands for."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor

from pxfast.errors import NoRuleError
from pxfast.paths.network import Network
from pxfast.paths.registry import rule


@rule(torch.einsum)
def einsum(network: Network, func: Any, equation: Any, *operands: Any) -> Any:
    """Of one tensor, or of two without repeated letters; of a pair without a sum, their product."""
    from pxfast.paths.tensor import Interpreter

    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) > 2:
        raise _unknown(network, equation)
    with Interpreter.running():
        inputs, output = _parsed(equation, [operand.dim() for operand in operands])
        if any(len(set(letters)) < len(letters) for letters in inputs):
            raise _unknown(network, equation)
        used = [set("".join([output, *(o for o in inputs if o is not own)])) for own in inputs]
        pairs = list(zip(operands, inputs, used, strict=True))
        summed = [_summed(tensor, letters, kept) for tensor, letters, kept in pairs]
        if len(summed) == 1:
            return _in_order(*summed[0], output)
        return _product(*summed[0], *summed[1], output)


def _unknown(network: Network, equation: Any) -> NoRuleError:
    return NoRuleError(
        f"torch.einsum({equation!r}, …) has no rule (in {network.weights.where()}): expected one "
        "or two operands in which no letter is repeated. Write it as matrix products, or put it "
        "into a function of its own and register a rule for that with pxfast.rule "
        "(docs/extending.md)."
    )


def _parsed(equation: str, dims: list[int]) -> tuple[list[str], str]:
    """The letters of the operands and of the result, an ellipsis written out in capitals."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if not arrow:  # the letters that occur once, in alphabetical order
        output = "..." if "..." in left else ""
        output += "".join(sorted(c for c in left if c.isalpha() and left.count(c) == 1))
    free = [c for c in string.ascii_uppercase if c not in equation]
    most = 0
    for index, letters in enumerate(inputs):
        if "..." in letters:
            count = dims[index] - len(letters) + 3
            most = max(most, count)
            inputs[index] = letters.replace("...", "".join(free[::-1][-count:] if count else []))
    return inputs, output.replace("...", "".join(free[::-1][-most:] if most else []))


def _summed(x: Tensor, letters: str, kept: set[str]) -> tuple[Tensor, str]:
    """x summed over the letters that nothing else needs."""
    gone = [index for index, letter in enumerate(letters) if letter not in kept]
    if gone:
        x = x.sum(gone)
    return x, "".join(letter for letter in letters if letter in kept)


def _in_order(x: Tensor, letters: str, wanted: str) -> Tensor:
    return x if letters == wanted else x.permute([letters.index(letter) for letter in wanted])


def _product(x: Tensor, ours: str, y: Tensor, theirs: str, output: str) -> Tensor:
    """x · y over the letters that they share and the output lacks."""
    shared = [c for c in ours if c in theirs and c in output]
    inner = "".join(c for c in ours if c in theirs and c not in output)
    rows = [c for c in ours if c not in theirs]
    columns = [c for c in theirs if c not in ours]
    if not inner:
        return _entrywise(x, ours, y, theirs, output)
    sizes = dict(zip(theirs, y.shape, strict=True)) | dict(zip(ours, x.shape, strict=True))
    lead = "".join(shared)
    x = _in_order(x, ours, lead + "".join(rows) + inner)
    y = _in_order(y, theirs, lead + inner + "".join(columns))
    x = _merged(_merged(x, len(lead), len(rows)), len(lead) + 1, len(inner))
    y = _merged(_merged(y, len(lead), len(inner)), len(lead) + 1, len(columns))
    if y.dim() == 2 and x.dim() == 2 and _is_plain(x):
        result = torch.matmul(y.mT, x.mT).mT  # a weight on the left of a path
    else:
        result = torch.matmul(x, y)
    result = result.reshape([sizes[c] for c in (*lead, *rows, *columns)])
    return _in_order(result, lead + "".join(rows) + "".join(columns), output)


def _is_plain(x: Any) -> bool:
    return not hasattr(x, "path")


def _merged(x: Tensor, first: int, count: int) -> Tensor:
    """``count`` dimensions from ``first`` on as one."""
    if count == 1:
        return x
    return x.unsqueeze(first) if count == 0 else x.flatten(first, first + count - 1)


def _entrywise(x: Tensor, ours: str, y: Tensor, theirs: str, output: str) -> Tensor:
    def wide(tensor: Tensor, letters: str) -> Tensor:
        tensor = _in_order(tensor, letters, "".join(c for c in output if c in letters))
        for index, letter in enumerate(output):
            if letter not in letters:
                tensor = tensor.unsqueeze(index)
        return tensor

    return wide(x, ours) * wide(y, theirs)
