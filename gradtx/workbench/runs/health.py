"""Gradient health of a training: monitors in the optimizer, and what they saw at its first step and at its last."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

import gradtx
from gradtx import Chain, Diagnosis, MonitorState, diagnose, metrics
from gradtx.workbench.networks import Network
from gradtx.workbench.training import Data, train

__all__ = ["Health", "monitors", "watch", "watched"]

_CLIPS = (gradtx.clip_by_norm, gradtx.clip_by_value)  # clip_by_global_norm is a clip_by_norm


class Health(NamedTuple):
    """Metrics of a monitor, by name, at two moments of a training.

    Attributes:
        first: after the first step, which shows what the initial weights do.
        last: after the last step.
    """

    first: Mapping[str, float]
    last: Mapping[str, float]

    @classmethod
    def of(cls, logged: Mapping[str, MonitorState]) -> Health:
        """The first step and the last of a training that logged its ``monitors``."""
        return cls(*(_metrics(jax.tree.map(lambda x, i=i: x[i], logged)) for i in (0, -1)))

    def diagnoses(self) -> tuple[Diagnosis, Diagnosis]:
        """The problems at either moment."""
        return diagnose(self.first), diagnose(self.last)


def watch(network: Network, tx: Chain, data: Data, epochs: int, batch_size: int, seed: int) -> Health:
    """The health of a training, which is run for it: monitors take long to compile, and few trainings need them."""
    history = train(network, watched(tx), data, epochs=epochs, batch_size=batch_size, seed=seed, log=monitors)
    return Health.of(history.logged)


def watched(tx: Chain) -> Chain:
    """The optimizer with a monitor at its end and, if it clips first, another behind the clips, to count them.

    A rule that must be the last of its chain is sealed, which makes it the last of a chain of its own.
    """
    clips = list(itertools.takewhile(lambda rule: isinstance(rule, _CLIPS), tx.rules))
    behind = [gradtx.monitor(name="clipping")] if clips else []
    others = [gradtx.seal(rule) if rule.last else rule for rule in tx.rules[len(clips) :]]
    return gradtx.chain(*clips, *behind, *others, gradtx.monitor(name="health"))


def monitors(state: Any) -> dict[str, MonitorState]:
    """The numbers that the monitors of a ``watched`` optimizer hold, to be logged in each step."""
    return {name: state.slots[name]["state"] for name in ("health", "clipping") if name in state.slots}


def _metrics(states: Mapping[str, MonitorState]) -> dict[str, float]:
    """The metrics of the monitor at the end; the share of clipped steps from behind the clips."""
    seen = metrics(states["health"])
    if "clipping" in states:
        seen |= {name: value for name, value in metrics(states["clipping"]).items() if name.startswith("clipped")}
    return {name: value.item() for name, value in jax.device_get(seen).items()}
