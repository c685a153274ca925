"""Initial values that depend on the seed and on declared names, so that parts common to several arms start equal."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from routelab.core.seeds import key, keyed


def initialise(root: nn.Module, seed: int) -> None:
    """Draw every parameter of `root` from generators that depend on the seed and on declared names.

    A module with `init_parameters(generator)` draws from one generator for each of its parameters. Any other module that owns
    parameters and has `reset_parameters()`, as the modules of torch do, is reset under a seed of its own name. Submodules come
    before the module that holds them, so a router may overwrite what a linear layer inside it drew.

    Args:
        root: the module to initialise.
        seed: the seed of the run.
    """
    for name, module in reversed(list(init_paths(root))):
        draw, reset = getattr(module, "init_parameters", None), getattr(module, "reset_parameters", None)
        if draw is not None:
            draw(keyed(seed, name))
        elif reset is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key(seed, name))
                reset()


def init_paths(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of `root` once, with the name that its initial values depend on.

    The name is the path of attributes from `root`, in which each class replaces its attributes by the names that it declares
    in `init_names`. Attributes can therefore be renamed without changing any initial value. A declared name of "" takes the
    name of the parent: the experts of a layer start as the dense feed-forward in the same position does.

    Args:
        root: the module to walk.

    Yields:
        Pairs of a dotted name and a module, parents before their children.
    """
    visited: set[nn.Module] = set()

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        if module in visited:
            return
        visited.add(module)
        yield path, module
        declared = init_names(type(module))
        for attribute, child in module.named_children():
            yield from walk(child, ".".join(filter(None, (path, declared.get(attribute, attribute)))))

    yield from walk(root, "")


def init_names(module_class: type[nn.Module]) -> dict[str, str]:
    """Return the declared names of a class and its bases: attribute -> the name that its initial values depend on."""
    declared: dict[str, str] = {}
    for base in reversed(module_class.__mro__):
        declared |= vars(base).get("init_names", {})
    return declared


def parameter_init_names(root: nn.Module) -> dict[str, str]:
    """Map the name of each parameter of `root` to the name that its initial value depends on.

    Args:
        root: the module that holds the parameters.

    Returns:
        A dict in the order of `root.named_parameters()`; a parameter that modules share has its first name.
    """
    paths = {module: path for path, module in init_paths(root)}
    names = {}
    for name, _ in root.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = root.get_submodule(owner)
        names[name] = ".".join(filter(None, (paths[module], init_names(type(module)).get(leaf, leaf))))
    return names
