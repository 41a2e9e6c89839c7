"""Plausible bugs of the wrappers and of all cells except the plain LSTM.

A mutant is a patch to the text of a source file. `test_family_mutants` lists the tests
that must fail for the mutants of each file.
"""

from mutants import Mutant

CLASSIC, COUPLED = "cells/classic.py", "cells/coupled.py"
PEEPHOLE, PROJECTED = "cells/peephole.py", "cells/projected.py"
NORMALIZED, CONVOLUTIONAL = "cells/normalized.py", "cells/convolutional.py"
ZONES, DROPPING = "cells/wrappers/zoneouts.py", "cells/wrappers/dropouts.py"
WEIGHTS, CLIPPING = "cells/wrappers/weight_dropping.py", "cells/wrappers/clipping.py"
LEARNING = "cells/wrappers/initial_states.py"
TAPPING, BASE = "cells/wrappers/gradient_taps.py", "cells/wrappers/base.py"
SIMPLE, GRU, PARAMETERS = "cells/simple.py", "cells/gru.py", "cells/parameters.py"

CLASSIC_LSTM = [
    Mutant("classic: it forgets", CLASSIC, "f=jnp.ones_like(gates.i)",
           "f=1 - gates.i"),
    Mutant("classic: g and o exchanged", CLASSIC, "i, g, o = recurrent(",
           "i, o, g = recurrent("),
    Mutant("classic: a bias for the forget gate", CLASSIC,
           "gates = (INPUT, CANDIDATE, OUTPUT)", "gates = (1, CANDIDATE, OUTPUT)"),
    Mutant("classic: the candidate is a gate", CLASSIC,
           "gate=gate, candidate=candidate", "gate=gate, candidate=gate"),
    Mutant("classic: nothing reaches into h", CLASSIC,
           "apply_edit(edit.hidden, state.h)", "state.h"),
]  # fmt: skip

PEEPHOLE_LSTM = [
    Mutant("peephole: the output gate looks at the old c", PEEPHOLE,
           "add_peephole(z_o, params.p_o, c)",
           "add_peephole(z_o, params.p_o, state.c)"),
    Mutant("peephole: the input gate is blind", PEEPHOLE,
           "add_peephole(z_i, params.p_i, state.c)", "z_i"),
    Mutant("peephole: the forget gate is blind", PEEPHOLE,
           "add_peephole(z_f, params.p_f, state.c)", "z_f"),
    Mutant("peephole: i and f exchange peepholes", PEEPHOLE,
           "add_peephole(z_f, params.p_f", "add_peephole(z_f, params.p_i"),
    Mutant("peephole: looks at h", PEEPHOLE, "add_peephole(z_i, params.p_i, state.c)",
           "add_peephole(z_i, params.p_i, state.h)"),
    Mutant("peephole: a look counted twice", PEEPHOLE, "z + broadcast_like(c, p) * c",
           "z + 2 * broadcast_like(c, p) * c"),
    Mutant("peephole: no gradient through a look", PEEPHOLE,
           "z + broadcast_like(c, p) * c",
           "z + broadcast_like(c, p) * __import__('jax').lax.stop_gradient(c)"),
    Mutant("peephole: begins with a look", PEEPHOLE, "*jnp.zeros((3, hidden_size)",
           "*jnp.ones((3, hidden_size)"),
    Mutant("peephole: c is changed after the output gate", PEEPHOLE,
           "o = gate(add_peephole(z_o, params.p_o, c))",
           "o = gate(add_peephole(z_o, params.p_o, f * state.c + i * g))"),
]  # fmt: skip

COUPLED_LSTM = [
    Mutant("coupled: f is what is written", COUPLED, "f * state.c + (1 - f) * g",
           "(1 - f) * state.c + f * g"),
    Mutant("coupled: not coupled", COUPLED, "f * state.c + (1 - f) * g",
           "f * state.c + g"),
    Mutant("coupled: reports i as f", COUPLED, "Gates(i=1 - f, f=f", "Gates(i=f, f=f"),
    Mutant("coupled: f and o exchanged", COUPLED, "z_f, z_g, z_o = recurrent(",
           "z_o, z_g, z_f = recurrent("),
    Mutant("coupled: the output gate looks at the old c", COUPLED,
           "add_peephole(z_o, params.p_o, c)",
           "add_peephole(z_o, params.p_o, state.c)"),
    Mutant("coupled: the forget bias on the candidate", COUPLED,
           "gates = (FORGET, CANDIDATE, OUTPUT)",
           "gates = (CANDIDATE, FORGET, OUTPUT)"),
    Mutant("coupled: the candidate is a gate", COUPLED, "candidate(z_g)", "gate(z_g)"),
]  # fmt: skip

PROJECTED_LSTM = [
    Mutant("projected: c is projected", PROJECTED, "product(m.astype(state.h.dtype)",
           "product(c.astype(state.h.dtype)"),
    Mutant("projected: W_p begins at another size", PROJECTED,
           "init.w_h(projection_key, (size, 1, hidden_size), dtype)",
           "2 * init.w_h(projection_key, (size, 1, hidden_size), dtype)"),
    Mutant("projected: no gradient to W_p", PROJECTED, "params.w_p, z.dtype)",
           "__import__('jax').lax.stop_gradient(params.w_p), z.dtype)"),
    Mutant("projected: squashed again", PROJECTED, "LSTMState(h, c)), gates",
           "LSTMState(jnp.tanh(h), c)), gates"),
    Mutant("projected: c is not edited", PROJECTED, "output=output, edit=edit.cell",
           "output=output"),
]  # fmt: skip

LAYER_NORM_LSTM = [
    Mutant("layer norm: not centred", NORMALIZED,
           "a - a.mean(axes, keepdims=True)", "a"),
    Mutant("layer norm: variance of n - 1", NORMALIZED,
           "(centred**2).mean(axes, keepdims=True)",
           "a.var(axes, keepdims=True, ddof=1)"),
    Mutant("layer norm: ε outside the root", NORMALIZED,
           "* jax.lax.rsqrt(variance + EPSILON)",
           "/ (jnp.sqrt(variance) + EPSILON)"),
    Mutant("layer norm: ε of another size", NORMALIZED, "EPSILON = 1e-5",
           "EPSILON = 1e-3"),
    Mutant("layer norm: each gate apart", NORMALIZED,
           "axes = tuple(range(-s.ndim, 0))", "axes = (-1,)"),
    Mutant("layer norm: x and h together", NORMALIZED, "z + layer_norm(read,",
           "layer_norm(z + read,"),
    Mutant("layer norm: h is not scaled", NORMALIZED, "layer_norm(read, params.s_h)",
           "layer_norm(read, jnp.ones_like(params.s_h))"),
    Mutant("layer norm: x is scaled as h", NORMALIZED, "w_x), params.s_x)",
           "w_x), params.s_h)"),
    Mutant("layer norm: c is not normalised", NORMALIZED,
           "c = layer_norm(c, params.s_c) +",
           "c = broadcast_like(c, params.s_c) * c +"),
    Mutant("layer norm: c is not shifted", NORMALIZED,
           " + broadcast_like(c, params.b_c)",
           ""),
    Mutant("layer norm: no gradient through the variance", NORMALIZED,
           "rsqrt(variance + EPSILON)",
           "rsqrt(jax.lax.stop_gradient(variance) + EPSILON)"),
    Mutant("layer norm: scales begin at zero", NORMALIZED, "jnp.ones_like(b)",
           "jnp.zeros_like(b)"),
]  # fmt: skip

CONV_LSTM = [
    Mutant("conv: the kernel is turned", CONVOLUTIONAL, "w.astype(x.dtype)",
           "jnp.flip(w, range(w.ndim - 3)).astype(x.dtype)"),
    Mutant("conv: space wraps around", CONVOLUTIONAL,
           "h = apply_edit(edit.hidden, state.h)",
           "h = jnp.roll(apply_edit(edit.hidden, state.h), 1, -2)"),
    Mutant("conv: the bias is dropped", CONVOLUTIONAL,
           "return z + broadcast_like(z, params.b)", "return z"),
    Mutant("conv: no recurrence", CONVOLUTIONAL,
           "z + convolution(h, params.w_h, z.dtype)",
           "z + 0 * convolution(h, params.w_h, z.dtype)"),
    Mutant("conv: begins as if it read one place", CONVOLUTIONAL,
           "w_x=w_x.reshape(", "w_x=math.sqrt(kernel_size) * w_x.reshape("),
    Mutant("conv: c is not edited", CONVOLUTIONAL, "output=output, edit=edit.cell",
           "output=output"),
]  # fmt: skip

SIMPLE_RNN = [
    Mutant("simple: no recurrence", SIMPLE, "z + product(h,", "z + 0 * product(h,"),
    Mutant("simple: leaks the past", SIMPLE, "HiddenState(g))",
           "HiddenState(0.5 * (g + state.h)))"),
    Mutant("simple: not squashed", SIMPLE,
           "activation(z + product(h, params.w_h, z.dtype))",
           "z + product(h, params.w_h, z.dtype)"),
    Mutant("simple: takes any edit", SIMPLE, '"candidate", "cell")', ")"),
]  # fmt: skip

GRU_CELL = [
    Mutant("gru: z keeps the new", GRU, "h = z * state", "h = (1 - z) * state"),
    Mutant("gru: z writes the new", GRU, "+ (1 - z) * n", "+ z * n"),
    Mutant("gru: r and z exchanged", GRU, "u_r, u_z, u_n = by_gate(",
           "u_z, u_r, u_n = by_gate("),
    Mutant("gru: the reset gate is ignored after", GRU, "z_n + r * u_n", "z_n + u_n"),
    Mutant("gru: b_h outside the reset", GRU, "n = candidate(z_n + r * u_n)",
           "n = candidate(z_n + r * (u_n - broadcast_like(u_n, params.b_h))"
           " + broadcast_like(u_n, params.b_h))"),
    Mutant("gru: the reset gate is ignored before", GRU, "(r * h.astype(r.dtype))",
           "(h.astype(r.dtype))"),
    Mutant("gru: before is after", GRU, "after_product if reset_after else before",
           "after_product if True else before"),
    Mutant("gru: a mask on what is kept", GRU, "z * state.h.astype(z.dtype)",
           "z * apply_edit(edit.hidden, state.h).astype(z.dtype)"),
    Mutant("gru: the candidate is not edited", GRU, "n = apply_edit(edit.candidate, n)",
           "n = n"),
    Mutant("gru: takes an edit of c", GRU,
           'parameters.reject_edits("gru", edit, "cell")',
           "pass"),
    Mutant("gru: z begins shut", GRU, "gates = (OUTPUT, FORGET, CANDIDATE)",
           "gates = (OUTPUT, 0, CANDIDATE)"),
]  # fmt: skip

PARAMETERS_OF_ALL = [
    Mutant("parameters: any shapes fit", PARAMETERS, "if not all(fits):", "if False:"),
    Mutant("parameters: one key for both matrices", PARAMETERS, "init.w_h(keys[1]",
           "init.w_h(keys[0]"),
]  # fmt: skip

CELL_MUTANTS = [
    *CLASSIC_LSTM,
    *PEEPHOLE_LSTM,
    *COUPLED_LSTM,
    *PROJECTED_LSTM,
    *LAYER_NORM_LSTM,
    *CONV_LSTM,
    *SIMPLE_RNN,
    *GRU_CELL,
    *PARAMETERS_OF_ALL,
]

ZONEOUT = [
    Mutant("zoneout: the expectation the wrong way", ZONES,
           "return rate * old + (1 - rate) * new",
           "return (1 - rate) * old + rate * new"),
    Mutant("zoneout: no expectation", ZONES, "return rate * old + (1 - rate) * new",
           "return new"),
    Mutant("zoneout: the mask the wrong way", ZONES,
           "jnp.where(reshard_like(new, update), new, old)",
           "jnp.where(reshard_like(new, update), old, new)"),
    Mutant("zoneout: a zero in place of the old", ZONES,
           "jnp.where(reshard_like(new, update), new, old)",
           "jnp.where(reshard_like(new, update), new, 0 * old)"),
    Mutant("zoneout: h and c share a mask", ZONES, '{"h": h_key, "c": c_key}',
           '{"h": h_key, "c": h_key}'),
    Mutant("zoneout: h and c share a rate", ZONES,
           '(("h", h_rate), ("c", c_rate)) if r > 0',
           '(("h", h_rate), ("c", h_rate)) if r > 0'),
    Mutant("zoneout: one mask for all steps", ZONES,
           "keep_mask(keys[name], rate, xs, (xs.shape[0], *shape))",
           "jnp.broadcast_to("
           "keep_mask(keys[name], rate, xs, (xs.shape[0], *shape))[:1],"
           " (len(xs), *shape)) if key is not None else None"),
    Mutant("zoneout: an edit is lost", ZONES,
           "after, gates = edited_step(cell, params, state, z.inner, edit)",
           "after, gates = edited_step(cell, params, state, z.inner, UNEDITED)"),
    Mutant("zoneout: shows what is kept of c", ZONES,
           "return (after._replace(**values) if values else after), gates",
           "after = after._replace(**values) if values else after\n"
           "        return (after._replace(h=gates.o * jnp.tanh(after.c))"
           " if 'c' in values else after), gates"),
]  # fmt: skip

DROPOUTS = [
    Mutant("variational: the values decide", DROPPING, "lambda h: apply_dropout(",
           "read = then(lambda h: 0 * h + apply_dropout(h, h > 2, h_rate)"
           " if params.h is not None else apply_dropout("),
    Mutant("variational: x is not dropped", DROPPING,
           "apply_dropout(x, params.x, x_rate)", "x"),
    Mutant("variational: h is not dropped", DROPPING,
           "apply_dropout(h, params.h, h_rate)", "h"),
    Mutant("variational: x at the rate of h", DROPPING, "keep_mask(x_key, x_rate, xs,",
           "keep_mask(x_key, h_rate, xs,"),
    Mutant("variational: scaled by the rate of x", DROPPING,
           "apply_dropout(h, params.h, h_rate)", "apply_dropout(h, params.h, x_rate)"),
    Mutant("variational: what is carried is dropped", DROPPING,
           "return edited_step(cell, params.params, state, z, edit)",
           "state = state._replace(h=apply_dropout(state.h, params.h, h_rate))\n"
           "        after, gates = edited_step(cell, params.params, state, z, edit)\n"
           "        h = apply_dropout(after.h, params.h, h_rate)\n"
           "        return after._replace(h=h), gates"),
    Mutant("recurrent: the memory is dropped", DROPPING,
           "edit._replace(candidate=drop)", "edit._replace(cell=drop)"),
    Mutant("recurrent: one mask for all steps", DROPPING,
           "return keep_mask(own, rate, xs, (xs.shape[0], *shape)), key",
           "mask = keep_mask(own, rate, xs, shape)\n"
           "        return (None if mask is None else"
           " jnp.broadcast_to(mask, (len(xs), *shape))), key"),
    Mutant("recurrent: not scaled", DROPPING, "apply_dropout(g, z.own, rate)",
           "apply_dropout(g, z.own, 0.0)"),
    Mutant("weight drop: not scaled", WEIGHTS, "return apply_dropout(w, keep, rate)",
           "return jnp.where(keep, w, 0.0)"),
    Mutant("weight drop: keeps the rate", WEIGHTS, "jnp.float32) >= rate",
           "jnp.float32) < rate"),
    Mutant("weight drop: w_x too", WEIGHTS, '== "w_h"', '!= "b"'),
    Mutant("weight drop: takes params without w_h", WEIGHTS, "if not paths:",
           "if False:"),
]  # fmt: skip

BOUNDS = [
    Mutant("clip: one-sided", CLIPPING, "jnp.clip(c, -limit, limit)",
           "jnp.clip(c, None, limit)"),
    Mutant("clip: at half the limit", CLIPPING, "jnp.clip(c, -limit, limit)",
           "jnp.clip(c, -limit / 2, limit / 2)"),
    Mutant("clip: the candidate", CLIPPING, "edit._replace(cell=clip)",
           "edit._replace(candidate=clip)"),
    Mutant("clip: any limit", CLIPPING, "if not is_number or not 0 < limit < math.inf:",
           "if not is_number:"),
    Mutant("learned: no gradient", LEARNING, "leaf.astype(like.dtype), (",
           "jax.lax.stop_gradient(leaf).astype(like.dtype), ("),
    Mutant("learned: begins with ones", LEARNING,
           "Learned(params, cell.initial_state(params))",
           "Learned(params, jax.tree.map(jnp.ones_like, cell.initial_state(params)))"),
    Mutant("learned: begins at zero all the same", LEARNING,
           "return jax.tree.map(broadcast, like, params.state)",
           "return jax.tree.map(lambda a: 0 * a, jax.tree.map(broadcast, like,"
           " params.state))"),
    Mutant("learned: any shapes", LEARNING,
           '        check_state_shapes("learned_initial_state: params.state",'
           " params.state, like)\n", ""),
    Mutant("taps: taken away", TAPPING, "a + t.astype(a.dtype)",
           "a - t.astype(a.dtype)"),
    Mutant("taps: reported, not carried", TAPPING,
           "return jax.tree.map(lambda a, t: a + t.astype(a.dtype), after, z.own),"
           " gates",
           "return after, gates"),
    Mutant("taps: the key is lost", TAPPING, "return params.taps, key",
           "return params.taps, None"),
]  # fmt: skip

SHARED = [
    Mutant("wrapping: an edit replaces the outer one", BASE,
           "lambda value: apply_edit(outer, inner(value))", "inner"),
    Mutant("wrapping: the outer edit first", BASE,
           "apply_edit(outer, inner(value))", "inner(apply_edit(outer, value))"),
    Mutant("wrapping: one key for all", BASE,
           "tuple(jax.random.split(key, count + 1))", "(key,) * (count + 1)"),
    Mutant("wrapping: drops what it should keep", BASE, "jnp.float32) >= rate",
           "jnp.float32) < rate"),
    Mutant("wrapping: not scaled", BASE, "jnp.where(keep, value / (1 - rate), 0.0)",
           "jnp.where(keep, value, 0.0)"),
    Mutant("wrapping: rows share a mask", BASE,
           "drawn = jax.random.uniform(key, shape, jnp.float32) >= rate",
           "drawn = jax.random.uniform(key, shape, jnp.float32) >= rate\n"
           "    drawn = jnp.broadcast_to(drawn[..., :1, :], shape)"),
    Mutant("wrapping: the inner cell gets no key", BASE,
           "else cell.prepare(params, xs, key=key)",
           "else cell.prepare(params, xs, key=None)"),
    Mutant("wrapping: what the inner cell brought is lost", BASE,
           "WrappedInput(base.project(cell, params, x, inner), own)",
           "WrappedInput(base.project(cell, params, x, None), own)"),
    Mutant("wrapping: an edit is never passed on", BASE,
           "return step_with_edit(params, state, z, edit=edit)",
           "return step_with_edit(params, state, z)"),
    Mutant("wrapping: any rate", BASE, "if not is_number or not 0 <= rate < 1:",
           "if not is_number:"),
    Mutant("wrapping: any shapes", BASE, "if not same_tree or got != expected:",
           "if False:"),
]  # fmt: skip

WRAPPER_MUTANTS = [*ZONEOUT, *DROPOUTS, *BOUNDS, *SHARED]
