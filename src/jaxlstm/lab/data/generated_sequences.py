"""Labelled sequences that need no file: digits, states of an HMM, and transcripts."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.labelled import LabelledSequences, Labels, Parts

KIND = {
    "digits": "sequence",
    "generated_tags": "step",
    "generated_transcripts": "transcript",
}


def read(data: Any, labels: Labels, *, key: str) -> Parts:
    """Return the sequences of a built-in source.

    Raises:
        BadInput: the source has labels of another kind.
    """
    if KIND[data.source] != labels:
        fitting = [name for name, kind in KIND.items() if kind == labels]
        raise BadInput(
            f"{key}.source: got {data.source}, which has a label for each "
            f"{KIND[data.source]}, expected {fitting[0]} or files for this task."
        )
    if data.source == "digits":
        return digits(data)
    return tags(data) if data.source == "generated_tags" else transcripts(data)


def digits(data: Any) -> Parts:
    """Return scikit-learn's 1,797 images of digits, a row of 8 pixels a step, 0 to 1.

    Raises:
        BadInput: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput(
            "data.source: digits needs scikit-learn; install it with: pip install "
            '"jaxlstm[data]".'
        ) from None
    loaded: Any = load_digits()
    images = (loaded.images / 16).astype(np.float32)
    targets = loaded.target.astype(np.int32)
    rng = np.random.default_rng(data.seed)
    held_out = np.zeros(len(targets), bool)
    for digit in range(10):
        found = rng.permutation(np.flatnonzero(targets == digit))
        held_out[found[: round(len(found) * data.test_fraction)]] = True
    columns = tuple(f"pixel_{k + 1}" for k in range(8))

    def part(which: NDArray[np.bool_]) -> LabelledSequences:
        rows = np.flatnonzero(which)
        return _sequences(
            data, list(images[rows]), targets[rows], None,
            [str(digit) for digit in range(10)], columns, [str(row) for row in rows],
        )  # fmt: skip

    return Parts(part(~held_out), part(held_out))


class HMM(NamedTuple):
    """Probabilities of a hidden Markov model: first state, next state, symbol."""

    start: NDArray[np.float64]  # [S]
    move: NDArray[np.float64]  # [S, S]
    emit: NDArray[np.float64]  # [S, K]


def viterbi(model: HMM, symbols: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the most likely states of symbols; the lower state wins a tie.

    Args:
        model: the probabilities.
        symbols: `[N, T]`, N sequences of equal length.

    Returns:
        States `[N, T]`.

    Reference:
        Viterbi, "Error bounds for convolutional codes and an asymptotically
        optimum decoding algorithm", IEEE Transactions on Information Theory, 1967.

    Example:
        >>> sticky = np.array([[0.9, 0.1], [0.1, 0.9]])
        >>> noisy = np.array([[0.8, 0.2], [0.2, 0.8]])
        >>> model = HMM(np.array([0.5, 0.5]), sticky, noisy)
        >>> viterbi(model, np.array([[0, 1, 0, 0, 1, 1, 1]])).tolist()
        [[0, 0, 0, 0, 1, 1, 1]]
    """
    with np.errstate(divide="ignore"):
        start, move, emit = (np.log(p) for p in model)
    score = start + emit[:, symbols[:, 0]].T
    back = []
    for column in symbols.T[1:]:
        total = score[:, :, None] + move
        back.append(total.argmax(1))
        score = total.max(1) + emit[:, column].T
    states = [score.argmax(1)]
    for best in reversed(back):
        states.append(best[np.arange(len(best)), states[-1]])
    return np.stack(states[::-1], 1)


def tags(data: Any) -> Parts:
    """Return symbols of a hidden Markov model, labelled by Viterbi's algorithm.

    Each state has one symbol of its own and one that it shares with the next state, so
    a shared symbol is resolved by its neighbours on both sides.
    """
    rng = np.random.default_rng(data.seed)
    count = data.states
    emit = np.zeros((count, 2 * count))
    for state in range(count):
        emit[state, [state, count + state, count + (state + 1) % count]] = 0.4, 0.3, 0.3
    move = np.full((count, count), 0.1 / max(count - 1, 1)) + rng.uniform(
        0, 0.02, (count, count)
    )
    move[np.diag_indices(count)] = 0.8
    move /= move.sum(1, keepdims=True)
    start = rng.dirichlet(np.full(count, 5.0))
    model = HMM(start, move, emit)

    shortest = max(data.length // 2, 1)

    def part(sequences: int) -> LabelledSequences:
        lengths = rng.integers(shortest, data.length + 1, sequences)
        symbols = _sampled(model, (sequences, data.length), rng)
        states = np.empty_like(symbols)
        for length in np.unique(lengths):
            which = lengths == length
            states[which, :length] = viterbi(model, symbols[which, :length])
        values = [
            np.eye(2 * count, dtype=np.float32)[row[:length]]
            for row, length in zip(symbols, lengths, strict=True)
        ]
        keep = np.arange(data.length) < lengths[:, None]
        return _sequences(
            data, values, states[keep], None,
            [f"state_{k + 1}" for k in range(count)],
            tuple(f"symbol_{k + 1}" for k in range(2 * count)),
        )  # fmt: skip

    return Parts(part(data.sequences), part(data.test_sequences))


def _sampled(
    model: HMM, shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return symbols `[N, T]` of a model."""

    def draw(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        ends = probabilities.cumsum(-1)[..., :-1]
        return (rng.random((shape[0], 1)) >= ends).sum(-1)

    state = draw(np.broadcast_to(model.start, (shape[0], len(model.start))))
    symbols = []
    for _ in range(shape[1]):
        symbols.append(draw(model.emit[state]))
        state = draw(model.move[state])
    return np.stack(symbols, 1)


def transcripts(data: Any) -> Parts:
    """Return frames of symbols that last 1 to 4 frames, with silence between some.

    A frame is the symbol's pattern of `symbols` random numbers plus noise. Equal
    symbols that follow each other have silence between them, as CTC needs.
    """
    rng = np.random.default_rng(data.seed)
    count = data.symbols
    width = min(count, 12)
    patterns = rng.normal(size=(count, width)).astype(np.float32)

    def one() -> tuple[NDArray[np.float32], list[int]]:
        symbols = rng.integers(0, count, rng.integers(1, data.length + 1)).tolist()
        frames: list[NDArray[np.float32]] = []
        for before, symbol in zip([None, *symbols], symbols, strict=False):
            silence = int(rng.integers(0, 3))
            silence = max(silence, 1) if symbol == before else silence
            frames += [np.zeros(width, np.float32)] * silence
            frames += [patterns[symbol]] * int(rng.integers(1, 5))
        values = np.stack(frames)
        noise = rng.normal(scale=data.noise, size=values.shape)
        return (values + noise).astype(np.float32), symbols

    def part(sequences: int) -> LabelledSequences:
        made = [one() for _ in range(sequences)]
        labels = [symbols for _, symbols in made]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in labels])])
        return _sequences(
            data, [values for values, _ in made],
            np.array([s for text in labels for s in text]), offsets,
            [_symbol(k) for k in range(count)],
            tuple(f"value_{k + 1}" for k in range(width)),
        )  # fmt: skip

    return Parts(part(data.sequences), part(data.test_sequences))


def _symbol(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[number] if number < 26 else f"s{number}"


def _sequences(
    data: Any,
    values: Sequence[NDArray[np.float32]],
    labels: NDArray[Any],
    label_offsets: NDArray[np.int64] | None,
    classes: Sequence[str],
    columns: tuple[str, ...],
    ids: Sequence[str] | None = None,
) -> LabelledSequences:
    lengths = [len(one) for one in values]
    stacked = np.concatenate(values)
    written = json.dumps(data.model_dump(mode="json")).encode()
    return LabelledSequences(
        tuple(ids or [str(k + 1) for k in range(len(lengths))]),
        np.concatenate([[0], np.cumsum(lengths)]),
        stacked,
        labels.astype(np.int32),
        label_offsets,
        tuple(classes),
        columns,
        (),
        {
            "source": data.source,
            "paths": [],
            "sha256": [hashlib.sha256(stacked.tobytes() + written).hexdigest()],
            "sequences": len(lengths),
            "rows": len(stacked),
            "classes": len(classes),
        },
    )
