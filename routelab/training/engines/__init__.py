"""Engines that spread one run over several processes."""
