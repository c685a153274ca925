"""Latency of a mixture beside dense models of equal FLOPs and of equal parameters."""
