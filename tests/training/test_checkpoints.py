"""Checkpoints are read only as they were written: any damage is noticed before they are used, and named."""

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import google_crc32c
import jax
import numpy as np
import pytest
from processes import free_port

from big_vision_lite.errors import UserError
from big_vision_lite.training import orbax_hooks
from big_vision_lite.training.checkpoints import Checkpoints, Damaged
from big_vision_lite.training.checksums import BLOCK, MARK, GrowingFile, checksum, damage, decode, encode

STATE = {"params": {"kernel": np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32),
                    "bias": np.arange(7.0)}, "step": np.array(2, np.int32)}
"""Of 120 pages, so that damages to pages can differ."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with contextlib.closing(Checkpoints(folder, max_checkpoints=2)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.tree.map(lambda x, step=step: x + step, STATE), {}, {"step": step})
            checkpoints.wait()
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def changed(data: bytes, rng: np.random.Generator, how: str) -> bytes:
    """The bytes with one bit flipped, or with a page of zeros."""
    result = bytearray(data)
    if how == "flip":
        result[rng.integers(len(data))] ^= 1 << rng.integers(8)
    else:
        page = rng.integers(len(data)) // 4096 * 4096
        result[page:page + 4096] = bytes(len(data[page:page + 4096]))
    return bytes(result)


def test_random_damages_of_any_file(copy):
    """200 flipped bits and 50 pages of zeros, in files and at places drawn at random."""
    rng, step = np.random.default_rng(17), copy / "2"
    files = sorted(path for path in step.rglob("*") if path.is_file())
    assert len(files) > 12 and step / MARK in files and step / "_CHECKPOINT_METADATA" in files
    reader, hit = Checkpoints(copy), set()
    for how in ["flip"] * 200 + ["zero"] * 50:
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        path.write_bytes(changed(before, rng, how))
        name = str(path.relative_to(step))
        with pytest.raises(Damaged, match=f"checkpoints/2 is damaged: {re.escape(name)} "):
            reader.verify(2)
        path.write_bytes(before)
        hit.add(path)
    reader.verify(2)
    assert hit == set(files)


@pytest.mark.parametrize("how", ["remove", "cut", "longer", "empty", "folder"])
def test_any_file_that_is_missing_or_of_another_size(copy, how):
    for path in sorted(path for path in (copy / "2").rglob("*") if path.is_file()):
        before, name = path.read_bytes(), str(path.relative_to(copy / "2"))
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how != "remove":
            path.write_bytes({"cut": before[:-1], "longer": before + b"\n", "empty": b""}[how])
        assert damage(copy / "2").startswith(name), (name, damage(copy / "2"))
        path.rmdir() if how == "folder" else path.unlink(missing_ok=True)
        path.write_bytes(before)
    assert damage(copy / "2") == ""


def test_a_file_of_another_checkpoint(copy):
    """TensorStore's manifests end with their own CRC-32C, and so all have the same one."""
    ours, other = (checksum(copy / step / "state" / "manifest.ocdbt") for step in "21")
    assert (ours.size, ours.crc32c) == (other.size, other.crc32c)
    shutil.copy(copy / "1" / "state" / "manifest.ocdbt", copy / "2" / "state" / "manifest.ocdbt")
    assert damage(copy / "2") == "state/manifest.ocdbt has other contents than were saved"


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{"a":[1]}\n00000000\n', b"Checkpoint commit was successful to x"])
def test_a_checkpoint_without_checksums_is_not_trusted(copy, content):
    (copy / "2" / MARK).write_bytes(content)
    with pytest.raises(Damaged, match=f"{MARK} does not hold checksums .* or written by a version without them"):
        Checkpoints(copy).restore(2, STATE)


def test_checksums_are_read_as_they_were_written():
    files = {"a/b": checksum(Path(__file__))}
    assert decode(encode(files), "x") == files
    data = b'{"a":1}\n'
    with pytest.raises(UserError, match="cannot read x: Expected `array`, got `int`"):
        decode(data + b"%08x\n" % google_crc32c.value(data), "x")


def test_damaged_checkpoints_are_set_aside(copy):
    notes, (path,) = [], (copy / "2").glob("state/manifest.ocdbt")
    path.write_bytes(path.read_bytes()[::-1])
    checkpoints = Checkpoints(copy, max_checkpoints=2)
    step, state, data = checkpoints.restore_newest(STATE, notes.append)
    assert (step, data) == (1, {"step": 1}) and checkpoints.steps() == [1]
    jax.tree.map(lambda got, x: np.testing.assert_array_equal(got, x + 1), state, STATE)
    assert notes == [f"checkpoint {copy}/2 is damaged: state/manifest.ocdbt has other contents than were saved; moved "
                     f"to {copy.parent}/damaged/2, going on from step 1"]
    checkpoints.save(2, STATE, {}, {"step": 2})
    checkpoints.wait()
    assert checkpoints.restore(2, STATE)[1] == {"step": 2}
    checkpoints.close()


def test_a_whole_checkpoint_that_orbax_cannot_read(copy):
    """As one of a newer version; the reason is said, and the one before is taken."""
    path = copy / "2" / "state" / "_METADATA"
    path.write_bytes(b"[]")
    files = decode((copy / "2" / MARK).read_bytes(), MARK)
    (copy / "2" / MARK).write_bytes(encode(files | {"state/_METADATA": checksum(path)}))
    with pytest.raises(Damaged, match="checkpoints/2 cannot be read, though its checksums are right: "):
        Checkpoints(copy).arrays()
    assert Checkpoints(copy, max_checkpoints=2).restore_newest(STATE, str)[0] == 1


@pytest.mark.parametrize("sizes", [(5,), (BLOCK - 1, 1, 1), (BLOCK, 0, 2 * BLOCK, 17), (3 * BLOCK + 5,)])
def test_a_file_is_summed_up_while_it_grows(tmp_path, sizes):
    path, rng = tmp_path / "file", np.random.default_rng(0)
    path.touch()
    growing = GrowingFile(path)
    for size in sizes:
        with open(path, "ab") as file:
            file.write(rng.bytes(size))
        growing.advance()
    assert growing.finish() == checksum(path) and growing.ends[-1][0] == sum(sizes)


@pytest.mark.parametrize("size", [5, 4 * BLOCK])
def test_a_file_that_is_not_only_appended_to(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))  # as space that is reserved first
    growing = GrowingFile(path)
    growing.advance()
    for end in (size, size // 2 + 1):
        path.write_bytes(np.random.default_rng(0).bytes(end))
        assert growing.finish() == checksum(path)


def test_a_save_that_fails_is_dropped_with_a_message(copy, monkeypatch):
    """As when the disk is away for a moment; the next save is made."""
    def fail(folder):
        raise OSError(errno.EIO, "Input/output error")

    notes, checkpoints = [], Checkpoints(copy, max_checkpoints=3)
    with monkeypatch.context() as patch:
        patch.setattr(orbax_hooks, "seal", fail)
        checkpoints.save(3, STATE, {}, {"step": 3})
        checkpoints.finish_or_drop(notes.append)
    assert notes == [f"cannot save a checkpoint in '{copy}': Input/output error; the checkpoint of step 2 is kept; see "
                     "that the disk is there"]
    checkpoints.save(4, STATE, {}, {"step": 4})
    checkpoints.finish_or_drop(notes.append)
    assert len(notes) == 1 and checkpoints.steps() == [1, 2, 4]
    checkpoints.close()


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from big_vision_lite.training import orbax_hooks
from big_vision_lite.training.checkpoints import Checkpoints

folder, when = Path(sys.argv[1]), sys.argv[2]
checkpoints = Checkpoints(folder, max_checkpoints=2)
checkpoints.save(1, {"params": np.ones(5)}, {}, {"step": 1})
checkpoints.wait()
seal = orbax_hooks.seal

def killed(path):
    if when == "after":
        seal(path)
    os.kill(os.getpid(), signal.SIGKILL)

orbax_hooks.seal = killed
checkpoints.save(2, {"params": np.zeros(5)}, {}, {"step": 2})
checkpoints.wait()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_that_is_killed_around_its_checksums(tmp_path, when):
    """They are the last file, written before the checkpoint gets its name: it never stands there without them."""
    folder = tmp_path / "checkpoints"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), when], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (partial,) = folder.glob("2.*")
    assert (partial / MARK).exists() == (when == "after") and (partial / "state" / "manifest.ocdbt").exists()
    checkpoints = Checkpoints(folder, max_checkpoints=2)
    step, state, _ = checkpoints.restore_newest({"params": np.ones(5)}, pytest.fail)
    assert step == 1 and (state["params"] == 1).all()
    checkpoints.save(2, state, {}, {"step": 2})
    checkpoints.wait()
    checkpoints.verify(2)
    checkpoints.close()


TOGETHER = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec

folder, port, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
from big_vision_lite.training.checkpoints import Checkpoints, Damaged
from big_vision_lite.training.checksums import MARK, decode
from big_vision_lite.training.distributed import barrier

sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
def state(step):
    rows = np.random.default_rng(step).normal(size=(4, 500)).astype(np.float32)
    return {"params": jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])}
checkpoints = Checkpoints(folder, max_checkpoints=3)
for step in (1, 2, 3):
    checkpoints.save(step, state(step), {}, {"step": step})
    checkpoints.wait()
names = decode((folder / "3" / MARK).read_bytes(), MARK)
assert all(any(f"process_{i}/d/" in name for name in names) for i in (0, 1)), names
assert {*names, MARK} == {str(path.relative_to(folder / "3")) for path in (folder / "3").rglob("*") if path.is_file()}
if process == 0:  # what the other one wrote, and what one of them wrote for both
    for path in (max((folder / "3").glob("state/ocdbt.process_1/d/*"), key=lambda path: path.stat().st_size),
                 folder / "2" / "config" / "metadata"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
barrier("damaged")
notes = []
step, restored, _ = checkpoints.restore_newest(state(1), notes.append)
assert step == 1 and all((part.data == expected.data).all() for part, expected in zip(
    restored["params"].addressable_shards, state(1)["params"].addressable_shards, strict=True))
print(*notes, sep="\\n")
checkpoints.close()
"""


def test_two_processes_come_to_the_same_end(tmp_path):
    """Each sums up what it writes, verifies a share of the files, and hears what the other has found."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", TOGETHER, str(tmp_path / "checkpoints"), str(free_port())]
    started = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environment) for i in (0, 1)]
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    notes = [[line for line in out.splitlines() if line.startswith("checkpoint ")] for out, _ in outputs]
    assert notes[0] == notes[1]
    newest, before = notes[0]
    assert re.search(r"3 is damaged: state/ocdbt.process_1/d/\w+ has other contents .*moved to .*damaged/3", newest)
    assert re.search(r"2 is damaged: config/metadata has other contents .*damaged/2, going on from step 1", before)
