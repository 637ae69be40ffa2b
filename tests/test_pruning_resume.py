"""prune() with a checkpoint: kills, interruptions, failing disks, other models."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pxfast
from pxfast.errors import DataError, FileFormatError
from pxfast.scoring import Scorer
from pxfast.selection.checkpoint import Checkpoint

ROOT = Path(pxfast.__file__).parent.parent
BATCHES = [torch.rand(4, 6, generator=torch.Generator().manual_seed(n)) for n in range(2)]
ROUNDS = 6


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(),
                             nn.Linear(12, 3))  # fmt: skip


class Noise(Dataset):
    """Random inputs: another draw of the generators gives another batch."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        return torch.randn(6) + float(np.random.rand()) + random.random()


class DataScores:
    """|θ| times a random direction that the data give, so that another batch gives other masks."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.stop_before = stop_before
        self.calls = 0

    def score(self, model, data, *, masks):
        self.calls += 1
        if self.calls == self.stop_before:
            raise KeyboardInterrupt
        seed = int(sum(float(batch.double().abs().sum()) for batch in data) * 1e6)
        generator = torch.Generator().manual_seed(seed)
        return {
            name: weight.abs()
            * torch.rand(weight.shape, generator=generator)
            * masks.get(name, torch.ones(()))
            for name, weight in model.named_parameters()
            if weight.dim() > 1
        }


def run(checkpoint=None, data=BATCHES, **changes):
    options = {"density": 0.2, "rounds": ROUNDS, "criterion": DataScores(), **changes}
    return pxfast.prune(net(), data, checkpoint=checkpoint, progress=False, **options)


@pytest.mark.parametrize("stop", range(2, ROUNDS + 1))
def test_ctrl_c_leaves_the_last_checkpoint_whole(tmp_path, stop):
    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", criterion=DataScores(stop_before=stop))
    assert Checkpoint.load(tmp_path / "c").round == stop - 1
    criterion = DataScores()
    resumed = run(tmp_path / "c", criterion=criterion)
    assert criterion.calls == ROUNDS - stop + 1
    assert resumed == whole
    assert resumed.provenance == whole.provenance
    assert os.listdir(tmp_path) == ["c"]


def loader() -> DataLoader:
    return DataLoader(Noise(), 4, shuffle=True, generator=torch.Generator())


@pytest.mark.parametrize("own", [False, True])
def test_another_process_draws_the_same_batches(tmp_path, own):
    """The generators go on from the checkpoint, whatever the new process has seeded."""
    made = (lambda: DataLoader(Noise(), 4, shuffle=True)) if not own else loader
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", made(), criterion=DataScores(stop_before=3))
    whole = run(data=made())
    for seed in (11, 12):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        data = made()
        if own:
            data.generator.manual_seed(seed)
        before = torch.get_rng_state()
        resumed = run(tmp_path / "c", data)
        assert resumed == whole
        assert resumed.provenance == whole.provenance
        assert torch.equal(torch.get_rng_state(), before)
        assert run(data=data) != whole  # other seeds do give other batches


def test_a_finished_run_scores_nothing_again(tmp_path):
    first = run(tmp_path / "c")
    criterion = DataScores()
    second = run(tmp_path / "c", criterion=criterion)
    assert criterion.calls == 0
    assert second == first
    assert second.provenance == first.provenance


def test_px_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole = run(criterion="px")
    score, calls = Scorer.__call__, []

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*args, **options)

    monkeypatch.setattr(Scorer, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", criterion="px")
    resumed = run(tmp_path / "c", criterion="px")
    assert resumed == whole
    assert resumed.provenance == whole.provenance


# ---- other runs ----


class OtherScores(DataScores):
    pass


@pytest.mark.parametrize(("changes", "message"), [
    ({"density": 0.3}, "density=0.2, now it is 0.3"),
    ({"rounds": 7}, "rounds=6, now it is 7"),
    ({"schedule": "linear"}, "schedule='exponential', now it is 'linear'"),
    ({"scope": "layer"}, "scope='global', now it is 'layer'"),
    ({"criterion": OtherScores()}, "criterion=.*DataScores.* now it is .*OtherScores"),
    ({"masks": {"0.weight": torch.eye(12)[:, :6]}}, "a run with masks="),
    ({"data": BATCHES[1:]}, "another data"),
    ({"data": [*BATCHES, BATCHES[0]]}, "another data"),
])  # fmt: skip
def test_checkpoints_of_other_settings_are_refused(tmp_path, changes, message):
    run(tmp_path / "c")
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(FileFormatError, match=message):
        run(tmp_path / "c", **changes)
    assert (tmp_path / "c").read_bytes() == before


@pytest.mark.parametrize(("option", "value"), [
    ("include", ["0*", "2*"]), ("exclude", "4.weight"), ("batchnorm", "data"), ("output", 0),
    ("dtype", torch.bfloat16), ("criterion", "px-joint"),
])  # fmt: skip
def test_checkpoints_of_other_options_are_refused(tmp_path, option, value):
    run(tmp_path / "c", criterion="px")
    with pytest.raises(FileFormatError, match=f"a run with {option}="):
        run(tmp_path / "c", **{"criterion": "px", option: value})


def test_modules_given_as_options_are_told_apart(tmp_path):
    model = net()

    def excluding(module):
        return pxfast.prune(
            model, BATCHES, density=0.5, rounds=2, exclude=[module], checkpoint=tmp_path / "c"
        )

    assert excluding(model[0]) == excluding(model[0])
    with pytest.raises(FileFormatError, match=r"exclude=\['module 0'\], now it is \['module 2'\]"):
        excluding(model[2])


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path / "c")
    with pytest.raises(FileFormatError, match="another model"):
        pxfast.prune(net(1), BATCHES, density=0.2, rounds=ROUNDS, checkpoint=tmp_path / "c",
                     criterion=DataScores())  # fmt: skip


def test_data_with_other_generators_are_refused(tmp_path):
    run(tmp_path / "c")
    with pytest.raises(DataError, match="hold 1 random generators"):
        run(tmp_path / "c", loader())


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:-1], lambda data: data[: len(data) // 2],
    lambda data: data[:-20] + bytes(20), lambda data: b"foreign" * 9,
])  # fmt: skip
def test_damaged_checkpoints_are_refused(tmp_path, damage):
    run(tmp_path / "c")
    path = tmp_path / "c"
    path.write_bytes(damage(path.read_bytes()))
    criterion = DataScores()
    with pytest.raises(FileFormatError, match=str(path)):
        run(path, criterion=criterion)
    assert criterion.calls == 0


# ---- failing disks ----


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failing_disk_is_a_warning_and_the_result_is_whole(tmp_path, monkeypatch, number):
    whole = run()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(UserWarning, match="could not be written") as caught:
        masks = run(tmp_path / "c")
    assert masks == whole
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert os.strerror(number) in str(caught[0].message)
    assert os.listdir(tmp_path) == []


# ---- SIGKILL ----

SCRIPT = textwrap.dedent("""
    import sys, time, torch, pxfast
    from torch.utils.data import DataLoader, TensorDataset
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    data = DataLoader(TensorDataset(torch.rand(16, 6)), 8, shuffle=True)

    class Slow:
        def score(self, model, data, *, masks):
            time.sleep(0.02)
            return pxfast.score(model, [batch[0] for batch in data], criterion="px-joint",
                                masks=masks)

    masks = pxfast.prune(model, data, density=0.05, rounds=40, criterion=Slow(),
                         checkpoint=sys.argv[1])
    masks.save(sys.argv[2])
""")


def start(tmp_path: Path, checkpoint: str, result: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / checkpoint), str(tmp_path / result)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def round_of(path: Path) -> int:
    return Checkpoint.load(path).round if path.exists() else 0


def test_killed_at_random_rounds(tmp_path):
    """SIGKILL while it scores, writes or renames: the file is whole and the result the same."""
    assert start(tmp_path, "undisturbed", "expected").wait(120) == 0
    expected = pxfast.Masks.load(tmp_path / "expected")
    chance, rounds, path = random.Random(time.time_ns()), [], tmp_path / "c"
    for least in (1, 11):
        process = start(tmp_path, "c", "resumed")
        wanted = least + chance.randrange(8)
        while process.poll() is None and round_of(path) < wanted:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.04)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        rounds.append(round_of(path))
    assert 0 < rounds[0] <= rounds[1] < 40
    assert start(tmp_path, "c", "resumed").wait(120) == 0
    resumed = pxfast.Masks.load(tmp_path / "resumed")
    assert resumed == expected, rounds
    assert resumed.provenance == expected.provenance, rounds
