"""The runs of the oracles: problems, learning-rate schedules and the list of cases. NumPy only.

Nothing here imports torch, Keras or JAX, so a test can read the list, solve the same problems with
another library and compare with the stored trajectories without either framework installed.

A trajectory of a case is obtained like this, in float64::

    problem = PROBLEMS[case.problem]
    leaves = problem.leaves(problem.x0)
    for k, lr in enumerate(case.learning_rates()):
        grads = problem.leaves(problem.grad(concatenate(leaves), k))
        ...  # clip, then one optimizer step with learning rate `lr`
        trajectory[k] = concatenate(leaves)
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any
"""A NumPy or JAX array: the gradients below use only operators that both have."""

STEPS = 60
MAX_STEPS = 100
DECAY = 0.97


@dataclass(frozen=True)
class Problem:
    """A start, a gradient, and how the flat vector is cut into parameter leaves.

    `shapes` are those of the leaves, in order. More than one leaf tells a clip by global norm
    from a clip by the norm of each leaf, and what is measured leaf by leaf; matrices are for
    optimizers that see rows and columns. Everything else is elementwise and cannot see the cut.
    """

    x0: NDArray[np.float64]
    grad: Callable[[Array, int], Array]
    shapes: tuple[tuple[int, ...], ...]

    def leaves(self, flat: Array) -> list[Array]:
        """The parameter leaves of a flat vector; `flat` of them gives it back."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes]).tolist()
        cuts = zip([0, *ends], ends, self.shapes, strict=False)
        return [flat[start:end].reshape(shape) for start, end, shape in cuts]


def flat(leaves: list[Array]) -> NDArray[np.float64]:
    """The leaves as one vector."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


_TARGET = np.array([1.0, -1.0, 1.0])
_E0, _E1 = np.eye(2)


def _parabola(x: Array, k: int) -> Array:
    """Gradient of sum (x - target)^2. The last entry starts at its target: always zero."""
    del k
    return 2.0 * (x - _TARGET)


def _rosenbrock(x: Array, k: int) -> Array:
    """Gradient of (1 - x)^2 + 100 (y - x^2)^2."""
    del k
    gap = x[1] - x[0] * x[0]
    return (-2.0 * (1.0 - x[0]) - 400.0 * x[0] * gap) * _E0 + 200.0 * gap * _E1


def _noise(size: int, seed: int) -> NDArray[np.float64]:
    """A heavy-tailed stream with exact zeros, the same on every platform and NumPy version.

    It is built from the raw bits of PCG64, whose stream NumPy guarantees (it does not guarantee
    the distributions of `Generator`), by exact or correctly rounded operations only.
    """
    bits = np.random.PCG64(seed).random_raw((2, MAX_STEPS, size)) >> np.uint64(11)
    value, kind = bits * 2.0**-53
    noise = 4.0 * value - 2.0
    noise = np.where(kind < 0.06, 25.0 * noise, noise)
    noise = np.where(kind > 0.80, 0.0, noise)
    noise[:5, 5] = 0.0  # with x0[5] == 0 this entry sees exactly zero gradients at first
    return noise


_NOISE = _noise(7, 20260)
_MATRIX_NOISE = _noise(22, 20261)
_TREE_NOISE = _noise(31, 20262)


def _stochastic(x: Array, k: int) -> Array:
    """Row k of a fixed noisy stream plus a weak pull to the origin, 0.1 x."""
    return _NOISE[k] + 0.1 * x


def _matrices(x: Array, k: int) -> Array:
    """As `_stochastic`, of another stream."""
    return _MATRIX_NOISE[k] + 0.1 * x


def _tree(x: Array, k: int) -> Array:
    """As `_stochastic`, of another stream."""
    return _TREE_NOISE[k] + 0.1 * x


PROBLEMS: dict[str, Problem] = {
    "parabola": Problem(np.array([-1.0, 10.0, 1.0]), _parabola, ((3,),)),
    "rosenbrock": Problem(np.zeros(2), _rosenbrock, ((2,),)),
    "stochastic": Problem(np.array([1.0, -2.0, 0.5, 3.0, -0.1, 0.0, -4.0]), _stochastic, ((3,), (4,))),
    "matrices": Problem(np.arange(22) % 5 - np.float64(2), _matrices, ((3, 4), (5, 2))),
    "tree": Problem(np.arange(31) % 7 - np.float64(3), _tree, ((), (2,), (2, 2), (2, 1, 3, 4))),
}

SCHEDULES: dict[str, Callable[[NDArray[np.int64]], Array]] = {
    "constant": lambda k: np.ones(k.shape),
    "decaying": lambda k: DECAY**k,
}
"""Multipliers of the learning rate at the 0-based steps k, which tell whether a learning rate sits
inside or outside a momentum buffer: with a constant one, both are the same."""

DEFAULT_LR: dict[tuple[str, str], float] = {
    ("torch", "sgd"): 1e-3,
    ("torch", "adagrad"): 1e-2,
    ("torch", "rmsprop"): 1e-2,
    ("torch", "adam"): 1e-3,
    ("torch", "adamw"): 1e-3,
    ("torch", "nadam"): 2e-3,
    ("torch", "radam"): 1e-3,
    ("torch", "adamax"): 2e-3,
    ("torch", "adadelta"): 1.0,
    ("torch", "adafactor"): 1e-2,
    ("torch", "rprop"): 1e-2,
    ("torch", "asgd"): 1e-2,
    ("torch", "muon"): 1e-3,
    ("keras", "sgd"): 1e-2,
    ("keras", "adagrad"): 1e-3,
    ("keras", "rmsprop"): 1e-3,
    ("keras", "adam"): 1e-3,
    ("keras", "adamw"): 1e-3,
    ("keras", "nadam"): 1e-3,
    ("keras", "adamax"): 1e-3,
    ("keras", "adadelta"): 1e-3,
    ("keras", "adafactor"): 1e-3,
    ("keras", "lion"): 1e-3,
    ("keras", "ftrl"): 1e-3,
    ("keras", "lamb"): 1e-3,
    ("keras", "schedule_free_adamw"): 2.5e-3,
    ("keras", "muon"): 1e-3,
}
"""Each framework's default learning rate; the generator checks it against the framework."""

LR_NAME = {"torch": "lr", "keras": "learning_rate"}


@dataclass(frozen=True)
class Case:
    """One optimizer with its framework's own arguments, on one problem with one schedule.

    `clip` is ("value", c) or ("norm", c) and means torch's gradient clipping before the step;
    Keras clips through its own arguments. A `decay_mask` is a regular expression for the numbers of
    the leaves that decay; in Keras the others are excluded. `variant` names `kwargs` and `clip` in the id: "default"
    has no arguments at all, "lr" only a learning rate, "all" most arguments at once, and the others
    a learning rate and what they say.
    """

    framework: str
    optimizer: str
    kwargs: Mapping[str, Any] = field(hash=False)
    problem: str
    schedule: str
    steps: int = STEPS
    clip: tuple[str, float] | None = None
    variant: str = "default"

    @property
    def id(self) -> str:
        """The readable unique name, and the key in the npz file."""
        parts = (self.framework, self.optimizer, self.variant, self.problem, self.schedule)
        return "-".join(parts)

    @property
    def averages(self) -> bool:
        """Whether the rows of the trajectory are parameters and then their average."""
        return self.optimizer == "asgd" or bool(self.kwargs.get("use_ema"))

    @property
    def lr(self) -> float:
        """The base learning rate: the one in `kwargs`, or the framework's default."""
        default = DEFAULT_LR[self.framework, self.optimizer]
        return float(self.kwargs.get(LR_NAME[self.framework], default))

    def learning_rates(self) -> NDArray[np.float64]:
        """The learning rate of every step, to be set before that step."""
        return self.lr * SCHEDULES[self.schedule](np.arange(self.steps))


_LRS: dict[str, dict[str, float]] = {
    "sgd": {"parabola": 0.05, "rosenbrock": 1e-3, "stochastic": 0.02},
    "adagrad": {"parabola": 0.8, "rosenbrock": 0.05, "stochastic": 0.3},
    "rmsprop": {"parabola": 0.05, "rosenbrock": 5e-4, "stochastic": 0.02},
    "adam": {"parabola": 0.3, "rosenbrock": 0.005, "stochastic": 0.05},
}
_LRS["adamw"] = _LRS["adam"]
_LRS["nadam"] = {**_LRS["adam"], "rosenbrock": 2e-3}
for _name in ("radam", "adamax", "schedule_free_adamw"):
    _LRS[_name] = _LRS["adam"]
_LRS["adadelta"] = {"parabola": 3.0, "stochastic": 10.0}
_LRS["adafactor"] = {"parabola": 0.3, "stochastic": 0.05, "matrices": 0.05}
_LRS["rprop"] = {"parabola": 0.3, "stochastic": 0.05}
_LRS["asgd"] = {"parabola": 0.05, "stochastic": 0.02}
_LRS["lion"] = _LRS["lamb"] = {"parabola": 0.03, "stochastic": 0.01}
_LRS["ftrl"] = _LRS["adagrad"]
_LRS["muon"] = {"stochastic": 0.02, "matrices": 0.02}
"""Rates at which the trajectories move visibly and do not amplify rounding (see README.md)."""

_CLIPS: dict[str, dict[str, float]] = {
    "value": {"parabola": 12.0, "rosenbrock": 1.95, "stochastic": 1.8},
    "norm": {"parabola": 14.0, "rosenbrock": 1.9, "stochastic": 3.0},
}
"""Thresholds that some steps of each problem exceed and others do not."""

_CLIP_OF_NAME = {"clipvalue": "value", "clipnorm": "norm", "global_clipnorm": "norm"}

_BY_PROBLEM = "by problem"
"""As the value of a clip: take the problem's threshold from `_CLIPS`."""

_TORCH: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {
        "lr": {},
        "momentum": {"momentum": 0.9},
        "dampening": {"momentum": 0.9, "dampening": 0.5},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "weight_decay": {"weight_decay": 0.1},
        "dampening_weight_decay": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05},
        "nesterov_weight_decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
        "clip_value": {"clip": "value"},
        "clip_norm": {"clip": "norm"},
        "clip_norm_all": {"clip": "norm", "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    },
    "adagrad": {
        "lr": {},
        "lr_decay": {"lr_decay": 0.05},
        "initial": {"initial_accumulator_value": 0.5},
        "eps": {"eps": 1e-2},
        "weight_decay": {"weight_decay": 0.1},
        "all": {
            "lr_decay": 0.02,
            "initial_accumulator_value": 0.3,
            "eps": 1e-2,
            "weight_decay": 0.05,
        },
    },
    "rmsprop": {
        "alpha": {"alpha": 0.9},
        "eps": {"eps": 1e-2},
        "momentum": {"momentum": 0.8},
        "centered": {"centered": True},
        "centered_momentum": {"centered": True, "momentum": 0.8},
        "weight_decay": {"weight_decay": 0.1},
        "all": {
            "alpha": 0.95,
            "eps": 1e-2,
            "centered": True,
            "momentum": 0.7,
            "weight_decay": 0.05,
        },
    },
    "adam": {
        "lr": {},
        "eps": {"eps": 1e-2},
        "betas": {"betas": (0.8, 0.95)},
        "amsgrad": {"amsgrad": True, "betas": (0.9, 0.95)},
        "weight_decay": {"weight_decay": 0.1},
        "decoupled_weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "all": {"eps": 1e-2, "betas": (0.8, 0.95), "amsgrad": True, "weight_decay": 0.1},
        "clip_value": {"clip": "value"},
        "clip_norm": {"clip": "norm"},
        "clip_norm_all": {"clip": "norm", "eps": 1e-2, "amsgrad": True, "weight_decay": 0.1},
    },
    "adamw": {
        "lr": {},
        "weight_decay": {"weight_decay": 0.2},
        "no_weight_decay": {"weight_decay": 0.0},
        "amsgrad": {"amsgrad": True, "betas": (0.9, 0.95)},
        "all": {"eps": 1e-2, "betas": (0.8, 0.95), "amsgrad": True, "weight_decay": 0.2},
    },
    "nadam": {
        "lr": {},
        "momentum_decay_1": {"momentum_decay": 1.0},
        "momentum_decay_0": {"momentum_decay": 0.0},
        "eps": {"eps": 1e-2},
        "betas": {"betas": (0.8, 0.95)},
        "weight_decay": {"weight_decay": 0.1},
        "decoupled_weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "all": {
            "eps": 1e-2,
            "betas": (0.8, 0.95),
            "momentum_decay": 0.05,
            "weight_decay": 0.1,
            "decoupled_weight_decay": True,
        },
        "maximize": {"maximize": True, "weight_decay": 0.1},
    },
    "radam": {
        "lr": {},
        "betas": {"betas": (0.8, 0.95), "weight_decay": 0.1},
        "all": {"eps": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"maximize": True, "weight_decay": 0.1},
    },
    "adamax": {
        "lr": {},
        "all": {"eps": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
    },
    "adadelta": {"lr": {}, "all": {"eps": 1e-3, "rho": 0.95, "weight_decay": 0.1}},
    "adafactor": {"lr": {}, "all": {"beta2_decay": -0.5, "eps": (None, 0.5), "d": 1.5, "weight_decay": 0.1}},
    "rprop": {"lr": {}, "all": {"etas": (0.3, 1.4), "step_sizes": (1e-2, 0.2), "maximize": True}},
    "asgd": {"lr": {}, "all": {"lambd": 0.3, "alpha": 0.5, "t0": 10, "weight_decay": 0.1}},
    "muon": {
        "lr": {},
        "no_nesterov": {"nesterov": False, "momentum": 0.8, "ns_steps": 3},
        "all": {
            "weight_decay": 0.3,
            "momentum": 0.8,
            "ns_coefficients": (3.0, -3.2, 1.2),
            "adjust_lr_fn": "match_rms_adamw",
        },
        "eps": {"eps": 5.0},
    },
}

_KERAS: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {
        "lr": {},
        "momentum": {"momentum": 0.9},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "nesterov_without_momentum": {"nesterov": True},
        "weight_decay": {"weight_decay": 0.3},
        "nesterov_weight_decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.3},
        "clipvalue": {"clipvalue": _BY_PROBLEM},
        "clipnorm": {"clipnorm": _BY_PROBLEM},
        "global_clipnorm": {"global_clipnorm": _BY_PROBLEM},
        "weight_decay_clipvalue": {"weight_decay": 0.3, "clipvalue": _BY_PROBLEM},
        "weight_decay_clipnorm": {"weight_decay": 0.3, "clipnorm": _BY_PROBLEM},
        "all": {
            "momentum": 0.8,
            "nesterov": True,
            "weight_decay": 0.3,
            "global_clipnorm": _BY_PROBLEM,
        },
    },
    "adagrad": {
        "lr": {},
        "initial": {"initial_accumulator_value": 0.5},
        "initial_0": {"initial_accumulator_value": 0.0},
        "epsilon": {"epsilon": 1e-2},
        "weight_decay": {"weight_decay": 0.1},
        "all": {
            "initial_accumulator_value": 0.3,
            "epsilon": 1e-2,
            "weight_decay": 0.05,
            "clipnorm": _BY_PROBLEM,
        },
    },
    "rmsprop": {
        "lr": {},
        "rho": {"rho": 0.99},
        "epsilon": {"epsilon": 1e-2},
        "momentum": {"momentum": 0.8},
        "centered": {"centered": True},
        "centered_momentum": {"centered": True, "momentum": 0.8},
        "weight_decay": {"weight_decay": 1.0},
        "all": {
            "rho": 0.95,
            "epsilon": 1e-2,
            "centered": True,
            "momentum": 0.7,
            "weight_decay": 0.3,
            "clipvalue": _BY_PROBLEM,
        },
    },
    "adam": {
        "lr": {},
        "epsilon": {"epsilon": 1e-2},
        "betas": {"beta_1": 0.8, "beta_2": 0.95},
        "amsgrad": {"amsgrad": True, "beta_2": 0.95},
        "weight_decay": {"weight_decay": 0.3},
        "clipvalue": {"clipvalue": _BY_PROBLEM},
        "clipnorm": {"clipnorm": _BY_PROBLEM},
        "global_clipnorm": {"global_clipnorm": _BY_PROBLEM},
        "all": {
            "epsilon": 1e-2,
            "beta_1": 0.8,
            "beta_2": 0.95,
            "amsgrad": True,
            "weight_decay": 0.3,
            "global_clipnorm": _BY_PROBLEM,
        },
    },
    "adamw": {
        "lr": {},
        "weight_decay": {"weight_decay": 0.3},
        "amsgrad": {"amsgrad": True, "beta_2": 0.95},
        "all": {
            "epsilon": 1e-2,
            "beta_1": 0.8,
            "beta_2": 0.95,
            "amsgrad": True,
            "weight_decay": 0.3,
            "clipnorm": _BY_PROBLEM,
        },
    },
    "nadam": {
        "lr": {},
        "epsilon": {"epsilon": 1e-2},
        "betas": {"beta_1": 0.8, "beta_2": 0.95},
        "weight_decay": {"weight_decay": 0.3},
        "all": {
            "epsilon": 1e-2,
            "beta_1": 0.8,
            "beta_2": 0.95,
            "weight_decay": 0.3,
            "global_clipnorm": _BY_PROBLEM,
        },
    },
    "adamax": {
        "lr": {},
        "ema": {"use_ema": True, "ema_momentum": 0.8},
        "all": {"epsilon": 1e-2, "beta_1": 0.8, "beta_2": 0.95, "weight_decay": 0.3, "clipnorm": _BY_PROBLEM},
    },
    "adadelta": {"lr": {}, "all": {"epsilon": 1e-3, "rho": 0.9, "weight_decay": 1e-3, "clipvalue": _BY_PROBLEM}},
    "adafactor": {"lr": {}, "all": {"beta_2_decay": -0.5, "epsilon_2": 0.5, "clip_threshold": 1.5}},
    "lion": {"lr": {}, "all": {"beta_1": 0.95, "beta_2": 0.8, "weight_decay": 0.3, "loss_scale_factor": 4.0}},
    "ftrl": {
        "lr": {},
        "all": {
            "initial_accumulator_value": 0.3,
            "l1_regularization_strength": 0.4,
            "l2_regularization_strength": 0.2,
            "beta": 0.7,
        },
    },
    "lamb": {
        "lr": {},
        "all": {"epsilon": 1e-2, "beta_1": 0.8, "beta_2": 0.95, "weight_decay": 0.3, "global_clipnorm": _BY_PROBLEM},
    },
    "schedule_free_adamw": {
        "lr": {},
        "all": {"epsilon": 1e-2, "beta_1": 0.8, "beta_2": 0.95, "warmup_steps": 10},
    },
    "muon": {
        "lr": {},
        "all": {
            "momentum": 0.8,
            "nesterov": False,
            "adam_beta_1": 0.8,
            "adam_beta_2": 0.95,
            "adam_weight_decay": 0.3,
            "weight_decay": 0.2,
            "adam_lr_ratio": 0.5,
            "rms_rate": 0.5,
        },
    },
}

OF_A_TREE: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("torch", "adafactor"): {
        "floor": {"eps": (0.5, 1e-3)},
        "last": {"beta2_decay": 0.0},
        "first": {"beta2_decay": -1.5},
    },
    ("keras", "sgd"): {
        "replaced": {"momentum": 0.9, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3},
    },
    ("keras", "adam"): {
        "accumulated": {
            **{"gradient_accumulation_steps": 3, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 4},
            **{"weight_decay": 0.3, "clipnorm": _BY_PROBLEM, "loss_scale_factor": 4.0},
        },
    },
    ("keras", "lion"): {"momentum of one": {"beta_1": 0.7, "beta_2": 0.0}},
    ("keras", "lamb"): {"decay of some": {"weight_decay": 0.3, "decay_mask": "[13]"}},
    ("keras", "schedule_free_adamw"): {
        "decay": {"weight_decay": 0.3, "beta_1": 0.8, "warmup_steps": 10},
        "decay of some": {"weight_decay": 0.3, "decay_mask": "[13]", "gradient_accumulation_steps": 2},
    },
    ("keras", "adafactor"): {
        "decay of some": {"weight_decay": 0.3, "decay_mask": "[13]", "gradient_accumulation_steps": 2},
        "decay": {"weight_decay": 0.3, "epsilon_1": 1e-2, "relative_step": False, "clipvalue": _BY_PROBLEM},
    },
    ("keras", "ftrl"): {
        "shrinkage": {"learning_rate_power": -0.3, "l2_shrinkage_regularization_strength": 0.2},
        "power": {"learning_rate_power": -1.5, "beta": 0.7},
        "decay": {"weight_decay": 0.3, "l2_shrinkage_regularization_strength": 0.2, "beta": 0.7},
        "decay of some": {"weight_decay": 0.3, "decay_mask": "[02]", "l1_regularization_strength": 0.4},
    },
    ("keras", "muon"): {
        "iterations": {"muon_a": 3.0, "muon_b": -3.2, "muon_c": 1.2, "ns_steps": 3, "epsilon": 1e-2},
        "everywhere": {"exclude_embeddings": False, "exclude_layers": [], "use_ema": True},
    },
}
"""Further arguments, run on a tree with a scalar, a vector, a matrix and a leaf of four axes alone."""

_PROBLEMS_OF = {
    ("torch", "muon"): ("matrices",),
    ("keras", "muon"): ("stochastic", "matrices"),
    ("torch", "adafactor"): ("parabola", "stochastic", "matrices"),
    ("keras", "adafactor"): ("parabola", "stochastic", "matrices"),
}
_FIRST = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam")
"""The optimizers that are run on all three problems of vectors; of the others two say enough."""

_SKIPPED = {
    ("keras", "sgd", "default", "rosenbrock"),  # diverges at the default rate of 0.01
    ("keras", "rmsprop", "default", "rosenbrock"),  # amplifies rounding by more than 1e5
    ("keras", "adadelta", "default", "parabola"),  # hardly moves at the default rate of 0.001
    ("keras", "adadelta", "default", "stochastic"),
    ("keras", "adamax", "all", "parabola"),  # amplifies rounding by more than 1e5 where it has arrived
}


def _case(framework: str, optimizer: str, variant: str, problem: str, schedule: str) -> Case:
    """One case: the variant's arguments with the problem's rate and thresholds filled in."""
    table = {"torch": _TORCH, "keras": _KERAS}[framework][optimizer] | OF_A_TREE.get((framework, optimizer), {})
    kwargs: dict[str, Any] = {}
    clip = None
    alike = "stochastic" if problem == "tree" else problem
    if variant != "default":
        kwargs = {LR_NAME[framework]: _LRS[optimizer][alike], **table[variant]}
        kind = kwargs.pop("clip", None)
        clip = kind and (kind, _CLIPS[kind][alike])
        for name in _CLIP_OF_NAME.keys() & kwargs.keys():
            kwargs[name] = _CLIPS[_CLIP_OF_NAME[name]][alike]
        if (framework, problem) == ("torch", "tree"):
            kwargs["maximize"] = True
    return Case(framework, optimizer, kwargs, problem, schedule, clip=clip, variant=variant)


def _cases() -> Iterator[Case]:
    """Every variant of every optimizer on every problem with every schedule, less `_SKIPPED`."""
    for framework, tables in (("torch", _TORCH), ("keras", _KERAS)):
        for optimizer, table in tables.items():
            for variant in ("default", *table):
                default = (
                    ("parabola", "rosenbrock", "stochastic") if optimizer in _FIRST else ("parabola", "stochastic")
                )
                for problem in _PROBLEMS_OF.get((framework, optimizer), default):
                    if (framework, optimizer, variant, problem) in _SKIPPED:
                        continue
                    for schedule in SCHEDULES:
                        yield _case(framework, optimizer, variant, problem, schedule)
            if (framework, optimizer) != ("torch", "muon"):  # which takes matrices alone
                for variant in ([*table][-1], *OF_A_TREE.get((framework, optimizer), ())):
                    yield _case(framework, optimizer, variant, "tree", "decaying")


CASES: tuple[Case, ...] = tuple(_cases())


OPTAX: dict[str, tuple[dict[str, Any], ...]] = {
    "sgd": ({}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}),
    "sign_sgd": ({},),
    "signum": ({"beta": 0.8},),
    "lion": ({}, {"b1": 0.95, "b2": 0.8, "weight_decay": 0.3}, {"b1": 0.7, "b2": 0.0}),
    "adagrad": ({}, {"initial_accumulator_value": 0.0, "eps": 1e-3}),
    "rmsprop": (
        {},
        {"decay": 0.8, "eps": 1e-2, "eps_in_sqrt": False, "initial_scale": 0.5},
        {"decay": 0.8, "centered": True, "bias_correction": True, "eps": 1e-2},
        {"momentum": 0.9, "nesterov": True},
        {"centered": True, "eps": 1e-3, "initial_scale": 0.5},
        {"bias_correction": True, "momentum": 0.5, "initial_scale": 0.5},
        {"decay": 0.8, "centered": True, "bias_correction": True, "eps": 1e-2, "initial_scale": 0.5},
    ),
    "adam": ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3, "nesterov": True}),
    "adamw": ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.3, "nesterov": True}),
    "amsgrad": (
        {},
        {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "eps_root": 1e-3},
        {"b2": 0.9, "bias_correction_mu": False},
        {"b2": 0.9, "bias_correction_nu": False},
        {"b2": 0.9, "bias_correction_mu": False, "bias_correction_nu": False},
    ),
    "nadam": ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3}, {"nesterov": False}),
    "nadamw": ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.3}, {"nesterov": False}),
    "radam": ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3, "threshold": 6.0, "nesterov": True}),
    "adamax": ({}, {"b1": 0.8, "b2": 0.9, "eps": 1e-2}),
    "adamaxw": ({}, {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "weight_decay": 0.3}),
    "adabelief": (
        {},
        {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "eps_root": 1e-3},
        {"eps_root": 1e-3, "eps": 1e-2, "nesterov": True},
    ),
    "acprop": ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.1}),
    "adadelta": ({}, {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}),
    "yogi": ({}, {"b1": 0.8, "b2": 0.9, "eps": 1e-2}),
    "adafactor": (
        {},
        {"min_dim_size_to_factor": 2, "decay_rate": 0.0},
        {"min_dim_size_to_factor": 2, "decay_rate": 0.6, "momentum": 0.5, "dtype_momentum": None, "eps": 1e-3},
        {"min_dim_size_to_factor": 2, "factored": False, "decay_offset": -3},
        {
            "multiply_by_parameter_scale": False,
            "clipping_threshold": None,
            "weight_decay_rate": 0.01,
            "momentum": 0.5,
            "dtype_momentum": None,
        },
    ),
    "lamb": ({}, {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.3}),
    "lars": ({}, {"weight_decay": 0.1, "trust_coefficient": 0.1, "eps": 1e-2, "momentum": 0.8, "nesterov": True}),
    "fromage": ({}, {"min_norm": 3.0}),
    "optimistic_gradient_descent": ({}, {"alpha": 2.0, "beta": 0.8}),
    "optimistic_adam_v2": (
        {},
        {"alpha": 0.5, "beta": 0.8, "b1": 0.8, "b2": 0.9, "eps": 1e-2, "eps_root": 1e-3, "nesterov": False},
    ),
    "adan": ({}, {"b1": 0.9, "b2": 0.8, "b3": 0.7, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.1}),
    "ademamix": (
        {},
        {"b1": 0.8, "b2": 0.95, "b3": 0.95, "alpha": 3.0, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.1},
    ),
    "simplified_ademamix": (
        {},
        {"b1": 0.9, "b2": 0.95, "alpha": 2.0, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.1},
    ),
    "adopt": (
        {},
        {"b1": 0.8, "b2": 0.9, "nesterov": True, "clip_value_fn": lambda count: (count + 1.0) ** 0.1},
        {"b2": 0.9, "use_clipping": False, "eps": 0.1},
    ),
    "novograd": ({}, {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "eps_root": 1e-3, "weight_decay": 0.1}),
    "sm3": ({}, {"momentum": 0.8}),
    "madgrad": ({}, {"momentum": 0.5, "eps": 1e-2, "weight_decay": 0.1}),
    "rprop": ({}, {"eta_minus": 0.3, "eta_plus": 1.5, "min_step_size": 0.01, "max_step_size": 0.1}),
    "cocob": ({}, {"alpha": 2.0, "eps": 1e-2, "weight_decay": 0.1}),
    "dog": (
        {},
        {"init_step": ("distance", 30.0), "eps": 1e-2, "weight_decay": 0.1},
        {"init_step": ("learning_rate", 2.0), "eps": 1e-2, "weight_decay": 0.1},
    ),
    "dowg": ({}, {"init_estim_sq_dist": 300.0, "eps": 1e-2, "weight_decay": 0.1}),
    "prodigy": (
        {},
        {"estim_lr0": 0.5, "estim_lr_coef": 3.0, "eps": 1e-2, "weight_decay": 0.1},
        {"estim_lr0": 0.05, "betas": (0.8, 0.9), "beta3": 0.8, "estim_lr_coef": 9.0, "safeguard_warmup": True},
    ),
    "dadapt_adamw": (
        {},
        {"estim_lr0": 0.5, "betas": (0.8, 0.9), "eps": 1e-2},
        {"estim_lr0": 0.05, "weight_decay": 0.3},
    ),
    "mechanize": ({"s_init": 1.0}, {"weight_decay": 0.5, "eps": 1e-2, "s_init": 0.1, "num_betas": 3}),
    "momo": (
        {},
        {"beta": 0.8, "lower_bound": -40.0, "weight_decay": 3.0},
        {"lower_bound": -400.0, "weight_decay": 0.5, "adapt_lower_bound": True},
    ),
    "momo_adam": (
        {},
        {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "lower_bound": -25.0, "weight_decay": 3.0},
        {"lower_bound": -400.0, "weight_decay": 0.5, "adapt_lower_bound": True},
    ),
    "polyak_sgd": ({}, {"max_learning_rate": 0.1, "f_min": -50.0, "eps": 0.1, "variant": "sps+"}),
    "schedule_free_sgd": ({}, {"b1": 0.8, "weight_decay": 0.1, "weight_lr_power": 1.0}),
    "schedule_free_adamw": ({}, {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "weight_decay": 0.1, "weight_lr_power": 0.0}),
    "muon": (
        {},
        {"nesterov": False, "ns_coeffs": "dion", "beta": 0.8, "eps": 1e-2, "consistent_rms": 0.3, "adaptive": True},
        {
            **{"weight_decay": 0.1, "adam_b1": 0.8, "adam_b2": 0.9, "adam_eps_root": 1e-3, "adam_weight_decay": 0.2},
            **{"adam_learning_rate": 0.02, "preconditioning": "spectral", "eps": 1e-2},
        },
        {"preconditioning": "schatten", "ns_steps": 2},
        {"preconditioning": "aol", "adaptive": True, "ns_steps": 2},
    ),
    "galore": ({}, {"rank": 2, "scale": 0.25, "weight_decay": 0.1}),
}
"""The arguments, beside the learning rate, that each dialect of optax is run with."""

NEED_THE_LOSS = ("momo", "momo_adam", "polyak_sgd")
"""Those of them that read the value of the loss."""
