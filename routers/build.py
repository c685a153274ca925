"""Construction of registered routers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from routelab.core.errors import PluginError, UsageError
from routelab.core.options import check_options
from routelab.core.registry import BUILT_IN
from routelab.routers.router_registry import ROUTERS

if TYPE_CHECKING:
    from routelab.routers.base import Router


def build_router(name: str, *, d_model: int, num_experts: int, **options: Any) -> Router:
    """Build a registered router. Options are those of its constructor; a wrong one is a UsageError with the nearest match.

    Its parameters are drawn as `init_parameters` says, from torch's global random state. PluginError if the constructor of a
    router that is not built in raises anything.
    """
    from routelab.routers.base import fresh

    router = ROUTERS.get(name)
    check_options(f"router {name!r}", router, options)
    try:
        built = router(d_model, num_experts, **options)
        built.init_parameters(fresh)
        return built
    except UsageError:
        raise
    except Exception as error:
        if ROUTERS.origin(name) != BUILT_IN:
            raise PluginError.of(ROUTERS.title(name), error) from error
        if isinstance(error, ValueError):
            raise UsageError(f"router {name!r}: {error}") from error
        raise
