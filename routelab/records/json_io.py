"""JSON and text files, written completely or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from routelab.core.errors import StorageError, UsageError
from routelab.records.atomic_file import replaced_at_end


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all. A full disk or a closed folder is a StorageError, and leaves what was there before."""
    try:
        with replaced_at_end(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def is_full(error: OSError) -> bool:
    """Whether the error says that the disk, a quota or a limit takes no more, which no other file there will survive."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_writable(folder: Path) -> None:
    """Make the folder; UsageError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"output={str(folder)!r} cannot be written to: {error.strerror or error}") from None
