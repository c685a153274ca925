"""Comparisons: grid of runs, matching, execution, statistics, summary and verdicts."""
