"""Config sections of the cells, with the options of the functions that make them.

The names are those of the library: `{name: gru, reset_after: false}` is
`jl.gru(reset_after=False)`.
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
    float, Field(ge=-100, le=100, description="Initial bias of the forget gate.")
]
Candidate = Annotated[Activation, Field(description="Activation of the candidate.")]
Output = Annotated[Activation, Field(description="Activation f in h = o f(c).")]
Gate = Annotated[Activation, Field(description="Activation of the gates.")]
Init = Annotated[
    Literal["default", "torch", "keras", "chrono"],
    Field(description="Initialization scheme."),
]


def _uses_the_bias(init: str, info: ValidationInfo) -> str:
    bias = info.data.get("forget_bias", 1.0)
    if init in ("torch", "chrono") and bias != 1.0:
        raise ValueError(
            f'"{init}" sets its own biases, so forget_bias {bias} would have no '
            'effect; remove forget_bias, or use "default" or "keras"'
        )
    return init


# Initialization of cells that also have a forget bias.
BiasedInit = Annotated[Init, AfterValidator(_uses_the_bias)]


class LSTM(Section):
    """LSTM with a forget gate."""

    name: Literal["lstm"] = "lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class ClassicLSTM(Section):
    """LSTM of 1997, without a forget gate."""

    name: Literal["classic_lstm"] = "classic_lstm"
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: Init = "default"


class PeepholeLSTM(Section):
    """LSTM whose gates read the cell state."""

    name: Literal["peephole_lstm"] = "peephole_lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class CoupledLSTM(Section):
    """LSTM with coupled gates, i = 1 - f."""

    name: Literal["coupled_lstm"] = "coupled_lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"
    peepholes: bool = Field(
        default=False, description="Whether the gates read the cell state."
    )


class ProjectedLSTM(Section):
    """LSTM whose output is a linear projection of its units."""

    name: Literal["projected_lstm"] = "projected_lstm"
    projection_size: Size = Field(description="Features of h; c has hidden_size units.")
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class LayerNormLSTM(Section):
    """LSTM with layer-normalized pre-activations."""

    name: Literal["layer_norm_lstm"] = "layer_norm_lstm"
    forget_bias: ForgetBias = 1.0
    candidate_activation: Candidate = "tanh"
    output_activation: Output = "tanh"
    gate_activation: Gate = "sigmoid"
    init: BiasedInit = "default"


class SimpleRNN(Section):
    """Elman network."""

    name: Literal["simple_rnn"] = "simple_rnn"
    activation: Activation = Field(
        default="tanh", description="Activation of the hidden state."
    )
    init: Init = "default"


class GRU(Section):
    """Gated recurrent unit."""

    name: Literal["gru"] = "gru"
    reset_after: bool = Field(
        default=True, description="Apply the reset gate after the recurrent product."
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
