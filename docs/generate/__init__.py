"""What of the documentation is made rather than written: pages of rules and optimizers, entries, notebooks."""
