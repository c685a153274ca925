"""Errors, registries, plugins, seeds, processes and FLOP counts: code that knows nothing of models."""
