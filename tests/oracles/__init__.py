"""Golden float64 trajectories of the real torch and Keras optimizers; see README.md."""
