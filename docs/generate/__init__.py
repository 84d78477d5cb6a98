"""The part of the documentation that is made, not written: pages of rules and optimizers, entries, notebooks."""
