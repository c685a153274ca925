"""The classic mixtures of experts: whole networks under one gate or a tree of gates."""
