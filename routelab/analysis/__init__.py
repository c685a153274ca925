"""Analysis of trained runs: routing, serving from little memory, and latency."""
