"""One training for many values of hyperparameters."""
