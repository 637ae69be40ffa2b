"""The main job in one go: prune ResNet-20 on handwritten digits to 2%, train it, and compare.

    make demo        (or: python examples/demo.py)

The pruning is done by the command line, as printed. Then three copies of the same network are
trained by the same recipe with the same seed: pruned by PX, pruned at random to the same density,
and dense.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

import pxfast
from pxfast.data import digits
from pxfast.training import train_and_test

DENSITY = 0.02
SEED = 0
THREADS = 1  # enough for 8 by 8 images; on a busy machine a second one is waited for


def main() -> None:
    """Prunes, trains three networks, prints their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="of pruning (default: 100)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (default: 10)")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder of results"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    start = time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    masks = prune(arguments.output, arguments.rounds)
    print(f"\npruned in {time.perf_counter() - start:.0f} s; now training\n")

    torch.manual_seed(SEED)  # as --seed does: the network that was pruned
    network = pxfast.models.resnet20(in_channels=1)
    candidates = {
        "PX": masks.apply_(copy.deepcopy(network)),
        "random": random_masks(masks).apply_(copy.deepcopy(network)),
        "dense": network,
    }
    train_set, test_set = digits(train=True), digits(train=False)
    accuracies = {
        name: train_and_test(model, train_set, test_set, epochs=arguments.epochs, lr=0.1, seed=SEED)
        for name, model in candidates.items()
    }

    print(f"{'network':12}{'weights':>10}{'density':>10}{'test accuracy':>16}")
    for name, value in accuracies.items():
        kept = masks.total if name == "dense" else masks.kept
        print(f"{name:12}{kept:10,}{kept / masks.total:10.1%}{value:15.1f}%")
    print(f"\nin all {time.perf_counter() - start:.0f} s; files in {arguments.output}/")


def prune(output: Path, rounds: int) -> pxfast.Masks:
    """Runs `pxfast prune` with the paper's settings and returns the masks that it wrote."""
    file = output / "masks.safetensors"
    arguments = [
        *("prune", "pxfast.models:resnet20", "--model-arg", "in_channels=1"),
        *("--data", "digits", "--per-class", "10", "--seed", str(SEED)),
        *("--density", str(DENSITY), "--rounds", str(rounds)),
        *("--output", str(file), "--plot", str(output / "densities.png")),
    ]
    print("$ pxfast", shlex.join(arguments), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-m", "pxfast", *arguments]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return pxfast.Masks.load(file)


def random_masks(masks: pxfast.Masks) -> pxfast.Masks:
    """As many weights of the same network, drawn by lot."""
    lot = torch.Generator().manual_seed(SEED)
    scores = {name: torch.rand(mask.shape, generator=lot) for name, mask in masks.items()}
    return pxfast.Scores(scores).masks(density=DENSITY)


if __name__ == "__main__":
    main()
