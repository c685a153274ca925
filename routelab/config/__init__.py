"""Configuration: its schema, its resolution from files and overrides, and the grid of arms."""
