"""The passes over a model that make scores.

px:        s_k = Σ_n h_k(x_n) over the data, then R = Σ_k s_k g_k and its backward at batch 1.
px-joint:  J over the data, forward and backward.

Samples that bring masks of their own have kernel networks of their own: then g runs beside h, part
by part, and R = Σ_n Σ_k h_k(x_n) g_k(n).

Where s_k is the same for every k, the data cancels from S/R. That is proved from the structure of h
alone, computed on shapes: its output is constant along every dimension but the samples.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pxfast import ops
from pxfast.batches import (
    Batch,
    brings_masks,
    cannot_run,
    changed_masks,
    check_finite,
    inputs,
    to_device,
)
from pxfast.errors import NoPathError, PxfastError, RangeError
from pxfast.paths import rules  # noqa: F401 - registers the rules
from pxfast.paths.ends import End, inner, ones, over_samples, square
from pxfast.paths.memory import Budget
from pxfast.paths.network import NeedsValuesError, Network
from pxfast.paths.outputs import Select, output_paths
from pxfast.paths.pathsum import Exponent, PathSum, aligned, larger, shifted, total
from pxfast.paths.select import compact
from pxfast.paths.side import SideBranch
from pxfast.paths.tensor import Interpreter
from pxfast.paths.weights import Weights
from pxfast.prefetch import on_device

Ends = Callable[[Batch, int], tuple[Network, list[PathSum]]]  # what a part adds to R or J


@dataclass(frozen=True)
class Structure:
    """What the activation network h tells on shapes alone, for one sample.

    Attributes:
        cancels: s_k is the same for every k, whatever the data.
        bytes: what all values and path sums hold together.
        separable: a batch may be cut into parts: its samples never meet.
    """

    cancels: bool = False
    bytes: int = 0
    separable: bool = False


# A CPU runs a batch in parts whose values and path sums together take some 256 MiB: single ones
# then stay in its caches and in memory that is already mapped. Where the weights are large, in such
# parts as repay reading them again (docs/method.md, "Parts of a batch"). In J, where every path sum
# is as wide as its value and waits for the backward, parts cost more and are larger.
PART_BYTES, JOINT_PART_BYTES = 256 * 2**20, 360 * 2**20
PART_WEIGHTS, JOINT_PART_WEIGHTS = 4, 8  # times the bytes of the weights, at least
MASKED_PART = 16  # times as much of h under masks: each part lists their non-zeros again
SMALL_BATCH = 2**20  # bytes of inputs that J takes whole, without a look at shapes


@dataclass
class Passes:
    """A model, its weights and the options that all passes share."""

    model: nn.Module
    weights: Weights
    device: torch.device
    dtype: torch.dtype
    batchnorm: Literal["running", "data"] = "running"
    output: Select = None
    autocast: torch.dtype | None = None
    max_memory: int | None = None
    structure: Structure | None = None
    pathless: set[str] = field(default_factory=set)  # weights known to lie on no path
    samples: int = field(default=0, init=False)
    branches: list[SideBranch] = field(default_factory=list, init=False)

    # ---- px --------------------------------------------------------------------------------------

    def trace(self, first: Batch, data: Iterable[Batch]) -> float:
        """log2 of R from a pass over the data, of which ``first`` is the first batch."""
        if brings_masks(first):
            return self.kernel_of_each(data)
        return self.kernel(first, self.activation(data))

    def data_cancels(self, batch: Batch) -> bool:
        """Whether s_k is the same for every k, whatever the data: proved on shapes alone."""
        return not brings_masks(batch) and self._structure_of(batch).cancels

    def _structure_of(self, batch: Batch) -> Structure:
        """Found at the first call; nothing is known where the forward looks at values."""
        if self.structure is None:
            network = self._network(gates=True, squares=False, values=False)
            try:
                one = to_device(batch.samples(0, 1), self.device)
                ends = self._run(network, one, square, number=1)
            except NeedsValuesError:
                self.structure = Structure()
            else:
                narrow = all(size == 1 for path, _ in ends for size in path.mantissa.shape[1:])
                self.structure = Structure(
                    cancels=narrow and len(ends) == 1,
                    bytes=network.bytes,
                    separable=not network.coupled,
                )
        return self.structure

    def activation(self, data: Iterable[Batch]) -> list[PathSum]:
        """s = Σ_n h(x_n), one path sum of shape [1, …] per output."""
        sums: list[PathSum] = []
        try:
            with ops.kept_memory():
                for number, batch in enumerate(on_device(data, self.device), start=1):
                    batch = self._prepare(batch, number)
                    if brings_masks(batch):
                        raise changed_masks(number)
                    for part in self._parts(batch, squares=False):
                        with self._within_memory(part, batch):
                            network = self._network(gates=True, squares=False, values=True)
                            new = list(map(over_samples, self._run(network, part, square, number)))
                            sums = list(map(total, zip(sums, new, strict=True))) if sums else new
        finally:
            self.weights.memory = None
        return sums

    def kernel(self, batch: Batch, cotangents: list[PathSum] | None) -> float:
        """Forward and backward of R = Σ_k s_k g_k at batch 1; scores accumulate in the weights'
        buffers.

        Args:
            batch: any batch: its shapes are used, and one sample where the forward looks at values.
            cotangents: s per output, or None where it is the same everywhere.

        Returns:
            log2 of R. The buffers hold S/R.
        """
        one = to_device(batch.samples(0, 1), self.device)
        with self._within_memory(one, one):
            return self._kernel(one, cotangents)

    def _kernel(self, one: Batch, cotangents: list[PathSum] | None) -> float:
        network, ends = self._kernel_forward(one)
        given = cotangents or [None] * len(ends)
        exponent, mantissas = aligned([inner(end, s) for end, s in zip(ends, given, strict=True)])
        result = torch.stack(mantissas).sum()
        log2 = self._checked(result, exponent)
        self._find_side_rows(network, one)
        (result / result.detach()).backward(retain_graph=bool(network.products))
        self._gather(network)
        self._settle()
        return log2

    def _kernel_forward(self, one: Batch) -> tuple[Network, list[End]]:
        """g on shapes alone, or with one sample's values if the model's forward looks at them."""
        try:
            network = self._network(gates=False, squares=True, values=False)
            return network, self._run(network, one, ones, number=1)
        except NeedsValuesError:
            network = self._network(gates=False, squares=True, values=True)
            return network, self._run(network, one, ones, number=1)

    def kernel_of_each(self, data: Iterable[Batch]) -> float:
        """Forward of h, forward and backward of g, both of every sample; returns log2 of R, with
        S/R in the buffers."""

        def ends(part: Batch, number: int) -> tuple[Network, list[PathSum]]:
            network = self._network(gates=True, squares=False, values=True)
            sums = [path for path, _ in self._run(network, part, square, number)]
            network, ends = self._kernel_forward(part)
            return network, [inner(end, s) for end, s in zip(ends, sums, strict=True)]

        return self._over_parts(data, ends)

    # ---- px-joint --------------------------------------------------------------------------------

    def joint(self, data: Iterable[Batch]) -> float:
        """Forward and backward of J over the data; returns log2 of J, with S/J in the buffers."""

        def ends(part: Batch, number: int) -> tuple[Network, list[PathSum]]:
            network = self._network(gates=True, squares=True, values=True)
            return network, [inner(end, None) for end in self._run(network, part, square, number)]

        return self._over_parts(data, ends)

    def _over_parts(self, data: Iterable[Batch], ends: Ends) -> float:
        """Backward of what ``ends`` makes of every part, summed; the buffers hold its shares."""
        summed: PathSum | None = None
        for number, batch in enumerate(on_device(data, self.device), start=1):
            batch = self._prepare(batch, number)
            for part in self._parts(batch, squares=True):
                with self._within_memory(part, batch):
                    summed = self._add_part(part, *ends(part, number), summed)
        if summed is None:
            raise PxfastError("data: there are no batches in it; expected at least one")
        whole = summed.mantissa
        log2 = self._checked(whole, summed.exponent)
        self._settle()
        self.weights.rescale(lambda buffer: buffer.div_(whole))
        return log2

    def _add_part(
        self, part: Batch, network: Network, ends: list[PathSum], summed: PathSum | None
    ) -> PathSum:
        """Add one part to the scores, which then have the exponent of the sum that it returns."""
        exponent, mantissas = aligned(ends)
        value = torch.stack(mantissas).sum()
        if summed is None:
            summed = PathSum(torch.zeros_like(value), exponent)
        top = larger(summed.exponent, exponent)
        if int(top) != int(summed.exponent):
            self._rescale(summed.exponent - top)
        self._find_side_rows(network, part.samples(0, 1))
        scaled = shifted(value, exponent - top)
        if scaled.requires_grad:
            scaled.backward(retain_graph=bool(network.products))
        self._gather(network)
        return PathSum(summed.at_exponent(top) + scaled.detach(), top)

    def _rescale(self, shift: Exponent) -> None:
        """Bring everything gathered so far to another exponent."""
        self.weights.rescale(lambda buffer: buffer.copy_(shifted(buffer, shift)))
        for branch in self.branches:
            branch.mass *= 2.0 ** int(shift)

    # ---- side branches ---------------------------------------------------------------------------

    def _find_side_rows(self, network: Network, one: Batch) -> None:
        """Once per call, if the model multiplies gates: the rows that value paths leave."""
        weights = self.weights
        if weights.rows is not None or not network.products:
            return
        purpose, weights.purpose, weights.rows = weights.purpose, "structure", {}
        try:
            with self._budget.aside():
                _, ends = self._kernel_forward(one)
                torch.stack([inner(end, None).mantissa for end in ends]).sum().backward()
        finally:
            weights.purpose = purpose
        with self._budget.aside():
            weights.rows = {name: compact(rows) for name, rows in weights.rows.items()}
        self._budget.memory -= self._bytes_of_rows()

    def _gather(self, network: Network) -> None:
        """Add the side branches of a pass whose main backward has run."""
        if not self.branches:
            self.branches = [SideBranch() for _ in network.products]
        for branch, product in zip(self.branches, network.products, strict=True):
            branch.gather(product, self.weights)

    def _settle(self) -> None:
        for branch in self.branches:
            branch.settle(self.weights)
        self.branches = []

    # ---- shared ----------------------------------------------------------------------------------

    def _network(self, *, gates: bool, squares: bool, values: bool) -> Network:
        return Network(
            self.weights,
            gates,
            squares,
            values,
            squares,
            self.batchnorm,
            self.device,
            self.dtype,
            self.autocast,
        )

    def _run(
        self,
        network: Network,
        batch: Batch,
        start: Callable[[Tensor], Tensor],
        number: int,
    ) -> list[End]:
        """The model's own forward on path tensors, and the path sums of its outputs."""

        def enter(x: Tensor) -> Any:
            if not x.is_floating_point():
                return x
            with network.path_arithmetic():
                path = PathSum(
                    start(x.detach().to(dtype=self.dtype, device=network.path_device))
                ).normalised()
            return network.tensor(x.detach().clone() if network.values else x.to("meta"), path)

        args, kwargs = tree_map_only(Tensor, enter, (batch.args, batch.kwargs))
        try:
            with torch.no_grad(), Interpreter(network):
                result = self.model(*args, **kwargs)
        except (PxfastError, NeedsValuesError):
            raise
        except Exception as error:
            raise cannot_run(self.model, batch, number, error) from error
        return output_paths(result, batch.size, self.output)

    def _prepare(self, batch: Batch, number: int) -> Batch:
        check_finite(batch, number)
        self.samples += batch.size
        return batch

    def _parts(self, batch: Batch, *, squares: bool) -> Iterator[Batch]:
        """Parts of a batch that fit ``max_memory`` and suit the caches of a CPU."""
        most = batch.size
        small = squares and sum(x.nbytes for x in inputs(batch)) < SMALL_BATCH
        if self.device.type == "cpu" and not small:
            most = min(most, self._suiting(batch, squares))
        separable = self.max_memory is None or self._separable(batch)
        if separable and not squares and (most < batch.size or self.max_memory is not None):
            self.weights.memory = self.weights.memory or {}
        if self.max_memory is None:
            yield from batch.split(most)
            return
        done = 0
        while done < batch.size:
            size = min(most, self._budget.most) if separable else batch.size
            yield batch.samples(done, done + size)
            done += size

    def _separable(self, batch: Batch) -> bool:
        """Whether a batch may be cut; where shapes alone do not tell, one sample is run for it."""
        structure = self._structure_of(batch)
        if structure.bytes or self.batchnorm == "data":
            return structure.separable
        network = self._network(gates=True, squares=False, values=True)
        self._run(network, batch.samples(0, 1), square, number=1)
        return not network.coupled

    def _within_memory(self, part: Batch, batch: Batch) -> AbstractContextManager[None]:
        """Where a part of a batch runs under ``max_memory``: what it takes is counted."""
        if self.max_memory is None:
            return contextlib.nullcontext()
        whole = part.size == batch.size and part.size > self._budget.most
        return self._budget.part(part.size, whole=whole)

    @functools.cached_property
    def _budget(self) -> Budget:
        return Budget((self.max_memory or 0) - self._bytes_of_rows())

    def _bytes_of_rows(self) -> int:
        rows = (self.weights.rows or {}).values()
        return sum(flags.untyped_storage().nbytes() for flags in rows)

    def _suiting(self, batch: Batch, squares: bool) -> int:
        """How many samples suit a CPU's caches, judged by h on shapes alone."""
        structure = self._structure_of(batch)
        if not structure.separable:
            return batch.size
        masked = self.weights.thinned or bool(self.weights.masks)
        times = PART_WEIGHTS * (MASKED_PART if masked else 1)
        wanted = max(PART_BYTES, times * self._weight_bytes)
        if squares:
            wanted = max(JOINT_PART_BYTES, JOINT_PART_WEIGHTS * self._weight_bytes)
        return max(1, math.ceil(wanted / max(1, structure.bytes)))

    @functools.cached_property
    def _weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def _checked(self, result: Tensor, exponent: Exponent) -> float:
        """log2 of R; an error where it is 0 or not finite, or where there is nothing to score."""
        if not any(self.weights.scored(name) for name in self.weights.used):
            raise PxfastError(
                "there are no prunable weights: no weight of a linear or convolution layer (that "
                "include= and exclude= leave) is used by the model"
            )
        mantissa = float(result.detach())
        if not math.isfinite(mantissa):
            raise RangeError(
                "path sums overflowed: R is not finite. A single weight or input is too large for "
                f"{self.dtype} once squared; rescale the network or score it in float64 "
                f"(model.double())."
            )
        if mantissa <= 0:
            raise NoPathError(f"no path reaches the output: R = 0. {self.weights.describe_empty()}")
        return math.log2(mantissa) + int(exponent)
