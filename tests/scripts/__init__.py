"""Programs beside the tests: what takes long, or another compiler, or writes a table."""
