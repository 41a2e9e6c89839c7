"""The library reproduces literal vectors of onnxruntime, ONNX and Keras, to 1e-5."""

import jax.numpy as jnp
import literals
import numpy as np
import onnx_adapter
import pytest

import jaxlstm as jl

OPTIMISED = True

ORT = literals.cases("ort_lstm_cases")
ONNX = literals.cases("onnx_node_lstm")
KERAS = literals.cases("keras_lstm_golden")

ROW_OF_ANOTHER_TEST = (
    "upstream literal copied from the case with other activations; "
    "its own tolerance of 1e-3 hides that"
)


def ort_id(case) -> str:
    """Return the upstream name, with the erratum if the literal is wrong."""
    name = case["id"].removeprefix("ort/").removesuffix("/1")
    if "erratum" not in case:
        return name
    where = "".join(f"[{n}]" for n in case["erratum"]["index"])
    return f"{name}, whose {case['erratum']['output']}{where} is wrong upstream"


def close(got, expected, note: str = "") -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=note)


@pytest.mark.skipif(not ORT, reason=literals.ABSENT)
@pytest.mark.parametrize("case", ORT, ids=ort_id)
def test_onnxruntime(case):
    """Two upstream literals are wrong; the corrected numbers are used."""
    inputs, expected = map(literals.arrays, (case["inputs"], case["expected"]))
    got = onnx_adapter.run(case["attributes"], inputs)
    if "erratum" in case:
        wrong = case["erratum"]
        where = (wrong["output"], tuple(wrong["index"]))
        right = wrong["value_by_onnxruntime_1.31.1_and_float64_numpy"]
        literal = expected[where[0]][where[1]]
        assert abs(literal - right) > 5e-5, ROW_OF_ANOTHER_TEST
        expected[where[0]][where[1]] = right
    for name, values in expected.items():
        close(getattr(got, name), values, name)


@pytest.mark.skipif(not ONNX, reason=literals.ABSENT)
@pytest.mark.parametrize("case", ONNX, ids=lambda case: case["test"])
def test_onnx(case):
    """The reference evaluator uses equal weights, so gate order is not tested."""
    inputs, expected = map(literals.arrays, (case["inputs"], case["expected"]))
    got = onnx_adapter.run(case["attributes"], inputs)
    for name, values in expected.items():
        close(getattr(got, name), values, name)


# --- Keras: batch first, constant weights, one output or all --------------------------


def keras_id(case) -> str:
    constants = "initializer", "units"
    options = [
        f"{name}={value}"
        for name, value in case["layer"].items()
        if not name.endswith(constants)
    ]
    return ", ".join([case["test"], *options, str(case["index"])])


def keras_params(layer: dict, features: int) -> jl.LSTMParams:
    """Return constant parameters; with unit_forget_bias the forget bias is 1."""
    units, b = layer["units"], np.zeros((4, layer["units"]), np.float32)
    if layer.get("use_bias", True):
        b[:] = layer["bias_initializer"]
        b[1] = 1.0 if layer.get("unit_forget_bias", True) else b[1]
    w_x = np.full((features, 4, units), layer["kernel_initializer"], np.float32)
    w_h = np.full((units, 4, units), layer["recurrent_initializer"], np.float32)
    return jl.LSTMParams(*map(jnp.asarray, (w_x, w_h, b)))


def keras_outputs(layer: dict, params, call: dict, state):
    """Return the last state, and the last output or all outputs."""
    xs = np.array(call["x"], np.float32).swapaxes(0, 1)
    if "initial_state" in call:
        state = jl.LSTMState(*np.array(call["initial_state"], np.float32))
    mask = np.array(call["mask"]).T if "mask" in call else None
    reverse = layer.get("go_backwards", False)
    state, hs = jl.unroll(jl.lstm(), params, xs, state, mask=mask, reverse=reverse)
    if not layer.get("return_sequences", False):
        return state, state.h
    if not layer.get("zero_output_for_mask", False):
        hs = held(hs, mask)
    return state, hs.swapaxes(0, 1)


def held(hs, mask):
    """Repeat the last output at masked steps, as Keras does; ours is zero."""
    out = np.array(hs)
    for t in range(1, len(out)):
        out[t] = np.where(mask[t, :, None], out[t], out[t - 1])
    return out


@pytest.mark.skipif(not KERAS, reason=literals.ABSENT)
@pytest.mark.parametrize("case", KERAS, ids=keras_id)
def test_keras(case):
    layer, state = case["layer"], None
    calls = [call for call in case["calls"] if "x" in call]
    params = keras_params(layer, len(calls[0]["x"][0][0]))
    for call in case["calls"]:
        if "x" not in call:
            state = None
            continue
        begin = state if layer.get("stateful", False) else None
        state, outputs = keras_outputs(layer, params, call, begin)
    index = case["index"]
    close(outputs if index is None else outputs[index], case["expected"])
