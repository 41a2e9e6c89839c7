"""Tests that optimizers built from a config compute what Optax computes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlstm.lab import checks, config
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config import ConfigError, optax_names, rates
from jaxlstm.lab.config import optimizer as chain_checks
from jaxlstm.lab.training import optimizer as optimizers

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.1, 0.2])}
GRADIENTS = {"w": jnp.asarray([[0.3, 0.1], [-5.0, 2.0]]), "b": jnp.asarray([1.0, 0.0])}


def after(transformation: optax.GradientTransformation, steps: int = 5):
    params, state = PARAMS, transformation.init(PARAMS)
    for _ in range(steps):
        updates, state = transformation.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_same(chain, expected: optax.GradientTransformation) -> None:
    built = optimizers.build(config.load({"optimizer": chain}).optimizer)
    ours = after(built)
    with jax.numpy_dtype_promotion("standard"):
        theirs = after(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_chain_equals_optax_chain():
    arguments = {
        "init_value": 0.0,
        "peak_value": 4e-3,
        "warmup_steps": 50,
        "decay_steps": 900,
        "end_value": 4e-5,
    }
    rate = {"warmup_cosine_decay_schedule": arguments}
    adamw = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, 4e-3, 50, 900, 4e-5), weight_decay=0.0
    )
    assert_same(
        [
            {"clip_by_global_norm": {"max_norm": 1.0}},
            {"adamw": {"learning_rate": rate, "weight_decay": 0.0}},
        ],
        optax.chain(optax.clip_by_global_norm(1.0), adamw),
    )


def test_schedules_and_transformations_nest():
    joined = {
        "join_schedules": {
            "schedules": [
                {"constant_schedule": {"value": 0.1}},
                {
                    "piecewise_constant_schedule": {
                        "init_value": 0.2,
                        "boundaries_and_scales": {1: 0.5},
                    }
                },
            ],
            "boundaries": [2],
        }
    }
    inner = {"sgd": {"learning_rate": joined, "momentum": 0.9}}
    schedule = optax.join_schedules(
        [
            optax.constant_schedule(0.1),
            optax.piecewise_constant_schedule(0.2, {1: 0.5}),
        ],
        [2],
    )
    assert_same(
        [
            {"zero_nans": None},
            {"apply_if_finite": {"inner": inner, "max_consecutive_errors": 2}},
        ],
        optax.chain(
            optax.zero_nans(),
            optax.apply_if_finite(optax.sgd(schedule, momentum=0.9), 2),
        ),
    )


def test_list_dtype_and_null_arguments():
    chain = [
        {"adaptive_grad_clip": {"clipping": 0.01, "axis": [0]}},
        {"adamw": {"learning_rate": 1, "mu_dtype": "bfloat16", "mask": None}},
    ]
    expected = optax.chain(
        optax.adaptive_grad_clip(0.01, axis=(0,)),
        optax.adamw(1, mu_dtype=jnp.bfloat16),
    )
    assert_same(chain, expected)


REFUSED = {
    "an unknown name": (
        [{"adm": {"learning_rate": 1}}],
        "optimizer[0].adm: optax has no transformation with this name that a config "
        'can use; did you mean "adam"?',
    ),
    "an unknown argument": (
        [{"clip": {"max_delta": 1}}, {"adamw": {"learning_rte": 1}}],
        "optimizer[1].adamw.learning_rte: unknown argument; did "
        'you mean "learning_rate"?',
    ),
    "a missing argument": (
        [{"clip": {}}],
        'optimizer[0].clip: required argument is missing: "max_delta"',
    ),
    "a decay over zero steps": (
        [
            {
                "sgd": {
                    "learning_rate": {
                        "cosine_decay_schedule": {"init_value": 1, "decay_steps": 0}
                    }
                }
            }
        ],
        "optimizer[0].sgd.learning_rate.cosine_decay_schedule: got arguments that "
        "Optax rejects, expected valid ones; Optax reports: The "
        "cosine_decay_schedule requires positive decay_steps, got decay_steps=0.",
    ),
    "an unknown dtype": (
        [{"adam": {"learning_rate": 1, "mu_dtype": "bf16"}}],
        "optimizer[0].adam: ",
    ),
    "a function that is no transformation": (
        [{"apply_updates": {}}],
        "optimizer[0].apply_updates: optax has no transformation",
    ),
    "a function of another module": (
        [{"tree_utils.tree_sum": {}}],
        "optimizer[0].tree_utils.tree_sum: optax has no transformation",
    ),
    "a transformation that needs the loss": (
        [{"polyak_sgd": {}}],
        "optimizer[0].polyak_sgd: got an update that fails, expected one that needs "
        "only gradients and parameters; choose another transformation or correct its "
        "arguments; Optax reports: ",
    ),
    "no learning rate": (
        [{"adam": {"learning_rate": None}}],
        "optimizer[0].adam.learning_rate: got null, expected a finite number or a "
        "schedule",
    ),
    "a learning rate that climbs": (
        [{"sgd": {"learning_rate": -0.1}}],
        "optimizer[0].sgd.learning_rate: got -0.1, expected 0 or more",
    ),
    "a schedule that climbs": (
        [{"sgd": {"learning_rate": {"constant_schedule": {"value": -0.1}}}}],
        "optimizer[0].sgd.learning_rate.constant_schedule.value: got -0.1, expected 0",
    ),
    "a decay above 1": (
        [{"adam": {"learning_rate": 0.1, "b1": 2.0}}],
        "optimizer[0].adam.b1: got 2.0, expected 0 or more and less than 1",
    ),
    "a decay of 1": (
        [{"sgd": {"learning_rate": 0.1, "momentum": 1.0}}],
        "optimizer[0].sgd.momentum: got 1.0, expected 0 or more and less than 1",
    ),
    "a negative epsilon": (
        [{"adam": {"learning_rate": 0.1, "eps": -1}}],
        "optimizer[0].adam.eps: got -1, expected 0 or more",
    ),
    "a decay of a schedule that changes the sign": (
        [
            {
                "sgd": {
                    "learning_rate": {
                        "exponential_decay": {
                            "init_value": 0.1,
                            "transition_steps": 9,
                            "decay_rate": -0.5,
                        }
                    }
                }
            }
        ],
        "optimizer[0].sgd.learning_rate.exponential_decay.decay_rate: got -0.5, "
        "expected 0 or more",
    ),
    "a negative variance": (
        [{"add_noise": {"eta": -1, "gamma": 0.5, "key": 0}}],
        "optimizer[0].add_noise.eta: got -1, expected 0 or more",
    ),
    "a norm of 0": (
        [{"clip_by_global_norm": {"max_norm": 0}}],
        "optimizer[0].clip_by_global_norm.max_norm: got 0, expected more than 0",
    ),
    "a mapping": ({}, "optimizer: got an empty mapping, expected a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_message_of_an_invalid_optimizer(case):
    chain, message = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        optimizers.build(chain)
    [line] = caught.value.problems
    assert line.startswith(message)


def test_all_errors_are_reported_at_once():
    decay = {"cosine_decay_schedule": {"init_value": 1, "decay_steps": 0}}
    with pytest.raises(ConfigError) as caught:
        optimizers.build([{"sgd": {"learning_rate": decay}}, {"polyak_sgd": {}}])
    assert len(caught.value.problems) == 2


def test_signatures_equal_those_of_optax():
    """Compare the signatures read from source with those of the functions."""
    listed = optax_names.names("transformation") + optax_names.names("schedule")
    assert len(listed) > 60
    for name in listed:
        made = optax_names.factory(name)
        function = getattr(optax, name, None) or getattr(optax.schedules, name)
        parameters = inspect.signature(function).parameters
        assert made is not None
        assert list(made.arguments) == list(parameters)
        assert made.required == {
            key for key, each in parameters.items() if each.default is each.empty
        }


def usable() -> list[str]:
    """Return the transformations that require at most a learning rate."""
    found = [(n, optax_names.factory(n)) for n in optax_names.names("transformation")]
    return [n for n, made in found if made and made.required <= {"learning_rate"}]


NEED_MORE = {
    "lbfgs": "needs only gradients and parameters",
    "polyak_sgd": "needs only gradients and parameters",
    "scale_by_polyak": "needs only gradients and parameters",
    "noisy_sgd": "key",
    "optimistic_adam": "deprecated",
}


@pytest.mark.parametrize("name", usable())
def test_every_plain_transformation_can_be_built(name):
    made = optax_names.factory(name)
    arguments = {"learning_rate": 0.1} if made and made.required else {}
    if name in NEED_MORE:
        with pytest.raises(ConfigError, match=NEED_MORE[name]):
            optimizers.build([{name: arguments}])
    else:
        after(optimizers.build([{name: arguments}]), steps=1)


@pytest.mark.parametrize("name", [n for n in usable() if n not in NEED_MORE])
def test_the_sign_of_updates_is_that_of_a_first_update(name):
    """The gradient is positive, and the parameter 0."""
    made = optax_names.factory(name)
    chain = [{name: {"learning_rate": 0.1} if made and made.required else {}}]
    optimizer = optimizers.build(chain)
    params = {"w": jnp.zeros(3)}
    update, _ = optimizer.update({"w": jnp.ones(3)}, optimizer.init(params), params)
    assert chain_checks.climbs(chain) == (float(update["w"].sum()) > 0), update


SGD = {"sgd": {"learning_rate": 0.1}}


@pytest.mark.parametrize(
    ("chain", "climbs"),
    [
        ([SGD, SGD], True),
        ([SGD, {"scale": {"step_size": -1}}], True),
        ([{"scale_by_adam": {}}, {"scale": {"step_size": -0.1}}], False),
        ([{"apply_if_finite": {"inner": SGD, "max_consecutive_errors": 2}}], False),
        ([{"apply_if_finite": {"inner": {"scale_by_adam": None},
                               "max_consecutive_errors": 2}}], True),
        ([{"scale_by_schedule": {"step_size_fn": {"constant_schedule": {"value": 1}}}}],
         False),
        ([{"adadelta": {"learning_rate": 1.0}}], False),
        ([{"scale_by_learning_rate": {"learning_rate": 1, "flip_sign": False}}], True),
    ],
)  # fmt: skip
def test_the_sign_of_a_chain_is_the_product_of_signs(chain, climbs):
    assert chain_checks.climbs(chain) == climbs


def test_learning_rate_of_a_schedule():
    falling = {"init_value": 1.0, "end_value": 0.5, "transition_steps": 2}
    chain = [{"sgd": {"learning_rate": {"linear_schedule": falling}}}]
    rate = optimizers.learning_rate(chain)
    assert rate is not None
    assert [rate(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.5]
    assert isinstance(rate(3), float)
    assert optimizers.learning_rate(config.load().optimizer) is not None


def test_last_learning_rate_is_reported():
    linear = {"init_value": 0.0, "end_value": 1.0, "transition_steps": 4}
    rising = {"linear_schedule": linear}
    chain = [
        {"adam": {"learning_rate": 5}},
        {
            "apply_if_finite": {
                "inner": {"scale_by_schedule": {"step_size_fn": rising}},
                "max_consecutive_errors": 1,
            }
        },
    ]
    rate = optimizers.learning_rate(chain)
    assert rate is not None
    assert rate(2) == 0.5
    fixed = optimizers.learning_rate(chain[:1])
    assert fixed is not None
    assert fixed(7) == 5.0
    assert optimizers.learning_rate([{"clip": {"max_delta": 1}}]) is None


@pytest.mark.parametrize("key", ["peak_value", "end_value"])
def test_a_number_inside_a_schedule_differs_between_members(key):
    """Optax tests the numbers of some schedules in Python: they cannot be traced."""
    schedule = {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 2}
    schedule |= {"decay_steps": 8, "end_value": 0.01}

    def chain(**changes):
        call = {"warmup_cosine_decay_schedule": schedule | changes}
        return [{"sgd": {"learning_rate": call}}]

    path = (0, "sgd", "learning_rate", "warmup_cosine_decay_schedule", key)
    choices = (0.05, 0.0, 0.02)

    def updates(optimizer):
        state, found = optimizer.init(jnp.ones(2)), []
        for _ in range(6):
            update, state = optimizer.update(jnp.ones(2), state)
            found.append(update)
        return jnp.stack(found)

    def of_member(value):
        varied = {path: optimizers.Varied(value, choices)}
        return updates(optimizers.build(chain(), varied=varied))

    found = jax.vmap(of_member)(jnp.asarray(choices))
    for k, choice in enumerate(choices):
        alone = updates(optimizers.build(chain(**{key: choice})))
        np.testing.assert_allclose(found[k], alone, rtol=1e-6, atol=0)


def test_a_number_of_a_nested_transformation_differs_between_members():
    rates = (0.5, 0.25)
    inner = {"inner": {"sgd": {"learning_rate": 1.0}}, "max_consecutive_errors": 3}
    chain = [{"apply_if_finite": inner}]
    path = (0, "apply_if_finite", "inner", "sgd", "learning_rate")

    def update(rate):
        varied = {path: optimizers.Varied(rate, rates)}
        optimizer = optimizers.build(chain, varied=varied)
        return optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())))[0]

    assert jax.vmap(update)(jnp.asarray(rates)).tolist() == [-0.5, -0.25]


def test_the_learning_rate_is_found_in_the_chain():
    schedule = {"linear_schedule": {"init_value": 0.0, "end_value": 0.1}}
    chain = [{"clip": {"max_delta": 1.0}}, {"adam": {"learning_rate": schedule}}]
    found = rates.learning_rate_paths([*chain, {"sgd": {"learning_rate": 0.5}}])
    assert found == [
        (1, "adam", "learning_rate", "linear_schedule", "end_value"),
        (2, "sgd", "learning_rate"),
    ]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"population": {"grid": {"optimizer.0.adam.b3": [0.1]}}}, "b3, which is no n"),
        ({"population": {"grid": {"learning_rate": [-1.0]}}}, "-1.0, expected 0 or"),
        ({"sweep": {"space": {"model.hidden_siz": [8, 16]}}}, "did you mean"),
        (
            {"optimizer": [{"scale_by_adam": {}}]},
            "raise the loss, expected exactly one",
        ),
        ({"optimizer": [{"adadelta": {}}]}, "raise the loss, expected exactly one"),
    ],
)
def test_check_refuses_what_training_would_refuse(section, message):
    chain = [{"adam": {"learning_rate": 0.01}}]
    data = {"problem": "adding", "length": 20, "test_sequences": 4}
    given = {"task": "memory", "data": data, "optimizer": chain} | section
    with pytest.raises(BadInput, match=message):
        checks.check(config.load(given))
