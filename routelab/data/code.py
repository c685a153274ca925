"""Code: Python of the standard library, and C++ of torch's headers. Both vary by version; the digest records which."""

from __future__ import annotations

import os
import platform
import re
import sysconfig
from pathlib import Path

from routelab.data.packages import installed_version, package_folder
from routelab.data.text import Document

_NOT_PYTHON = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
"""Other people's code, tests, and modules that are tables."""

_HEADERS = ("torch/csrc", "c10", "ATen/native", "ATen/core", "ATen/cpu")
_SMALLEST = 200


def python_documents() -> list[Document]:
    """One per module of the standard library, tests and tables left out. A group is a top-level module or package together
    with its twin in pure Python (`decimal`, `_pydecimal`)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, below, files in os.walk(root):
        # Cut off here, site-packages is never walked.
        below[:] = [name for name in below if name not in _NOT_PYTHON]
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            if path.stat().st_size >= _SMALLEST:
                top = path.relative_to(root).parts[0].removesuffix(".py")
                found.append(_file(path, root, re.sub(r"^_*(py)?", "", top)))
    return sorted(found, key=lambda document: document.name)


def cpp_documents() -> list[Document]:
    """One per header, generated ones left out. A group holds the files of one name, digits and endings aside: the same code
    for vectors of 128, 256 and 512 bits, or `x.h` and `x_inl.h`."""
    root = package_folder("torch", "domain 'cpp'", "torch") / "include"
    found = []
    for folder in (root / part if part != "torch/csrc" else root / "torch" / "csrc" for part in _HEADERS):
        for path in folder.rglob("*.h"):
            name = path.relative_to(root).as_posix()
            if "generated" in name or "/ops/" in name or path.stat().st_size < _SMALLEST:
                continue
            with path.open("rb") as file:
                head = file.read(600)
            # TensorBody.h and its kin are written by torchgen.
            if b"@generated" in head or b"DO NOT EDIT" in head:
                continue
            group = re.sub(r"[-_](inl|impl)$|\d+", "", path.stem).lower()
            found.append(_file(path, root, group))
    return sorted(found, key=lambda document: document.name)


def python_source() -> str:
    """Where the texts come from."""
    return f"python: standard library of Python {platform.python_version()} (PSF)"


def cpp_source() -> str:
    """Where the texts come from."""
    return f"cpp: headers of torch {installed_version('torch')} (BSD-3)"


def _file(path: Path, root: Path, group: str) -> Document:
    return Document(path.relative_to(root).as_posix(), group, path.stat().st_size, path.read_bytes)
