"""Cheap probes of a router: what its outputs depend on, asked with random tokens. Training and conformance both run them."""
