"""One owner per folder: on a disk, one without locks, and in a bucket; owners that die, stop or live elsewhere."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest
from object_store import serving

from big_vision_lite.system import ownership
from big_vision_lite.system.ownership import FILE, InUse, Owner, own
from big_vision_lite.system.paths import RemotePath, as_path

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # gcsfs closes sessions when they are freed
WITHOUT_LOCKS = "def no_lock(*unused): raise OSError(errno.ENOLCK, 'No locks available')"
exec(WITHOUT_LOCKS)
DISK, NO_LOCKS, BUCKET = "disk", "disk without locks", "bucket"


@pytest.fixture(scope="module")
def store():
    pytest.importorskip("gcsfs")
    with serving() as store:
        yield store


@pytest.fixture(params=[DISK, NO_LOCKS, BUCKET])
def folder(request, tmp_path, monkeypatch):
    """A folder that nobody owns, which dies soon without renewals."""
    monkeypatch.setattr(ownership, "BEAT", 0.05)
    monkeypatch.setattr(ownership, "LEASE", 1.0)
    monkeypatch.setattr(ownership, "SETTLE", 0.1)
    if request.param == NO_LOCKS:
        monkeypatch.setattr(ownership.fcntl, "flock", no_lock)  # noqa: F821
    if request.param == BUCKET:
        request.getfixturevalue("store")
        return as_path(f"gs://bucket/{tmp_path.name}")
    return tmp_path / "run"


@pytest.fixture
def elsewhere(monkeypatch):
    """Become an owner as a process of another machine does."""
    def own_elsewhere(folder, **more):
        with monkeypatch.context() as patch:
            patch.setattr(ownership.platform, "node", lambda: "far")
            patch.setattr(ownership, "_kernel", lambda: "of another boot")
            return own(folder, **more)

    return own_elsewhere


@pytest.fixture
def start():
    """Start a process that owns a folder and then does something, when it has said that it owns it."""
    started = []

    def start(folder, then, without_locks=False):
        script = (f"import errno, fcntl, os, time\n{WITHOUT_LOCKS}\n" + "fcntl.flock = no_lock\n" * without_locks +
                  "from big_vision_lite.system import ownership\nfrom big_vision_lite.system.paths import as_path\n"
                  f"ownership.BEAT, ownership.LEASE = 0.05, 1.0\nowner = ownership.own(as_path({str(folder)!r}))\n"
                  f"print('owned', flush=True)\n{then}")
        started.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True))
        assert started[-1].stdout.readline() == "owned\n", started[-1].communicate()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def left_by_a_dead_process(folder):
    """owner.json of a process that was killed, on this machine."""
    dead = subprocess.Popen(["true"])
    began = ownership._start_of(dead.pid)
    dead.wait()
    owner = msgspec.structs.replace(Owner.this_process(), pid=dead.pid, began=began)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(msgspec.json.encode(owner))


@pytest.mark.parametrize("folder", [DISK, BUCKET], indirect=True)
def test_of_many_at_once_exactly_one_becomes_the_owner(folder):
    """Also of those that take over from a dead one."""
    rounds, contenders = 12, 6
    begin, tried = threading.Barrier(contenders), threading.Barrier(contenders)
    owners, refused = [[] for _ in range(rounds)], [[] for _ in range(rounds)]

    def contend():
        for number in range(rounds):
            if begin.wait(60) == 0 and number % 2:
                left_by_a_dead_process(folder)
            begin.wait(60)
            try:
                with own(folder) as owner:
                    owners[number].append(owner.taken_over)
                    tried.wait(60)
            except InUse as error:
                refused[number].append(str(error))
                tried.wait(60)

    threads = [threading.Thread(target=contend) for _ in range(contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [len(names) for names in owners] == [1] * rounds
    assert all(("has ended" in names[0]) == bool(number % 2) for number, names in enumerate(owners))
    assert [len(texts) for texts in refused] == [contenders - 1] * rounds
    assert not (folder / FILE).exists()


@pytest.mark.parametrize("folder", [NO_LOCKS], indirect=True)
def test_of_two_at_once_on_a_disk_without_locks_the_last_to_write_becomes_the_owner(folder, monkeypatch):
    other, written = msgspec.structs.replace(Owner.this_process(), host="far", kernel="of another boot"), []

    def sleep(seconds, sleep=time.sleep):
        if not written:  # before this process looks whether it is alone
            written.append((folder / FILE).write_bytes(msgspec.json.encode(other)))
        sleep(seconds)
        os.utime(folder / FILE)

    monkeypatch.setattr(ownership.time, "sleep", sleep)
    with pytest.raises(InUse, match="on far"):
        own(folder)


def test_the_owner_is_named_and_may_be_waited_for(folder, capsys):
    first = own(folder)
    with pytest.raises(InUse, match=rf"is in use by process {os.getpid()} on \S+, which began 0:00:0\d ago; wait"):
        own(folder)
    timer = threading.Timer(0.3, first.release)
    timer.start()
    with own(folder, patience=30) as second:
        assert not second.taken_over  # it has not died
    assert "waiting for up to 30 s" in capsys.readouterr().err and not (folder / FILE).exists()


def test_a_killed_owner_is_succeeded_at_once(folder, start, request, monkeypatch):
    process = start(folder, "time.sleep(60)", request.node.callspec.params["folder"] == NO_LOCKS)
    with pytest.raises(InUse):
        own(folder)
    process.kill()
    process.wait()
    monkeypatch.setattr(ownership, "LEASE", 1e9)
    with own(folder) as owner:
        assert f"over from process {process.pid} on " in owner.taken_over and "has ended" in owner.taken_over


@pytest.mark.parametrize("folder", [NO_LOCKS, BUCKET], indirect=True)
def test_another_process_with_the_pid_of_a_dead_owner(folder, monkeypatch):
    monkeypatch.setattr(ownership, "LEASE", 1e9)
    owner = msgspec.structs.replace(Owner.this_process(), began="1")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(msgspec.json.encode(owner))
    with own(folder) as owner:
        assert "has ended" in owner.taken_over


@pytest.mark.parametrize("folder", [NO_LOCKS, BUCKET], indirect=True)
def test_an_owner_on_another_machine(folder, elsewhere, capsys):
    with elsewhere(folder) as alive, pytest.raises(InUse, match="on far, which began"):
        own(folder)
    alive = elsewhere(folder, on_loss=pytest.fail)
    alive._closed.set()  # it dies: no renewals, and its file stays
    began = time.monotonic()
    with own(folder) as owner:
        assert owner.taken_over.endswith("and gave no sign of life for 1 s") and "on far" in owner.taken_over
    assert 1 <= time.monotonic() - began < 20 and "is process" in capsys.readouterr().err


@pytest.mark.parametrize("successor", ["writes", "has left"])
@pytest.mark.parametrize("folder", [NO_LOCKS, BUCKET], indirect=True)
def test_a_process_that_was_stopped_for_long_writes_nothing_more(folder, start, request, tmp_path, successor):
    written = tmp_path / "written"
    process = start(folder, "os.kill(os.getpid(), 19)\n"
                            f"owner.confirm()\nopen({str(written)!r}, 'w')\ntime.sleep(60)",
                    request.node.callspec.params["folder"] == NO_LOCKS)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    with own(folder, on_loss=pytest.fail) as owner:
        assert "gave no sign of life" in owner.taken_over
        if successor == "has left":
            owner.release()
            own(folder).release()
        process.send_signal(signal.SIGCONT)
        error = process.communicate(timeout=30)[1]
        assert process.returncode == 2 and f"was taken over by process {os.getpid()} on " in error
        assert error.count("\n") == 1 and not written.exists()
        owner.confirm()
    assert own(folder).taken_over == ""


@pytest.mark.parametrize("folder", [DISK], indirect=True)
def test_a_forked_process_does_not_keep_the_lock(folder, start):
    """A worker of the input may outlive the process that owned the folder."""
    process = start(folder, "if os.fork():\n    os._exit(0)\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    child = int(process.stdout.readline())
    try:
        process.wait()
        with own(folder) as owner:
            assert "has ended" in owner.taken_over
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_that_is_removed(folder):
    """The owner goes on until there is another one."""
    lost = threading.Event()
    first = own(folder, on_loss=lambda message: lost.set())
    (folder / FILE).unlink()
    assert not lost.wait(0.2) and first.confirm()
    if isinstance(folder, RemotePath):  # there it comes back
        while not (folder / FILE).exists():
            time.sleep(0.01)
        with pytest.raises(InUse):
            own(folder)
    else:
        with own(folder):
            assert lost.wait(20)
        assert not (folder / FILE).exists()
    first.release()


@pytest.mark.parametrize("folder", [BUCKET], indirect=True)
def test_answers_of_a_bucket_that_are_lost(folder, monkeypatch):
    """Repeated by the client, a change meets what it has made itself."""
    write = type(folder).write_if

    def write_twice(self, generation, data):
        write(self, generation, data)
        return write(self, generation, data)

    monkeypatch.setattr(type(folder), "write_if", write_twice)
    with own(folder, on_loss=pytest.fail) as owner:
        time.sleep(0.3)
        assert owner.confirm() and '"beats":0' not in (folder / FILE).read_text()


@pytest.mark.parametrize("folder", [BUCKET], indirect=True)
def test_a_bucket_that_is_away(folder, store, monkeypatch):
    with own(folder, on_loss=pytest.fail) as owner:
        store.away = True
        time.sleep(0.8)
        away = owner.confirm()
        store.away = False
        assert not away and owner.confirm()


def test_the_error_of_a_disk_is_its_own(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        own(tmp_path / "file" / "run")
    assert caught.value.errno == errno.ENOTDIR
