"""One training for each network and optimizer: what is compared if nothing else is asked for."""
