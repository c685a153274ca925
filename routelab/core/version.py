"""Version of routelab, from the metadata of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("routelab")
except PackageNotFoundError:
    # A checkout on the path, of which nothing is installed.
    __version__ = "0+unknown"
