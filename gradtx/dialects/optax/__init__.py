"""optax's optimizers, with optax's argument names, defaults and order (optax 0.2.8); those of ``optax.contrib`` too.

What is optax's own: AMSGrad takes the maximum of the debiased second moment; RMSProp has its epsilon inside the root
and its learning rate inside the momentum, while SGD has it outside; Nadam's momentum has no schedule; weight decay
is decoupled, except in AdaDelta; Muon's momentum is Nadam's; schedule-free methods read the schedule one step ahead
for their weights; Yogi's averages start at 1e-6; Adan takes 1 − b2 where its paper has b2.

``mask`` and ``weight_decay_mask`` are trees of booleans, functions that make them, or selectors as of ``where``.
``mu_dtype`` and the like are the ``state_dtype`` of the rule that holds the average.

Where gradtx differs: ``clip_by_global_norm`` makes every leaf NaN for a gradient that is not finite, where optax
leaves zeros beside the NaN; arithmetic is never in half precision; Adafactor's decay is a float64 where parameters
are, and a float32 in optax.
"""

from typing import Any as _Any

from gradtx._core.exports import exports as _exports
from gradtx.dialects._arguments import missing as _missing
from gradtx.dialects.optax._parts import start_averages as start_averages
from gradtx.dialects.optax.adaptive import *
from gradtx.dialects.optax.averaged import *
from gradtx.dialects.optax.classics import *
from gradtx.dialects.optax.distances import *
from gradtx.dialects.optax.layerwise import *
from gradtx.dialects.optax.leaders import *
from gradtx.dialects.optax.matrices import *
from gradtx.dialects.optax.signs import *
from gradtx.dialects.optax.values import *

_ELSEWHERE = "no chain of rules. Seal optax's own into a chain: gradtx.seal(optax.{})"

_INSTEAD = {
    "rprop": "optax's returns the update of the step before. Use gradtx.rprop, which is torch's and the paper's",
    "optimistic_adam": "optax deprecates it. Use optimistic_adam_v2",
    "lookahead": "use the rule gradtx.lookahead as the last one of a chain",
    "schedule_free": "use schedule_free_sgd or schedule_free_adamw, or end a chain with gradtx.average_iterates",
    "schedule_free_eval_params": "use gradtx.evaluation_point(state, params)",
    "chain": "use gradtx.chain",
    "named_chain": "use gradtx.chain(..., name=...)",
    "partition": "use gradtx.partition",
    "multi_transform": "use gradtx.partition",
    "masked": "use gradtx.where",
    "multisteps": "use gradtx.accumulate",
    "apply_if_finite": "use gradtx.skip_nonfinite",
    "adaptive_grad_clip": "use the rule gradtx.adaptive_clip in front of a chain",
    "add_noise": "use the rule gradtx.add_noise, whose noise is another",
    "noisy_sgd": "use gradtx.add_noise in front of gradtx.sgd; the noise is another",
    "centralize": "use the rule gradtx.centralize(output=0): optax keeps the first axis",
    "sam": "use gradtx.ascent_point, and take the second gradient there",
    "inject_hyperparams": "every chain has its hyperparameters in its state: use gradtx.set_hyperparams",
    "lbfgs": _ELSEWHERE.format("lbfgs(...)"),
    **{name: _ELSEWHERE.format(f"contrib.{name}(...)") for name in ("dadapt_adamw", "galore", "mechanize", "sophia")},
}


MYPY = False  # but True to mypy. It and pyright go by the imports, and read no list that is put together.
if not MYPY:
    __all__: list[str] = sorted({*_exports(vars())} - {"start_averages"})  # pyright: ignore[reportUnsupportedDunderAll] - as above


def __getattr__(name: str) -> _Any:
    _missing("optax", name, __all__, _INSTEAD)
