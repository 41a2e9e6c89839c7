"""Batches of a text: contiguous streams for training, windows for validation."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.sources import read
from jaxlstm.lab.data.streams import Batch, Streams, Window, validation_windows
from jaxlstm.lab.data.vocabulary import Vocabulary


class CountedWindow(NamedTuple):
    """A `Window`, and the number of characters of each target."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    resets: NDArray[np.bool_]
    weights: NDArray[np.bool_]
    characters: NDArray[np.int32]


class TextDataset:
    """The training and validation part of a text; see `Dataset`.

    Args:
        config: the config.
        corpus: the text, if it is read already.
        vocabulary: the vocabulary of a run, whose tokenizer is used again.

    Raises:
        BadInput: the text cannot be read, or is too short for one batch.
    """

    def __init__(
        self,
        config: Config,
        corpus: Corpus | None = None,
        *,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.corpus: Corpus = corpus or read(config.data, vocabulary=vocabulary)
        self._config = config
        self.streams = Streams(
            self.corpus.train,
            batch_size=config.training.batch_size,
            window=config.training.window,
            seed=config.seed,
            document_token=self.corpus.document_token,
        )
        self.batch, self.batches = self.streams.batch, self.streams.batches
        self._training = config.training

    def with_seed(self, seed: int) -> "TextDataset":
        """Return the batches of the same text that another seed draws."""
        config = self._config.model_copy(update={"seed": seed})
        return TextDataset(config, self.corpus)

    @property
    def spec(self) -> Vocabulary:
        """The vocabulary."""
        return self.corpus.vocabulary

    @property
    def description(self) -> dict[str, Any]:
        """Source, paths, sha256 of each file, and sizes."""
        return self.corpus.description

    @property
    def batch_axes(self) -> Batch:
        """Every field is `[T, B]`."""
        return Batch(1, 1, 1)  # pyright: ignore[reportArgumentType]

    @property
    def steps_per_epoch(self) -> int:
        """The number of windows of each stream in one pass over the text."""
        return self.streams.steps_per_epoch

    def eval_batches(self, *, full: bool = True) -> Iterable[Window | CountedWindow]:
        """Return consecutive windows that contain each validation target once."""
        windows = validation_windows(
            self.corpus.validation,
            streams=self._training.validation_streams,
            window=self._training.window,
            limit=None if full else self._training.validation_tokens,
            document_token=self.corpus.document_token,
        )
        is_character = self.spec.kind == "character"
        counts = None if is_character else self.spec.characters()
        if counts is None:
            return windows
        return (CountedWindow(*each, counts[each.targets]) for each in windows)


def batch_like(config: Config) -> Batch:
    """Return the types of a training batch."""
    import jax

    shape = (config.training.window, config.training.batch_size)
    of = functools.partial(jax.ShapeDtypeStruct, shape)
    return Batch(of(np.int32), of(np.int32), of(np.bool_))  # pyright: ignore
