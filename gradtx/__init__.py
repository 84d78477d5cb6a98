"""Optimizers for JAX as chains of elementary update rules."""

from gradtx._chain import Chain, Hyper, Rule, chain, hyper, seal, step
from gradtx._state import ChainState, set_hyperparams
from gradtx._signal import Signal, Weights
from gradtx._maths import Tick
from gradtx.rules import *
