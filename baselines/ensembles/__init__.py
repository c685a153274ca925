"""Classic ensembles: bagging, boosting, stacking and their relatives."""
