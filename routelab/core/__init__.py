"""Errors, registries, plugins, options, seeds, collectives and FLOP counts: code that knows nothing of models."""
