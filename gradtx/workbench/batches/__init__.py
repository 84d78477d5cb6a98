"""Several batch sizes for each network and optimizer, by iteration and by epoch: ``--batch-size`` with several."""
