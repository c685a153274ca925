"""Version of routelab, from the metadata of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("routelab")
except PackageNotFoundError:
    # The package is on the path but not installed.
    __version__ = "0+unknown"
