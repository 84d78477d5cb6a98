"""Many learning rates and seeds for each network and optimizer: ``--sweep``."""
