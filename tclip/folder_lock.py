"""One owner at a time for a folder that a command writes to.

The owner holds flock on FOLDER/.lock, which the system lets go when its process ends, however it
ends. Some network mounts keep flock to a single machine, or have none. So the file also says who
the owner is, and changes every few seconds: an owner on another machine whose file stands still is
dead.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tclip.files import naming

LOCK_FILE = ".lock"
BEAT_SECONDS = 5.0
# An owner on another machine that is silent for so long is dead.
SILENT_SECONDS = 30.0
# How long another machine may take to see what was written.
SETTLE_SECONDS = 1.0
NO_FLOCK = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}

logger = logging.getLogger(__name__)


class FolderInUseError(OSError):
    """Another command writes to the folder; the message names its process and machine."""


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Owns `folder` within the block; makes it if it is missing, and removes what it made if
    nothing else is in it at the end.

    Raises:
      FolderInUseError: it has another owner.
      OSError: it cannot be written to; the message names the file.
    """
    folder = Path(folder).absolute()
    is_new, path = not folder.exists(), folder / LOCK_FILE
    file, record = _take(path)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, record, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        _let_go(file, path, record["token"])
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _take(path: Path) -> tuple[int, dict[str, Any]]:
    """Returns the open file and the record in it; raises as `folder_lock`."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with naming(path):
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # its owner has just removed the folder that it had made
            continue
        try:
            if record := _try_to_own(file, path):
                return file, record
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _try_to_own(file: int, path: Path) -> dict[str, Any] | None:
    """Returns our record once it is in the file; None where the file is no longer at `path`."""
    is_locked = _flock(file, path)
    record, found = _new_record(), _read(file)
    # On one machine whoever has flock is the only one.
    may_live = bool(found) and not (is_locked and found.get("machine") == record["machine"])
    if may_live:
        _wait_until_silent(path, found)
    if not _is_at(file, path):  # its owner has let it go
        return None
    with naming(path):
        _write(file, record)
    if may_live or not is_locked:
        time.sleep(SETTLE_SECONDS)
        now = _read_path(path)
        if now.get("token") != record["token"]:
            raise FolderInUseError(_in_use(path, now))
    return record


def _flock(file: int, path: Path) -> bool:
    """Locks the file; False where there is no flock. Raises FolderInUseError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUseError(_in_use(path, _read(file))) from None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return False
    return True


def _wait_until_silent(path: Path, record: dict[str, Any]) -> None:
    """Returns when the owner is found dead, or has gone; raises FolderInUseError if it lives."""
    logger.warning(
        "%s was left by process %s on %s; looking for up to %.0f s whether it lives",
        path,
        record.get("pid", "?"),
        record.get("host", "?"),
        SILENT_SECONDS,
    )
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(min(BEAT_SECONDS, SILENT_SECONDS) / 4)
        now = _read_path(path)
        if not now:
            return
        if now != record:
            raise FolderInUseError(_in_use(path, now))


def _beat(file: int, record: dict[str, Any], stop: threading.Event) -> None:
    beats = 0
    while not stop.wait(BEAT_SECONDS):
        beats += 1
        # A mount that is away for a while is no reason to end a run.
        with contextlib.suppress(OSError):
            _write(file, record | {"beats": beats})


def _let_go(file: int, path: Path, token: str) -> None:
    with contextlib.suppress(OSError):
        # Not that of an owner that took this one for dead.
        if _is_at(file, path) and _read(file).get("token") == token:
            path.unlink()
    with contextlib.suppress(OSError):
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _new_record() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": _machine(),
        "token": uuid.uuid4().hex,
        "beats": 0,
    }


def _machine() -> str:
    """Tells apart machines of the same name; containers of one machine are one."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _write(file: int, record: dict[str, Any]) -> None:
    content = json.dumps(record).encode()
    os.pwrite(file, content, 0)
    os.ftruncate(file, len(content))
    os.fsync(file)


def _read(file: int) -> dict[str, Any]:
    """The record; {} where nothing is written, and {"torn": ...} of what is not readable."""
    content = os.pread(file, 1 << 16, 0).decode(errors="replace").strip()
    try:
        record = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {"torn": content}
    return record if isinstance(record, dict) else {"torn": content}


def _read_path(path: Path) -> dict[str, Any]:
    # Opened anew: that is when a network mount asks its server.
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return {}
    try:
        return _read(file)
    finally:
        os.close(file)


def _in_use(path: Path, record: dict[str, Any]) -> str:
    since = f" since {record['since']}" if "since" in record else ""
    return (
        f"{path.parent} is in use by process {record.get('pid', '?')} on "
        f"{record.get('host', 'an unknown machine')}{since}: wait for it, stop it, or use another "
        "folder"
    )
