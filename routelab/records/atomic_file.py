"""Replacement of a file by a complete one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_at_end(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder, whose file replaces that of `path` at the end; any exception leaves `path` as it was.

    Args:
        path: Path of the file to replace. Its folder is made if it does not exist.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
