"""Plots of a report, each with the numbers that it shows."""
