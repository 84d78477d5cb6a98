"""gradtx inside Flax, Equinox, Haiku and optax's wrappers: what is run there, and the table of it."""
