"""Lightning: a callback that prunes before the first step of training and keeps the zeros."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pxfast._optional import require
from pxfast.errors import DataError, MaskError, PxfastError
from pxfast.pruning import prune
from pxfast.rng import preserved_rng
from pxfast.selection.masks import Masks
from pxfast.selection.weights import check_fit, find_weight, stored_parameter

require("lightning.pytorch", "pxfast.integrations.lightning", "pxfast[lightning]")

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy  # noqa: E402

_OPTIONS = inspect.signature(prune).parameters.keys() - {"model", "data", "rounds"}


class PXPruning(Callback):
    """Prunes the model when fitting starts, then keeps the removed weights at exactly 0.

    The weights keep their names: they are set to 0, their gradients are masked before an optimiser
    sees them, and after every step of every optimiser they are set to 0 again, whatever momentum or
    weight decay did. Checkpoints of the model are those of an unpruned one, with zeros in them; the
    masks travel beside, in the callback's state, and a resumed fit does not score again.

    Under DDP every rank reads its own batches, and all ranks score the union of them: scores are
    sums over samples, so this is what one process with all the data would find, and no rank waits
    for another longer than that. The masks of rank 0 are then sent to the others.

    If fitting raises before the first step of an optimiser, the model has its weights back. The
    masks are in ``.masks`` after that.

    Args:
        density: Fraction of the prunable weights to keep, in (0, 1].
        sparsity: Fraction to remove, in [0, 1); instead of `density`.
        rounds: Number of rounds of pruning.
        data: What to score on, as `pxfast.prune` takes it. None: the first `batches` batches of the
            trainer's training data, as a training step would see them.
        batches: How many batches of the training data are read, on each rank; once, so that every
            round sees the same. None: all of them.
        module: Name of the submodule to prune, such as "backbone", called with the batch's inputs;
            None: the LightningModule, by its own `forward`.
        masks: Masks that were made before: nothing is scored then. Their names are those of
            `module`.
        options: More options of `pxfast.prune`, such as ``criterion="px-joint"``.

    Raises:
        TypeError: If an option is unknown, or not exactly one of density, sparsity, masks is given.

    Example:
        >>> from pxfast.integrations.lightning import PXPruning
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[PXPruning(density=0.1, rounds=20)], accelerator="cpu", logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ... )
    """

    def __init__(
        self,
        *,
        density: float | None = None,
        sparsity: float | None = None,
        rounds: int = 100,
        data: Any = None,
        batches: int | None = 10,
        module: str | None = None,
        masks: Mapping[str, Tensor] | None = None,
        **options: Any,
    ):
        if unknown := sorted(options.keys() - _OPTIONS):
            raise TypeError(
                f"PXPruning has no option {', '.join(unknown)}; beside its own it takes those of "
                f"pxfast.prune: {', '.join(sorted(_OPTIONS))}"
            )
        if sum(given is not None for given in (density, sparsity, masks)) != 1:
            raise TypeError("PXPruning takes exactly one of density=, sparsity= and masks=")
        self.masks = None if masks is None else Masks(masks)
        self.data, self.batches, self.module = data, batches, module
        self._options: dict[str, Any] = {
            "density": density, "sparsity": sparsity, "rounds": rounds, **options
        }  # fmt: skip
        self._given = masks is not None  # by the caller or a checkpoint: nothing to score
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        self._removed: list[Tensor] = []  # weights before pruning, until the first step
        self._handles: list[Any] = []

    # ---- Lightning's hooks -----------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the masks, unless a checkpoint brought them, and applies them."""
        _check_strategy(trainer)
        network = self._network(pl_module)
        if self.masks is None or not self._given:
            self.masks = self._find(trainer, pl_module, network)
        self._apply(network, self.masks)
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Takes the hooks off and, before the first step, puts the removed weights back."""
        with torch.no_grad():
            for (parameter, _), before in zip(self._kept, self._removed, strict=False):
                parameter.copy_(before)
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the hooks off; the zeros stay."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """The masks, as they go into a checkpoint."""
        return {} if self.masks is None else {"masks": dict(self.masks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the masks of a checkpoint: a resumed fit does not score."""
        if "masks" in state_dict:
            self.masks, self._given = Masks(state_dict["masks"]), True

    # ---- scoring ---------------------------------------------------------------------------------

    def _network(self, pl_module: LightningModule) -> nn.Module:
        if self.module is None:
            return pl_module
        try:
            return pl_module.get_submodule(self.module)
        except AttributeError as error:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise PxfastError(
                f"module={self.module!r}: {type(pl_module).__name__} has no such submodule; it "
                f"has {names}"
            ) from error

    def _find(self, trainer: Trainer, pl_module: LightningModule, network: nn.Module) -> Masks:
        """The masks of rank 0, found on the data of all ranks."""
        data = self._training_batches(trainer, pl_module) if self.data is None else self.data
        if trainer.world_size > 1:
            data = _of_all_ranks(data)
        options = dict(self._options)
        if not trainer.is_global_zero:
            options["progress"] = False
        return trainer.strategy.broadcast(prune(network, data, **options))

    def _training_batches(self, trainer: Trainer, pl_module: LightningModule) -> list[Any]:
        """The first batches of this rank, as its training steps see them."""
        trainer.fit_loop.setup_data()
        loader = trainer.train_dataloader
        if loader is None or isinstance(loader, (Mapping, list, tuple)):
            what = "no training data" if loader is None else "several training dataloaders"
            raise DataError(f"PXPruning: the trainer has {what}; say what to score on by data=")
        with preserved_rng(loader):
            return [
                trainer.strategy.batch_to_device(pl_module._on_before_batch_transfer(batch))
                for batch in itertools.islice(loader, self.batches)
            ]

    # ---- zeros -----------------------------------------------------------------------------------

    def _apply(self, network: nn.Module, masks: Masks) -> None:
        """Sets removed weights to 0 and masks their gradients."""
        check_fit(network, masks)
        parameters = {name: stored_parameter(*find_weight(network, name)) for name in masks}
        kept = [
            (parameter, masks[name].to(parameter.device))
            for name, parameter in parameters.items()
            if parameter is not None
        ]
        removed = [parameter.detach().clone() for parameter, _ in kept]
        masks.apply_(network, in_place=True)  # raises where a weight is computed, before any change
        self._kept, self._removed = kept, removed
        for parameter, mask in kept:
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(_masked_by(mask)))

    def _after_step(self, *_: Any) -> None:
        self._removed = []
        with torch.no_grad():
            for parameter, mask in self._kept:
                parameter.masked_fill_(~mask, 0)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept, self._removed = [], [], []


def _masked_by(mask: Tensor) -> Any:
    return lambda gradient: gradient.masked_fill(~mask, 0)


def _check_strategy(trainer: Trainer) -> None:
    """Refuses strategies that split the weights over processes."""
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise MaskError(
            f"PXPruning works on one device or with DDP, where every process holds whole weights; "
            f"got {type(trainer.strategy).__name__}. Prune before training, by pxfast.prune and "
            f"masks.apply_(model, in_place=True)"
        )


def _of_all_ranks(data: Any) -> list[Any]:
    """The batches of every rank, in the order of ranks, on the CPU."""
    own = [data] if isinstance(data, (Tensor, tuple, Mapping)) else list(data)
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return [batch for batches in gathered for batch in batches]
