"""The words that everything else speaks: signal, contract of a rule, state, selectors, numerics."""
