"""Simulation of serving a mixture whose experts do not all fit in memory."""
