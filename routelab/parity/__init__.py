"""Parity with published implementations: differences of outputs and gradients, measured and recorded."""
