"""The cells that a config may name, each with the options of its factory.

The names of the sections are those of the library: `{name: gru, reset_after: false}`
is `jl.gru(reset_after=False)`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from jaxlstm.lab.config.sections import Section, Size, tagged

Activation = Literal[
    "elu",
    "hard_sigmoid",
    "hard_tanh",
    "identity",
    "relu",
    "sigmoid",
    "softplus",
    "softsign",
    "tanh",
]
ForgetBias = Annotated[
    float, Field(ge=-100, le=100, description="The forget gate's bias at the start.")
]
Candidate = Annotated[Activation, Field(description="Of the candidate.")]
Output = Annotated[Activation, Field(description="Of c, in h = o f(c).")]
Gate = Annotated[Activation, Field(description="Of the gates.")]
Init = Annotated[
    Literal["default", "torch", "keras", "chrono"],
    Field(description="How the parameters are drawn."),
]


def _leaves_the_bias(init: str, info: ValidationInfo) -> str:
    bias = info.data.get("forget_bias", 1.0)
    if init in ("torch", "chrono") and bias != 1.0:
        raise ValueError(
            f'"{init}" draws its own biases, so forget_bias {bias} would have no '
            'effect; leave forget_bias out, or use "default" or "keras"'
        )
    return init


# An init beside a forget bias.
BiasedInit = Annotated[Init, AfterValidator(_leaves_the_bias)]


class LSTM(Section):
    """The LSTM with a forget gate."""

    name: Literal["lstm"] = "lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class ClassicLSTM(Section):
    """The LSTM of 1997, without a forget gate."""

    name: Literal["classic_lstm"] = "classic_lstm"
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: Init = "default"


class PeepholeLSTM(Section):
    """The LSTM whose gates look at the cell state."""

    name: Literal["peephole_lstm"] = "peephole_lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class CoupledLSTM(Section):
    """The LSTM that forgets what it overwrites, i = 1 - f."""

    name: Literal["coupled_lstm"] = "coupled_lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"
    peepholes: bool = Field(
        default=False, description="Whether the gates look at the cell state."
    )


class ProjectedLSTM(Section):
    """The LSTM whose output is a projection of its units."""

    name: Literal["projected_lstm"] = "projected_lstm"
    projection_size: Size = Field(description="Features of h; c has hidden_size units.")
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class LayerNormLSTM(Section):
    """The LSTM with layer-normalised pre-activations."""

    name: Literal["layer_norm_lstm"] = "layer_norm_lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class SimpleRNN(Section):
    """The network of Elman, for comparison."""

    name: Literal["simple_rnn"] = "simple_rnn"
    activation: Activation = Field(default="tanh", description="Of the hidden state.")
    init: Init = "default"


class GRU(Section):
    """The gated recurrent unit, for comparison."""

    name: Literal["gru"] = "gru"
    reset_after: bool = Field(
        default=True, description="Reset after the recurrent product, as cuDNN does."
    )
    candidate_activation: Candidate = "tanh"
    gate_activation: Gate = "sigmoid"
    init: Init = "default"


Cell = Annotated[
    LSTM
    | ClassicLSTM
    | PeepholeLSTM
    | CoupledLSTM
    | ProjectedLSTM
    | LayerNormLSTM
    | SimpleRNN
    | GRU,
    Field(discriminator="name"),
    tagged("name", "lstm"),
]
