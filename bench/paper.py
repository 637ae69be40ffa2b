"""The paper's tables, one command each, for whoever has the data.

    python bench/paper.py --list
    python bench/paper.py --data DIR --table cifar10-resnet20
    python bench/paper.py --data DIR --table cifar10-resnet20 --quick      # a trial in minutes

Prunes the table's network at initialisation, with 10 images of every class in 100 rounds, to each
of the densities by each method, trains it by the paper's recipe and tests it: accuracy in percent,
mean and standard error over seeds, which choose initialisation, pruning set and training. Nothing
is downloaded; DIR holds the data as they are unpacked, as --list says. On a GPU if there is one.

Of the densities only the lowest, 0.018 = 0.8^18, is one that the authors' scripts state. The others
are inferred, not the paper's: even powers of 0.8, as is usual in this field. Compare with the paper
at a density that its tables have, given by --densities.

Every training is kept in build/paper as soon as it is done, so an interrupted run goes on where it
stopped; other seeds, densities and methods can be added later. The table is printed after each
training, and written to bench/results/paper-<table>-<device>.json at the end.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.sort(key=lambda path: Path(path).resolve() == Path(__file__).resolve().parent)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import pxfast
from bench._cells import Cells, digest
from bench._machine import ROOT, machine
from bench._methods import METHODS, masks_at
from bench._paper_tables import DENSITIES, PER_CLASS, ROUNDS, SEEDS, TABLES, Table
from bench._result import RESULTS, Result, machine_line, markdown, mean_with_error
from pxfast.errors import DataError, PxfastError
from pxfast.training import train_and_test

FOLDER = ROOT / "build" / "paper"
SOURCES = ("paper.py", "_paper_tables.py", "_methods.py", "_augment.py")
DENSE = "dense"
DEFAULT_METHODS = ("px", "px-joint", "synflow", "snip", "magnitude", "random", DENSE)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    found.add_argument("--list", action="store_true", help="say what the tables are, and end")
    found.add_argument("--table", choices=TABLES, help="which one")
    found.add_argument("--data", type=Path, metavar="DIR", help="the folder that holds its data")
    found.add_argument(
        "--densities", nargs="+", type=float, default=list(DENSITIES),
        help="fractions of the weights to keep; all but 0.018 of the default are inferred, not "
        "stated by the paper's code",
    )  # fmt: skip
    found.add_argument(
        "--methods", nargs="+", choices=[*METHODS, DENSE], default=list(DEFAULT_METHODS),
        metavar="METHOD", help=f"of {', '.join([*METHODS, DENSE])}",
    )  # fmt: skip
    found.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0")
    found.add_argument("--rounds", type=int, default=ROUNDS, help="of every pruning in rounds")
    found.add_argument(
        "--per-class", type=int, default=PER_CLASS, help="images of each class to prune with"
    )
    found.add_argument("--epochs", type=int, help="of training (by default the recipe's)")
    found.add_argument("--device", help="cuda or cpu (by default cuda if there is one)")
    found.add_argument("--workers", type=int, default=4, help="processes that load images")
    found.add_argument(
        "--quick", action="store_true",
        help="only to see that it works: one epoch, two rounds, one seed, one image of each class, "
        "the highest density; the result goes to build/paper",
    )  # fmt: skip
    found.add_argument("--results", type=Path, help="folder of the JSON (default: bench/results)")
    return found


def main(argv: list[str] | None = None) -> Result | None:
    """Run a table as the command line says, print it and write its JSON file."""
    argv = sys.argv[1:] if argv is None else argv
    commands = parser()
    arguments = commands.parse_args(argv)
    if arguments.list:
        print("\n\n".join(describe(name) for name in TABLES))
        return None
    if arguments.table is None or arguments.data is None:
        commands.error("--table and --data are both needed; --list says what there is")
    if arguments.quick:
        arguments.epochs, arguments.rounds, arguments.seeds = 1, 2, 1
        arguments.per_class, arguments.densities = 1, arguments.densities[:1]
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = machine()  # before the run: the commit whose code is loaded
    if arguments.device != "cpu":
        facts |= {"device": "cuda", "gpu": torch.cuda.get_device_name()}
    print(machine_line(facts), flush=True)
    try:
        result = fill(arguments)
    except PxfastError as error:
        layout = f"\n--data: DIR holds {TABLES[arguments.table].layout}"
        hint = layout if isinstance(error, DataError) else ""
        sys.exit(f"{type(error).__name__}: {error}{hint}")
    result.job, result.machine = "paper", facts
    result.command = shlex.join(["python", "bench/paper.py", *argv])
    folder = arguments.results or (FOLDER if arguments.quick else RESULTS)
    print(f"written to {result.save(folder)}")
    return result


def describe(name: str) -> str:
    """Return what a table is, in words."""
    table = TABLES[name]
    return (
        f"{name}: {table.title}\n  DIR holds  {table.layout}\n  prunes to  "
        f"{', '.join(map(str, DENSITIES))} of the weights (the lowest is the authors', the others "
        f"are inferred) in {ROUNDS} rounds with {PER_CLASS} images of each class\n  trains     "
        f"{table.recipe}"
    )


def fill(arguments: argparse.Namespace) -> Result:
    """Prune and train with every seed, density and method of one table."""
    table = TABLES[arguments.table]
    sets = table.sets(arguments.data)
    settings = {
        "table": arguments.table,
        "epochs": arguments.epochs or table.recipe.epochs,
        "rounds": arguments.rounds,
        "images per class to prune with": arguments.per_class,
        "training images": len(sets[0]),  # pyright: ignore[reportArgumentType]
        "test images": len(sets[2]),  # pyright: ignore[reportArgumentType]
    }
    cells = Cells(FOLDER / "cells.jsonl", digest(SOURCES, {**settings, "device": arguments.device}))
    keys = [
        (method, density, seed)
        for seed in range(arguments.seeds)
        for method in arguments.methods
        for density in ([1.0] if method == DENSE else arguments.densities)
    ]
    for key in (bar := tqdm(keys, desc=arguments.table, unit="training")):
        bar.set_postfix_str(", ".join(map(str, key)))
        if key not in cells:
            cells.keep(key, _run(table, *key, sets, arguments))
            with tqdm.external_write_mode():
                print(markdown(_rows(arguments, cells)), flush=True)
    return Result(
        subject=arguments.table + ("-quick" if arguments.quick else ""),
        settings={
            **settings, "network": table.title, "seeds": arguments.seeds,
            "recipe": str(table.recipe),
        },
        rows=_rows(arguments, cells),
        notes=_notes(table, keys, cells),
    )  # fmt: skip


def _run(
    table: Table,
    method: str,
    density: float,
    seed: int,
    sets: tuple[Dataset[Any], Dataset[Any], Dataset[Any]],
    arguments: argparse.Namespace,
) -> dict[str, object]:
    """Prune and train one network."""
    changed, unchanged, test_set = sets
    torch.manual_seed(seed)
    model = table.network(table.classes).to(arguments.device).eval()
    kept = 1.0
    if method != DENSE:
        data = _pruning_set(unchanged, arguments.per_class, seed, table.recipe.batch_size)
        (masks,) = masks_at(method, model, data, [density], arguments.rounds, seed)
        if isinstance(masks, str):
            return {"why": masks}
        chosen = pxfast.Masks(masks)
        chosen.apply_(model)
        kept = chosen.density
    accuracy = train_and_test(
        model, changed, test_set,
        epochs=arguments.epochs or table.recipe.epochs, lr=table.recipe.lr,
        batch_size=table.recipe.batch_size, optimiser=table.recipe.optimiser,
        milestones=table.recipe.milestones, workers=arguments.workers, seed=seed,
    )  # fmt: skip
    return {"accuracy": accuracy, "kept": kept}


def _pruning_set(
    train_set: Dataset[Any], per_class: int, seed: int, batch_size: int
) -> list[tuple[Tensor, Tensor]]:
    """Return batches of as many images of each class, in memory for all rounds."""
    subset = pxfast.balanced_subset(train_set, per_class=per_class, seed=seed)
    return [(images, labels) for images, labels in DataLoader(subset, batch_size)]


def _rows(arguments: argparse.Namespace, cells: Cells) -> list[dict[str, object]]:
    """Return a row per method, with what is finished."""
    rows = []
    for method in arguments.methods:
        row: dict[str, object] = {"method": method}
        for density in arguments.densities:
            keys = [
                (method, 1.0 if method == DENSE else density, seed)
                for seed in range(arguments.seeds)
            ]
            found = [cells[key] for key in keys if key in cells]
            row[f"{100 * density:.4g}%"] = mean_with_error([cell.get("accuracy") for cell in found])
        rows.append(row)
    return rows


def _notes(table: Table, keys: list[tuple[str, float, int]], cells: Cells) -> list[str]:
    """Return what a reader must know, with the runs that went otherwise than asked."""
    notes = ["Test accuracy in percent after the last epoch; mean ± standard error over the seeds."]
    for key in keys:
        method, density, seed = key
        cell = cells[key]
        who = f"{method} at {100 * density:.4g}%, seed {seed}"
        if "why" in cell:
            notes.append(f"{who}, fails: {cell['why']}")
        elif abs(float(str(cell["kept"])) - density) > 0.01 * density:
            notes.append(f"{who}, keeps {100 * float(str(cell['kept'])):.3g}%.")
    return notes


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the docstring's own line breaks and with defaults."""


if __name__ == "__main__":
    main()
