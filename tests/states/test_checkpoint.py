"""States in files and back, bit for bit: npz, safetensors, old formats, and runs that are killed."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from catalog import ALL
from fixtures.states import FORMAT_1, go_on

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIXTURES = Path(__file__).parents[1] / "fixtures"
KILLS = int(os.environ.get("KILLS", "3"))  # KILLS=20 pytest -n0 -m "" -k killed tests/states/test_checkpoint.py


def through_npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    return np.load(file)  # an NpzFile, which reads each array when asked


def through_safetensors(arrays):
    return safetensors.numpy.load(safetensors.numpy.save(arrays))


def same(one, other):
    """Structure, dtypes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert isinstance(b, jax.Array) and (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def scrambled(state):
    """The same state with other numbers, inf and NaN too: what a training could leave there."""
    rng = np.random.default_rng(0)

    def other(keys, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        if "hyperparams" in jax.tree_util.keystr(keys):
            return leaf / 2
        values = np.abs(rng.normal(size=leaf.shape))
        values.flat[-1:] = rng.choice([np.nan, np.inf, -0.0, 1e-40, 0.3]) if leaf.ndim else 0.3
        return jnp.asarray(values * (1 + 1j), leaf.dtype) if leaf.dtype.kind == "c" else jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(other, state)


PARAMS = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array(0.5)}


@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", ALL)
def test_everything_in_the_catalog_comes_back(name):
    state = scrambled(ALL[name].init(PARAMS))
    arrays = gx.state_dict(state)
    assert all(type(array) is np.ndarray and array.dtype.kind in "biuf" for array in arrays.values())
    for through in (through_npz, through_safetensors):
        same(state, gx.load_state_dict(ALL[name], PARAMS, through(arrays)))


KINDS = {
    "float64": (gx.adam(0.1), np.array([1.0, np.pi])),
    "float16": (gx.adam(0.1), np.array([1.0, np.pi], np.float16)),
    "bfloat16": (gx.chain(gx.adam(0.1), state_dtype="bfloat16"), np.array([1.0, np.pi], np.float32)),
    "root8": (gx.chain(gx.adam(0.1), state_dtype="root8"), np.ones((16, 256), np.float32)),
    "complex64": (gx.amsgrad(0.1), np.array([1 + 2j, np.pi], np.complex64)),
    "complex128": (gx.amsgrad(0.1), np.array(1 + 2j)),
    "empty": (gx.amsgrad(0.1), {"real": np.zeros((0, 3)), "complex": np.zeros((2, 0), np.complex64)}),
    "none": (gx.adam(0.1), {}),
    "odd names": (
        gx.adam(0.1),
        {"w": {"npy": 1.0}, "w.npy": 2.0, "a/b": {"c": 3.0}, "a": {"b/c": 4.0}, "é:%2F\\": 5.0},
    ),
    "keys": (gx.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), gx.sgd(0.1)), np.zeros(2)),
    "other keys": (gx.chain(optax.add_noise(0.1, 0.5, jax.random.key(3, impl="rbg"))), np.zeros(2)),
    "optax": (optax.chain(optax.clip(1.0), optax.adam(0.1)), {"w": np.zeros(2)}),
    "a chain in a rule": (gx.dialects.optax.dadapt_adamw(weight_decay=0.1), {"w": np.ones(2)}),
    "nested": (gx.switch(2, gx.accumulate(gx.adam(0.1), 2), gx.sgd(0.1, 0.9), carry="reset"), {"w": np.zeros(2)}),
}


@pytest.mark.parametrize("through", [through_npz, through_safetensors])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_number_and_name(name, through):
    with jax.enable_x64(name in ("float64", "complex128", "empty")):
        tx, params = KINDS[name]
        params = jax.tree.map(jnp.asarray, params)
        state = tx.init(params) if name == "float8" else scrambled(tx.init(params))
        arrays = gx.state_dict(state)
        assert all(array.dtype.kind in "biuf" for array in arrays.values())
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
        same(state, gx.load_state_dict(tx, shapes, through(arrays)))


def test_copies():
    """A saved state does not change when the state is donated."""
    tx = gx.sgd(0.1, momentum=0.9)
    params, state = jnp.ones(1000), tx.init(jnp.ones(1000))
    arrays = gx.state_dict(state)
    params, state = jax.jit(lambda p, s: gx.step(tx, p, p, s), donate_argnums=(0, 1))(params, state)
    assert not arrays["state/slots/trace/b"].any() and arrays["state/slots/trace/b"].flags.owndata


@pytest.mark.parametrize("name", FORMAT_1)
def test_the_first_format_is_read_for_ever(name):
    """And goes on to the numbers that the version that wrote it went on to."""
    tx, params = FORMAT_1[name]
    with np.load(FIXTURES / "state_format_1.npz") as file:
        arrays = {key.removeprefix(f"{name}|"): file[key] for key in file.files if key.startswith(f"{name}|")}
    before, after = (
        jax.tree.unflatten(
            jax.tree.structure(params),
            [arrays.pop(f"{when}|{i}") for i in range(len(jax.tree.leaves(params)))],
        )
        for when in ("before", "after")
    )
    assert arrays["format"] == 1
    params, _ = go_on(tx, jax.tree.map(jnp.asarray, before), gx.load_state_dict(tx, params, arrays))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), params, after)


def test_packed_states_are_stored_leaf_by_leaf():
    """The same entries as those of the chain, so that names and shapes are compared; and files of flat arrays load."""
    packed, params = gx.packed(gx.adam(0.1), 10), PARAMS | {"large": jnp.arange(12.0)}
    _, state = gx.step(packed, params, params, packed.init(params))
    plain = gx.unpack_state(packed, state, params)
    arrays = gx.state_dict(state)
    assert {k: v.tobytes() for k, v in arrays.items()} == {k: v.tobytes() for k, v in gx.state_dict(plain).items()}
    same(state, gx.load_state_dict(packed, params, through_npz(arrays)))
    same(plain, gx.load_state_dict(packed.tx, params, arrays))
    flat = {"format": np.int32(1)} | {
        "state/" + jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    assert "state/slots/momentum/m/flat/0" in flat and "state/slots/momentum/m/leaves/large" in flat
    same(state, gx.load_state_dict(packed, params, flat))
    with pytest.raises(
        ValueError, match=r"(?s)missing: state/slots/momentum/m/v\n.*not in this state: state/slots/mom"
    ):
        gx.load_state_dict(packed, {"v" if k == "w" else k: p for k, p in params.items()}, arrays)
    with pytest.raises(ValueError, match=r"shape: state/slots/momentum/m/w has \(1, 2\), and must have \(2, 1\)"):
        gx.load_state_dict(packed, params | {"w": params["w"].T}, arrays)


class TestErrors:
    tx = gx.chain(gx.adam(0.1), state_dtype="bfloat16")

    def arrays(self):
        return gx.state_dict(self.tx.init(PARAMS))

    def test_all_that_is_wrong_is_named_at_once(self):
        arrays = self.arrays()
        del arrays["state/slots/momentum/weight"]
        arrays["state/slots/rms/s/b:bfloat16"] = np.zeros(3, np.uint16)
        arrays["state/count"] = np.zeros((), np.float32)
        arrays["state/hyperparams/rms/dekay"] = np.zeros(())
        arrays["state/slots/rms/s/w"] = np.zeros((1, 2), np.float32)
        del arrays["state/slots/rms/s/w:bfloat16"]
        with pytest.raises(ValueError, match="not the state of this transformation") as error:
            gx.load_state_dict(self.tx, PARAMS, arrays)
        assert str(error.value).splitlines()[1:] == [
            "  dtype: state/count is float32, and must be int32",
            "  dtype: state/slots/rms/s/w is float32, and must be bfloat16",
            "  missing: state/slots/momentum/weight",
            "  not in this state: state/hyperparams/rms/dekay",
            "  shape: state/slots/rms/s/b has (3,), and must have ()",
        ]

    def test_shapes_of_complex_leaves_are_named_as_they_are(self):
        tx = gx.momentum(0.9)
        arrays = gx.state_dict(tx.init(jnp.zeros(3, complex)))
        with pytest.raises(ValueError, match=re.escape("state/slots/momentum/m has (3,), and must have (2,)")):
            gx.load_state_dict(tx, jnp.zeros(2, complex), arrays)

    @pytest.mark.parametrize("number", [np.array(2), np.array(0), np.array(1.0), np.array([1]), np.array("1")])
    def test_unknown_formats(self, number):
        with pytest.raises(ValueError, match=r"format .* is unknown; this version of gradtx reads 1 to 1\. A newer"):
            gx.load_state_dict(self.tx, PARAMS, self.arrays() | {"format": number})

    def test_no_format(self):
        with pytest.raises(ValueError, match="there is no entry 'format'"):
            gx.load_state_dict(self.tx, PARAMS, {"w": np.zeros(2)})

    def test_nothing_is_unpickled(self):
        """An npz with objects is refused by numpy, and an object that is no number by us."""
        arrays = self.arrays() | {"state/count": np.array({"a": 1}, object)}
        with pytest.raises(ValueError, match="allow_pickle=False"):
            gx.load_state_dict(self.tx, PARAMS, through_npz(arrays))
        with pytest.raises(ValueError, match="state/count is object, and must be int32"):
            gx.load_state_dict(self.tx, PARAMS, arrays)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("count", np.int32(-1), "count must be at least 0"),
            ("hyperparams/rms/decay", np.float32(5), "decay must be at least 0 and less than 1, found 5"),
            ("hyperparams/scale_by_learning_rate/learning_rate", np.float32("nan"), "learning_rate must be a number"),
            ("slots/momentum/weight", np.float32(-3), "must not be negative"),
            ("slots/rms/s/w", np.array([[1, -1]], np.float32), "must not be negative"),
        ],
    )
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_values_that_no_run_leaves_are_named(self, path, value, message, wrapped):
        tx: Any = gx.adam(0.1)
        at = "state"
        if wrapped:
            tx = gx.accumulate(gx.partition({"^": gx.chain(gx.skip_nonfinite(gx.packed(tx)))}), 2)
            at = "state/inner/parts/^/slots/skip_nonfinite/state/inner"
        arrays = gx.state_dict(tx.init(PARAMS))
        key = f"{at}/{path}"
        assert key in arrays
        with pytest.raises(ValueError, match=re.escape(f"impossible: {key}")) as error:
            gx.load_state_dict(tx, PARAMS, arrays | {key: value})
        assert message.split(" must")[-1] in str(error.value)
        nan = {"state/slots/momentum/m/b": np.float32("nan")} if not wrapped else {}  # a training may leave
        gx.load_state_dict(tx, PARAMS, arrays | nan)

    def test_in_all_optimizers(self):
        """Squares, step sizes and weights are not negative, and what a decay lost by rounding is little."""
        for tx, key in (
            (gx.yogi(0.1), "yogi_rms/s/b"),
            (gx.adamax(0.1), "infinity/s/b"),
            (gx.adabelief(0.1), "belief_rms/s/b"),
            (gx.adopt(0.1), "lag_v/s/b"),
            (gx.adadelta(0.1), "scale_by_update_rms/x/b"),
            (gx.radam(0.1), "rectified_precondition/age"),
            (gx.rprop(0.1), "resilient_step/step/b"),
            (gx.schedule_free_sgd(0.1), "average_iterates/largest"),
            (gx.adan(0.1), "add_difference/weight"),
            (gx.ademamix(0.1), "add_momentum/weight"),
            (gx.adafactor(0.1), "scale_by_factored_rms/state/s/b"),
            (gx.soap(0.1), "scale_by_eigenbasis_rms/state/s/b"),
            (gx.in_units_of_distance(gx.adam(1.0)), "in_units_of_distance/state/inner/slots/rms/s/b"),
            (gx.scale_by_distance(), "scale_by_distance/state/largest"),
            (gx.chain(gx.sgd(0.1), gx.monitor()), "monitor/state/gradient_norm/b"),
            (gx.chain(gx.sgd(0.1), gx.monitor(2)), "monitor/state/wait"),
        ):
            arrays = gx.state_dict(tx.init(PARAMS))
            gx.load_state_dict(tx, PARAMS, arrays)
            with pytest.raises(ValueError, match=f"impossible: state/slots/{key} has -1"):
                gx.load_state_dict(
                    tx, PARAMS, arrays | {f"state/slots/{key}": np.full_like(arrays[f"state/slots/{key}"], -1)}
                )
        for tx in (gx.momentum(0.9), gx.packed(gx.momentum(0.9))):
            arrays, key = gx.state_dict(tx.init(PARAMS)), "state/hyperparams/momentum/decay_residual"
            for value in (5, -1e-6, np.nan):
                with pytest.raises(ValueError, match=f"impossible: {key} is .*, and rounding loses less"):
                    gx.load_state_dict(tx, PARAMS, arrays | {key: np.float32(value)})
        with pytest.raises(ValueError, match="3 is none"):
            gx.load_state_dict(tx, PARAMS, arrays | {3: np.ones(3)})  # pyright: ignore[reportArgumentType] - the mistake

    def test_counts_and_scales_of_wrappers(self):
        for tx, changed in (
            (gx.loss_scale(gx.sgd(0.1)), {"state/scale": np.float32(-2)}),
            (gx.loss_scale(gx.sgd(0.1)), {"state/inner/skipped": np.int32(-1)}),
            (gx.switch(5, gx.sgd(0.1, 0.9), gx.sgd(0.1, 0.9)), {"state/switched_at": np.int32(-2)}),
            (optax.adam(0.1), {"state/0/count": np.int32(-7)}),
            (gx.adam(0.1), {"state/slots/momentum/weight": np.float32("nan")}),
        ):
            arrays = gx.state_dict(tx.init(PARAMS))
            with pytest.raises(ValueError, match=f"impossible: {next(iter(changed))}"):
                gx.load_state_dict(tx, PARAMS, arrays | changed)

    def test_two_entries_for_one_path(self):
        arrays = gx.state_dict(gx.adam(0.1).init(PARAMS))
        for twin in ("state/slots/momentum/m/b:", "state/slots/momentum/m/b:float32"):
            with pytest.raises(ValueError, match=r"there 2 times: state/slots/momentum/m/b"):
                gx.load_state_dict(gx.adam(0.1), PARAMS, arrays | {twin: np.float32(1)})
        only = arrays | {"state/count:": arrays["state/count"]}
        del only["state/count"]
        with pytest.raises(ValueError, match="not in this state: state/count:"):
            gx.load_state_dict(gx.adam(0.1), PARAMS, only)

    def test_names_and_shapes_come_before_what_is_large(self, monkeypatch):
        """Neither a superfluous entry nor one of a wrong shape is unpacked, of an npz of a few kilobytes."""
        unpacked = []
        read = np.lib.npyio.NpzFile.__getitem__
        monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda f, k: unpacked.append(k) or read(f, k))
        tx, params = gx.momentum(0.9), jnp.zeros(3)
        for large in ({"state/large": np.zeros(2**22)}, {"state/slots/momentum/m": np.zeros(2**22, np.float32)}):
            file = io.BytesIO()
            entries: dict[str, Any] = gx.state_dict(tx.init(params)) | large
            np.savez_compressed(file, **entries)
            file.seek(0)
            with pytest.raises(ValueError, match=r"not in this state: state/large|shape: \S+ has \(4194304,\)"):
                gx.load_state_dict(tx, params, np.load(file))
            assert next(iter(large)) not in unpacked

    def test_what_cannot_be_saved(self):
        with pytest.raises(TypeError, match="state/0 is no array of numbers"):
            gx.state_dict(("text",))

        class Twin(NamedTuple):
            a: int

        jax.tree_util.register_pytree_node(Node, lambda node: ((node.a, node.b), None), lambda _, ab: Node(*ab))
        jax.tree_util.register_pytree_with_keys(
            Same, lambda node: (((_KEY, node.a), (_KEY, node.b)), None), lambda _, ab: Same(*ab)
        )
        assert set(gx.state_dict(Twin(Node(1, 2)))) == {"format", "state/a/0", "state/a/1"}  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="two leaves of this state have the same path"):
            gx.state_dict(Same(1, 2))


_KEY = jax.tree_util.DictKey("same")


def test_schedules_in_plain_python_are_not_asked_where_nothing_but_types_is():
    """Outside of jit they may be; loading and describing trace."""
    schedule = lambda count: 0.9 if count > 3 else 0.5  # noqa: E731 - it has no other name
    params, plain = {"a": jnp.ones(3)}, gx.chain(gx.momentum(schedule))
    inside = gx.chain(gx.in_units_of_distance(plain), gx.scale(-1.0))
    for tx in (plain, inside, gx.partition({"a": plain}), gx.skip_nonfinite(inside), gx.accumulate(plain, 2)):
        state = tx.init(params)
        same(state, gx.load_state_dict(tx, params, gx.state_dict(state)))
        assert "momentum" in str(gx.describe(tx, params))


class Node:
    def __init__(self, a, b):
        self.a, self.b = a, b


class Same(Node):
    pass


@pytest.mark.exhaustive  # .ci/run runs it
def test_a_run_that_is_killed_at_any_moment_ends_as_an_unbroken_one(tmp_path):
    """SIGKILL at random moments, while Orbax writes too: the last state saved leads to the same bits."""
    steps = 40 + 20 * KILLS
    rng = random.Random(KILLS)

    def waiting(folder: Path) -> Any:
        """A process that has imported everything, or soon will have, and starts at a line."""
        command = [sys.executable, str(FIXTURES / "training.py"), str(folder), str(steps)]
        return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, text=True)

    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    run, processes = waiting(unbroken), [waiting(broken)]  # one of them ahead
    assert run.communicate("go\n")[0].splitlines()[-1] == str(steps)
    starts, killed = [], 0
    for kills_left in reversed(range(KILLS + 1)):
        run = processes.pop()
        if kills_left:
            processes.append(waiting(broken))
        run.stdin.write("go\n")
        run.stdin.flush()
        starts.append(int(run.stdout.readline().split()[1]))
        if kills_left:
            for _ in range(rng.randrange(1, 25)):
                run.stdout.readline()
            time.sleep(rng.uniform(0, 0.01))
            killed += run.poll() is None
            run.send_signal(signal.SIGKILL)
        run.communicate()
    assert run.returncode == 0 and killed > KILLS / 2  # on a busy machine one may be done before
    assert starts == sorted(starts) and starts[-1] > 0  # they went on from where they had saved
    with np.load(broken / "params.npz") as ours, np.load(unbroken / "params.npz") as theirs:
        assert set(ours.files) == set(theirs.files)
        for key in ours.files:
            assert ours[key].tobytes() == theirs[key].tobytes(), key
