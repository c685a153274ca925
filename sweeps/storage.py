"""Where studies lie: a journal file, sqlite, or PostgreSQL; the lock that makes claims exclusive; and who is still alive.

A worker that was killed leaves a trial that says RUNNING for ever. On the same machine its process is looked for; from other
machines, a database goes by Optuna's heartbeats and its own clock, a journal by the age of a file that each worker touches.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from routelab.core.errors import StorageError, UsageError
from routelab.sweeps.liveness import BEAT_SECONDS, GRACE_SECONDS, gone, worker_id
from routelab.tracking.uri import initialising, reason, shown, sqlite_path

PATIENCE_SECONDS = 300.0
"""How long a database that was there may be away (a restart) before a sweep ends."""

_ADVISORY = 0x726F7574  # of PostgreSQL's advisory locks, the one of sweeps ("rout")


class Store(ABC):
    """An opened storage. url: as the user wrote it; optuna: what Optuna works on."""

    url: str
    optuna: Any

    @abstractmethod
    def claiming(self) -> contextlib.AbstractContextManager[None]:
        """Held by one process at a time, and given back by the system if that process is killed."""

    @abstractmethod
    def beat(self, worker: str, trial_id: int | None) -> None:
        """Say that the worker lives, and goes on with the trial."""

    @abstractmethod
    def silent(self, study: optuna.Study, trial: Any, worker: str) -> bool:
        """Whether the worker of a RUNNING trial has not been heard of for `GRACE_SECONDS`."""

    def dead(self, study: optuna.Study, trial: Any, worker: str | None) -> bool:
        """Whether a RUNNING trial has lost its worker. Ask only while `claiming`: claims name their worker before they end."""
        if worker is None:
            return True
        ended = gone(worker)
        return self.silent(study, trial, worker) if ended is None else ended


class _Flock(BaseJournalFileLock):
    """A lock that the system gives back when its holder is killed; Optuna's own would hold up everybody for its grace period.

    A line that a killed writer left unfinished is cut off, or the next one would be joined to it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        with open(self._path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


_OPENING = b'{"op_code"'
"""How every line of a journal begins."""


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(_OPENING))


class Journal(Store):
    """A file that is only ever appended to: the fastest on one machine."""

    def __init__(self, url: str, path: Path, create: bool) -> None:
        self.url, self.path = url, path
        if not create and not path.is_file():
            raise UsageError(f"storage={url!r}: there is no such file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # What is no journal is not even opened for writing: Optuna cuts off a last line that does not end.
            if path.is_file() and not _OPENING.startswith(_head(path)):
                raise UsageError(f"storage={url!r} is no journal of Optuna: it begins with {_head(path)!r}")
            with open(path, "ab" if create else "rb+"):
                pass
            self._beats = path.with_name(f"{path.name}.workers")
            self._beats.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"storage={url!r} cannot be opened for writing: {error.strerror or error}") from None
        self._claim = FileLock(f"{path}.claim")
        try:
            self.optuna = JournalStorage(JournalFileBackend(str(path), lock_obj=_Flock(path)))
        except Exception as error:
            raise UsageError(f"storage={url!r} is no journal of Optuna: {reason(error)}") from None

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        with self._claim:
            yield

    def beat(self, worker: str, trial_id: int | None) -> None:
        self._file(worker).touch()

    def silent(self, study: optuna.Study, trial: Any, worker: str) -> bool:
        # Both ages are by the clock of the file system, whatever the clocks of the machines say.
        probe = self._file(worker_id())
        probe.touch()
        try:
            return probe.stat().st_mtime - self._file(worker).stat().st_mtime > GRACE_SECONDS
        except FileNotFoundError:
            return True

    def _file(self, worker: str) -> Path:
        return self._beats / re.sub(r"[^\w.-]", "_", worker)


class Database(Store):
    """A database: sqlite for a single file that other tools read, PostgreSQL for many machines."""

    def __init__(self, url: str, create: bool) -> None:
        self.url = url
        self._file = sqlite_path(url)
        if self._file is not None and not create and not self._file.is_file():
            raise UsageError(f"storage={url!r}: there is no such file")
        driver = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
        connect = {"timeout": 60} if self._file is not None else {"connect_timeout": 10}
        try:
            with initialising(url) if self._file is not None else contextlib.nullcontext():
                self.optuna = RDBStorage(
                    driver,
                    # No ping before each of some twenty transactions a trial: who works here is patient, see `patiently`.
                    engine_kwargs={"connect_args": connect, "pool_pre_ping": False},
                    heartbeat_interval=BEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                )
                # Changes nothing, but only where something may be changed.
                self._execute("UPDATE version_info SET library_version = library_version")
        except UsageError:
            raise
        except ImportError as error:
            raise UsageError(f"storage={shown(url)!r} needs a package that is not installed: {error}") from None
        except Exception as error:
            raise UsageError(f"storage={shown(url)!r} cannot be opened for writing: {reason(error)}") from None
        self._claim = None if self._file is None else FileLock(f"{self._file}.claim")

    def _execute(self, statement: str) -> None:
        import sqlalchemy

        with self.optuna.engine.begin() as connection:
            connection.execute(sqlalchemy.text(statement))

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        if self._claim is not None:
            with self._claim:
                yield
            return
        import sqlalchemy

        # The server gives the lock back when the connection ends, as it does with its process.
        with self.optuna.engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_ADVISORY})"))
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_unlock({_ADVISORY})"))

    def beat(self, worker: str, trial_id: int | None) -> None:
        if trial_id is not None:
            self.optuna.record_heartbeat(trial_id)

    def silent(self, study: optuna.Study, trial: Any, worker: str) -> bool:
        return trial._trial_id in self.optuna._get_stale_trial_ids(study._study_id)


def open_store(url: str, *, create: bool) -> Store:
    """Open a storage: `sqlite:///PATH`, `postgresql://USER:PASSWORD@HOST/DATABASE`, or the path of a journal file, with or
    without `journal:///` before it. UsageError if it is down, read-only, or, without `create`, not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna.*")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    scheme, mark, rest = url.partition("://")
    if not mark or scheme == "journal":
        return Journal(url, Path(rest.removeprefix("/") if mark and not rest.startswith("//") else rest or url), create)
    if scheme.partition("+")[0] not in ("sqlite", "postgresql", "postgres"):
        raise UsageError(
            f"storage={shown(url)!r} must be a journal file's path, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    if scheme == "sqlite" and sqlite_path(url) is None and "file:" not in url:
        raise UsageError(f"storage={url!r} names no file: write sqlite:///PATH")
    return Database(url, create)


Value = TypeVar("Value")


def patiently(call: Callable[[], Value], seconds: float = PATIENCE_SECONDS) -> Value:
    """`call()`, again and again while a database that was there is away. StorageError if it stays away."""
    from sqlalchemy.exc import DBAPIError

    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (optuna.exceptions.StorageInternalError, DBAPIError) as error:
            if time.monotonic() > end:
                cause = error.__cause__ or error
                raise StorageError(
                    f"the storage went away: {reason(cause)}; `routelab sweep resume` goes on when it is back"
                ) from None
            time.sleep(min(5.0, seconds / 10))
