"""How a chain runs: the flattened tree, the layout of the state, the scalars of a step, the plan and its execution."""
