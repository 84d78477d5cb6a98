"""optax's optimizers, with optax's argument names, defaults and order (optax 0.2.8); those of ``optax.contrib`` too.

What is optax's own: AMSGrad takes the maximum of the debiased second moment; RMSProp has its epsilon inside the root
and its learning rate inside the momentum, while SGD has it outside; Nadam's momentum has no schedule; weight decay
is decoupled, except in AdaDelta; Muon's momentum is Nadam's; schedule-free methods read the schedule one step ahead
for their weights; Yogi's averages start at 1e-6; Adan takes 1 − b2 where its paper has b2; Rprop's steps come one
late; GaLore's basis is that of the longer side; MoMo divides the weights by 1 + ηλ, and its step not.

``mask`` and ``weight_decay_mask`` are trees of booleans, functions that make them, or selectors as of ``where``.
``mu_dtype`` and the like are the ``state_dtype`` of the rule that holds the average.

Every argument is taken. What is refused, with what to use instead: an ``alpha`` of 0 in optimistic methods, and a
``weight_lr_power`` below 0. ``adadelta`` without a learning rate goes uphill, as optax's.

Where gradtx differs: ``clip_by_global_norm`` makes every leaf NaN for a gradient that is not finite, where optax
leaves zeros beside the NaN; arithmetic is never in half precision; Adafactor's decay is a float64 where parameters
are, and a float32 in optax.
"""

from typing import Any as _Any

import optax as _optax
import optax.contrib as _contrib

from gradtx._core.exports import exports as _exports
from gradtx.dialects._arguments import missing as _missing
from gradtx.dialects.optax._parts import start_averages as start_averages
from gradtx.dialects.optax.adaptive import *
from gradtx.dialects.optax.averaged import *
from gradtx.dialects.optax.classics import *
from gradtx.dialects.optax.distances import *
from gradtx.dialects.optax.distances import decayed_at_bound as decayed_at_bound, first_rate as first_rate
from gradtx.dialects.optax.layerwise import *
from gradtx.dialects.optax.leaders import *
from gradtx.dialects.optax.matrices import *
from gradtx.dialects.optax.signs import *
from gradtx.dialects.optax.signs import one_late as one_late
from gradtx.dialects.optax.values import *

_SEAL = "no chain of rules. Seal optax's own into a chain: gradtx.seal(optax.{}(...))"
_INSTEAD = {
    "optimistic_adam": "optax deprecates it. Use optimistic_adam_v2",
    "lookahead": "use the rule gradtx.lookahead as the last one of a chain",
    "schedule_free": "use schedule_free_sgd or schedule_free_adamw, or end a chain with gradtx.average_iterates",
    "schedule_free_eval_params": "use gradtx.evaluation_point(state, params)",
    "chain": "use gradtx.chain",
    "named_chain": "use gradtx.chain(..., name=...)",
    "identity": "use gradtx.chain()",
    "partition": "use gradtx.partition",
    "multi_transform": "use gradtx.partition",
    "masked": "use gradtx.where",
    "selective_transform": "use gradtx.where, or gradtx.partition",
    "freeze": "use gradtx.freeze, or gradtx.partition(..., default='freeze')",
    "set_to_zero": "use gradtx.freeze",
    "flatten": "use gradtx.packed",
    "multisteps": "use gradtx.accumulate",
    "apply_every": "use gradtx.accumulate(gradtx.chain(), ..., combine='sum') at the end of a chain",
    "apply_if_finite": "use gradtx.skip_nonfinite",
    "skip_not_finite": "use gradtx.skip_nonfinite",
    "skip_large_updates": "use gradtx.clip_by_global_norm, which keeps the direction",
    "monitor": "use gradtx.monitor",
    "snapshot": "use gradtx.monitor",
    "measure_with_ema": "use gradtx.monitor",
    "adaptive_grad_clip": "use the rule gradtx.adaptive_clip in front of a chain",
    "clip_by_block_rms": "use the rule gradtx.clip_by_rms",
    "add_noise": "use the rule gradtx.add_noise, whose noise is another",
    "noisy_sgd": "use gradtx.add_noise in front of gradtx.sgd; the noise is another",
    "add_decayed_weights": "use the rule gradtx.add_decayed_weights(..., where=...)",
    "centralize": "use the rule gradtx.centralize(output=0): optax keeps the first axis",
    "trace": "use the rule gradtx.trace",
    "ema": "use the rule gradtx.momentum, and gradtx.debias behind it",
    "scale": "use the rule gradtx.scale",
    "scale_by_schedule": "use the rule gradtx.scale, which takes a schedule",
    "scale_by_learning_rate": "use the rule gradtx.scale_by_learning_rate",
    "scale_by_sign": "use the rule gradtx.sign",
    "scale_by_rms": "use the rules gradtx.rms and gradtx.precondition",
    "scale_by_rss": "use the rules gradtx.adagrad_sum and gradtx.precondition",
    "scale_by_stddev": "use the rules gradtx.centered_rms and gradtx.precondition",
    "scale_by_belief": "use the rules gradtx.belief_rms, gradtx.debias and gradtx.precondition",
    "scale_by_factored_rms": "use the rule gradtx.scale_by_factored_rms",
    "scale_by_trust_ratio": "use the rule gradtx.scale_by_trust_ratio",
    "scale_by_param_block_rms": "use the rule gradtx.scale_by_parameter_rms",
    "scale_by_polyak": "use the rule gradtx.scale_by_polyak",
    "scale_by_optimistic_gradient": "use the rule gradtx.extrapolate(..., 'same')",
    "scale_by_distance_over_gradients": "it is DoG for each leaf apart. Use dog, with one distance for all, or its "
    "rules scale_by_gradient_norm and scale_by_distance in a gradtx.partition of the leaves",
    "sam": "use gradtx.ascent_point, and take the second gradient there",
    "normalize": "use gradtx.ascent_point for SAM; else the rule gradtx.scale_by_gradient_norm(0.0, over='tree')",
    "scale_by_cocob": "use gradtx.dialects.optax.cocob, which is the same",
    "scale_by_madgrad": "use gradtx.dialects.optax.madgrad, which is the same",
    "scale_by_muon": "use the rules gradtx.nesterov(0.95) and gradtx.orthogonalize(eps=1e-8)",
    "inject_hyperparams": "every chain has its hyperparameters in its state: use gradtx.set_hyperparams",
    "inject_stateful_hyperparams": "every chain has its hyperparameters in its state: use gradtx.set_hyperparams",
    "stateless": "write a rule: gradtx.Rule",
    "stateless_with_tree_map": "write a rule: gradtx.Rule",
    "with_extra_args_support": "every chain takes extra arguments",
    **{
        name: _SEAL.format(name)
        for name in (
            *("lbfgs", "scale_by_lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"),
            *("conditionally_mask", "conditionally_transform", "keep_params_nonnegative", "normalize_by_update_norm"),
            *("zero_nans", "scale_by_param_block_norm"),
        )
    },
    **{
        name: _SEAL.format(f"contrib.{name}")
        for name in (
            *("sophia", "hutchinson_estimator_diag_hessian", "reduce_on_plateau", "split_real_and_imaginary"),
            *("dpsgd", "differentially_private_aggregate"),
        )
    },
}


MYPY = False  # but True to mypy. It and pyright go by the imports, and read no list that is put together.
if not MYPY:
    __all__: list[str] = sorted({*_exports(vars())} - {"decayed_at_bound", "first_rate", "one_late", "start_averages"})  # pyright: ignore[reportUnsupportedDunderAll] - as above


def __getattr__(name: str) -> _Any:
    whole = name.removeprefix("scale_by_")
    if whole != name and whole in __all__:
        advice = f"use the rules of gradtx.dialects.optax.{whole}(...) but for the learning rate and the weight decay"
    else:
        advice = "no optimizer. Use optax's own"
    known = name in vars(_optax) or name in vars(_contrib)
    _missing("optax", name, __all__, {**({name: advice} if known else {}), **_INSTEAD})
