"""Plausible bugs of the cells beside the plain LSTM, and of the wrappers.

Each file has its mutants, as patches to its text; `test_family_mutants` says by which
checks the mutants of a file must die.
"""

from mutants import Mutant

CLASSIC, COUPLED = "cells/classic.py", "cells/coupled.py"
PEEPHOLE, PROJECTED = "cells/peephole.py", "cells/projected.py"
NORMALIZED, CONVOLUTIONAL = "cells/normalized.py", "cells/convolutional.py"
WRAPPERS, NOISE = "cells/wrappers.py", "cells/noise.py"
WRAPPING = "cells/wrapping.py"
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
           "edited(edit.hidden, state.h)", "state.h"),
]  # fmt: skip

PEEPHOLE_LSTM = [
    Mutant("peephole: the output gate looks at the old c", PEEPHOLE,
           "looked(z.o, params.p_o, c)", "looked(z.o, params.p_o, state.c)"),
    Mutant("peephole: the input gate is blind", PEEPHOLE,
           "looked(z.i, params.p_i, state.c)", "z.i"),
    Mutant("peephole: the forget gate is blind", PEEPHOLE,
           "looked(z.f, params.p_f, state.c)", "z.f"),
    Mutant("peephole: i and f exchange peepholes", PEEPHOLE,
           "looked(z.f, params.p_f", "looked(z.f, params.p_i"),
    Mutant("peephole: looks at h", PEEPHOLE, "looked(z.i, params.p_i, state.c)",
           "looked(z.i, params.p_i, state.h)"),
    Mutant("peephole: a look counted twice", PEEPHOLE, "z + spread(p, c) * c",
           "z + 2 * spread(p, c) * c"),
    Mutant("peephole: no gradient through a look", PEEPHOLE, "z + spread(p, c) * c",
           "z + spread(p, c) * __import__('jax').lax.stop_gradient(c)"),
    Mutant("peephole: begins with a look", PEEPHOLE, "*jnp.zeros((3, hidden_size)",
           "*jnp.ones((3, hidden_size)"),
    Mutant("peephole: c is changed after the output gate", PEEPHOLE,
           "o = gate(looked(z.o, params.p_o, c))",
           "o = gate(looked(z.o, params.p_o, f * state.c + i * g))"),
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
           "looked(z_o, params.p_o, c)", "looked(z_o, params.p_o, state.c)"),
    Mutant("coupled: the forget bias on the candidate", COUPLED,
           "gates = (FORGET, CANDIDATE, OUTPUT)", "gates = (CANDIDATE, FORGET, OUTPUT)"),
    Mutant("coupled: the candidate is a gate", COUPLED, "candidate(z_g)", "gate(z_g)"),
]  # fmt: skip

PROJECTED_LSTM = [
    Mutant("projected: c is projected", PROJECTED, "product(m.astype(state.h.dtype)",
           "product(c.astype(state.h.dtype)"),
    Mutant("projected: W_p begins at another size", PROJECTED,
           "init.w_h(shown, (size, 1, hidden_size), dtype)",
           "2 * init.w_h(shown, (size, 1, hidden_size), dtype)"),
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
           "jax.lax.rsqrt(variance + EPSILON)", "/ (jnp.sqrt(variance) + EPSILON)"),
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
           "output(layer_norm(c, params.s_c) +", "output(spread(params.s_c, c) * c +"),
    Mutant("layer norm: c is not shifted", NORMALIZED, " + spread(params.b_c, c))",
           ")"),
    Mutant("layer norm: no gradient through the variance", NORMALIZED,
           "rsqrt(variance + EPSILON)",
           "rsqrt(jax.lax.stop_gradient(variance) + EPSILON)"),
    Mutant("layer norm: scales begin at zero", NORMALIZED, "jnp.ones_like(b)",
           "jnp.zeros_like(b)"),
]  # fmt: skip

CONV_LSTM = [
    Mutant("conv: the kernel is turned", CONVOLUTIONAL, "        w.astype(x.dtype)",
           "        jnp.flip(w, range(space)).astype(x.dtype)"),
    Mutant("conv: space wraps around", CONVOLUTIONAL, "h = edited(edit.hidden, state.h)",
           "h = jnp.roll(edited(edit.hidden, state.h), 1, -2)"),
    Mutant("conv: the bias is dropped", CONVOLUTIONAL, "return z + spread(params.b, z)",
           "return z"),
    Mutant("conv: no recurrence", CONVOLUTIONAL,
           "z + convolution(h, params.w_h, z.dtype)",
           "z + 0 * convolution(h, params.w_h, z.dtype)"),
    Mutant("conv: begins as if it read one place", CONVOLUTIONAL,
           "seen * input_size,", "input_size,"),
    Mutant("conv: space counts as batch", CONVOLUTIONAL, "spatial_axes=len(kernel)",
           "spatial_axes=0"),
]  # fmt: skip

SIMPLE_RNN = [
    Mutant("simple: no recurrence", SIMPLE, "z + product(h,", "z + 0 * product(h,"),
    Mutant("simple: leaks the past", SIMPLE, "HiddenState(g))",
           "HiddenState(0.5 * (g + state.h)))"),
    Mutant("simple: not squashed", SIMPLE, "activation(z + product(h, params.w_h, z.dtype))",
           "z + product(h, params.w_h, z.dtype)"),
    Mutant("simple: takes any edit", SIMPLE, '"candidate", "cell")', ")"),
]  # fmt: skip

GRU_CELL = [
    Mutant("gru: z keeps the new", GRU, "(1 - z) * n + z *", "z * n + (1 - z) *"),
    Mutant("gru: r and z exchanged", GRU, "r = gate(z_r + u_r)\n        n = candidate(z_n + r *",
           "r = gate(z_z + u_z)\n        n = candidate(z_n + r *"),
    Mutant("gru: the reset gate is ignored after", GRU, "z_n + r * (u_n",
           "z_n + (u_n"),
    Mutant("gru: b_h outside the reset", GRU, "r * (u_n + spread(params.b_h, u_n))",
           "r * u_n + spread(params.b_h, u_n)"),
    Mutant("gru: the reset gate is ignored before", GRU, "(r * h.astype(r.dtype))",
           "(h.astype(r.dtype))"),
    Mutant("gru: before is after", GRU, "after_product if reset_after else before",
           "after_product if True else before"),
    Mutant("gru: a mask on what is kept", GRU, "z * state.h.astype(z.dtype)",
           "z * edited(edit.hidden, state.h).astype(z.dtype)"),
    Mutant("gru: the candidate is not edited", GRU, "n = edited(edit.candidate, n)",
           "n = n"),
    Mutant("gru: takes an edit of c", GRU, 'parameters.refuse("gru", edit, "cell")',
           "pass"),
    Mutant("gru: z begins shut", GRU, "gates = (OUTPUT, FORGET, CANDIDATE)",
           "gates = (OUTPUT, 0, CANDIDATE)"),
]  # fmt: skip

PARAMETERS_OF_ALL = [
    Mutant("parameters: any shapes fit", PARAMETERS, "if not all(fits):", "if False:"),
    Mutant("parameters: the recurrent size is ignored", PARAMETERS,
           "hidden_size if recurrent_size is None else recurrent_size", "hidden_size"),
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

WRAPPER_MUTANTS = []
