"""Configuration: schema, resolution from files and overrides, and the grid of arms."""
