"""Other frameworks' optimizers, as orders of rules: the same trajectory under the same argument names.

A script ported from torch, Keras or optax changes its import and keeps its numbers::

    from gradtx.dialects import torch

    tx = torch.adam(lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-2)  # coupled, as torch.optim.Adam has it

Each function returns a ``Chain``, to be taken apart like any other. The learning rate may be a schedule of the count
(the first step sees 0), where the framework would have you set it before each step. Every recipe is tested against
trajectories of the real framework in float64.
"""

from gradtx.dialects import keras, optax, torch

__all__ = ["keras", "optax", "torch"]
