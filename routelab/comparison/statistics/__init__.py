"""Intervals, hypothesis tests and power: pure functions of numbers."""
