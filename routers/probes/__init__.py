"""Cheap probes that measure on random tokens what the outputs of a router depend on. Training and conformance run them."""
