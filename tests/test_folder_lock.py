"""A folder has one owner at a time, and a dead owner is none."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tclip import folder_lock as module
from tclip.folder_lock import LOCK_FILE, FolderInUseError, folder_lock

HOLDS = """
import sys, time
from tclip.folder_lock import folder_lock
with folder_lock(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def without_flock(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)


def owner_elsewhere(folder, beats: int = 0) -> None:
    record = {"host": "node-7", "pid": 4321, "machine": "other", "token": "t", "beats": beats}
    (folder / LOCK_FILE).write_text(json.dumps(record))


def start_owner(folder) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout.readline() == "owned\n"
    return owner


def test_the_second_is_told_who_the_first_is(tmp_path):
    message = rf"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since "
    with folder_lock(tmp_path):
        with pytest.raises(FolderInUseError, match=message), folder_lock(tmp_path):
            pass
        # Being refused takes nothing from the owner.
        with pytest.raises(FolderInUseError), folder_lock(tmp_path):
            pass
    with folder_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_another_process_owns_it_until_it_dies(tmp_path):
    with start_owner(tmp_path) as owner:
        with (
            pytest.raises(FolderInUseError, match=rf"process {owner.pid} on "),
            folder_lock(tmp_path),
        ):
            pass
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert (tmp_path / LOCK_FILE).exists()
    began = time.monotonic()
    with folder_lock(tmp_path):
        assert time.monotonic() - began < module.SILENT_SECONDS / 2


@pytest.mark.parametrize("content", ["", "null", '{"pid": 1', "\x00\xff"])
def test_what_a_dead_owner_left_is_no_obstacle(tmp_path, impatient, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_an_owner_on_another_machine_is_believed_while_it_changes_its_file(tmp_path, impatient):
    owner_elsewhere(tmp_path)
    stop = threading.Event()

    def beat():
        beats = 0
        while not stop.wait(0.1):
            beats += 1
            owner_elsewhere(tmp_path, beats)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            pytest.raises(FolderInUseError, match="process 4321 on node-7"),
            folder_lock(tmp_path),
        ):
            pass
    finally:
        stop.set()
        thread.join()
    # Now it is silent.
    with folder_lock(tmp_path):
        pass


def test_an_owner_shows_other_machines_that_it_lives(tmp_path, impatient):
    with folder_lock(tmp_path):
        first = json.loads((tmp_path / LOCK_FILE).read_text())
        deadline = time.monotonic() + 30
        while json.loads((tmp_path / LOCK_FILE).read_text()) == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_file_alone_decides(tmp_path, impatient):
    with (
        folder_lock(tmp_path),
        pytest.raises(FolderInUseError, match=f"process {os.getpid()} "),
        folder_lock(tmp_path),
    ):
        pass
    (tmp_path / LOCK_FILE).write_text('{"pid": 1}')
    with folder_lock(tmp_path):
        pass


def test_of_many_that_come_and_go_one_owns_it_at_a_time(tmp_path):
    folder, inside, most, taken = tmp_path / "new", [], [], []

    def come_and_go():
        owned = 0
        while owned < 5:
            try:
                with folder_lock(folder):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
                owned += 1
            except FolderInUseError:
                time.sleep(0.001)
        taken.append(owned)

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [5] * 6
    assert max(most) == 1
    assert not (folder / LOCK_FILE).exists()


def test_a_folder_that_it_made_and_nobody_used_is_gone(tmp_path):
    with folder_lock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), folder_lock(tmp_path / "file"):
        pass


def test_what_is_put_into_a_new_folder_stays(tmp_path):
    with folder_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").write_text("1")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]
