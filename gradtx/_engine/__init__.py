"""The run of a chain: flattened tree, layout of the state, scalars of a step, plan and execution."""
