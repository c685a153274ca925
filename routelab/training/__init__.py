"""Training of one run through one LightningModule, from a specification to a record."""
