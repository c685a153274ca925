"""Kernels of the experts on a CPU: threads, allocator, and the fused operation."""
