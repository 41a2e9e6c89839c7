"""Streams of text: several users of a language model, each with a slot.

stream.generate(slot, prompt)  ->  pieces of text, one for each token drawn
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlstm.interop.inputs import inputs_of
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config import schema
from jaxlstm.lab.data import encoding
from jaxlstm.lab.data.vocabulary import Vocabulary
from jaxlstm.lab.serving import Chunk, Request, Stream
from jaxlstm.lab.tasks.language_modelling import generation
from jaxlstm.lab.tasks.language_modelling import model as models
from jaxlstm.layers.base import Layer

AHEAD = 8  # tokens of one call


class Draws(NamedTuple):
    """Tokens that a slot draws and reads.

    Attributes:
        slot: the slot.
        key: data of the random key.
        first: the number of the first token, which selects its key.
        length: the most tokens.
        documents: the number of documents after which the text ends.
        settings: options of the draws, arrays `[1]`.
    """

    slot: int
    key: np.ndarray
    first: int
    length: int
    documents: int
    settings: generation.Draw


class TextStream(Stream):
    """Slots that read and write text, and know where documents begin.

    `push` and `step` read tokens and return logits.

    Args:
        model: the model.
        params: its parameters.
        vocabulary: its vocabulary.
        config: the config, whose `sample` section has the defaults of `generate`.
        slots: the number of texts at a time.
    """

    def __init__(
        self,
        model: Layer,
        params: Any,
        vocabulary: Vocabulary,
        config: schema.Config,
        *,
        slots: int = 1,
    ) -> None:
        token = encoding.document_token(config.data, vocabulary)
        super().__init__(
            models.documents(model, token),
            params,
            slots=slots,
            inputs=inputs_of(model, params),
        )
        self.vocabulary, self.config = vocabulary, config
        self._document_token = generation.NO_TOKEN if token is None else token
        self._key_shape = generation.key_data(generation.key_of(0)).shape
        self._allowed = np.ones(vocabulary.size, bool)
        self._allowed[list(generation.never_drawn(vocabulary, token))] = False

    def generate(
        self,
        slot: int,
        prompt: str | None = None,
        *,
        seed: int = 0,
        ahead: int = AHEAD,
        **options: Any,
    ) -> Iterator[str]:
        """Return an iterator over the text that continues a prompt, token by token.

        The pieces joined are the result of `Trained.sample` with the same arguments.
        Slots that generate in several threads advance in the same calls.

        Args:
            slot: the slot.
            prompt: the beginning of a new text; None goes on with what the slot has
                read, from `push` or an earlier call.
            seed: seed of the draws.
            ahead: tokens of one call. If the iterator is left before its end, the slot
                has read up to this many tokens more than it returned.
            options: `length`, `temperature`, `top_k`, `top_p`, `documents`; None for
                those of the config.

        Raises:
            BadInput: an option is out of range, or the prompt cannot be encoded.
            LabError: the model returns NaN or infinity.
        """
        slot, key = self._slot(slot), generation.key_data(generation.key_of(seed))
        if not 1 <= ahead <= generation.WRITE:
            raise BadInput(
                f"stream: ahead: got {ahead}, expected 1 to {generation.WRITE}"
            )
        chosen = generation.choose(self.config, options | {"prompt": prompt})
        if prompt is not None:
            tokens = generation.prompt(chosen, self.config.data, self.vocabulary)
            self.reset(slot)
            self._run([Chunk(slot, np.asarray(tokens, np.int32), with_outputs=False)])
        elif self._fresh[slot]:
            raise BadInput(
                f"stream: slot {slot}: has read nothing, expected a prompt; pass one, "
                "or push tokens first"
            )
        return self._pieces(slot, key, chosen, ahead, continues=prompt is None)

    def _pieces(
        self, slot: int, key: Any, chosen: schema.Sample, ahead: int, *, continues: bool
    ) -> Iterator[str]:
        settings = generation.Draw.of(chosen.temperature, chosen.top_k, chosen.top_p)
        before = None if continues else chosen.prompt
        show = encoding.Decoder(self.config.data, self.vocabulary, before)
        left, drawn = chosen.documents or generation.ALL, 0
        while drawn < chosen.length and left:
            size = min(ahead, chosen.length - drawn)
            work = Draws(slot, key, drawn, size, left, settings)
            ((tokens, left),) = self._run([work])
            drawn += len(tokens)
            yield from map(show, tokens if left else tokens[:-1])
        if rest := show.end():
            yield rest

    def _execute(self, requests: list[Request]) -> None:
        chunks = [one for one in requests if isinstance(one.work, Chunk)]
        if chunks:
            super()._execute(chunks)
        draws = [one for one in requests if isinstance(one.work, Draws)]
        if draws:
            self._draw(draws)

    def warm_up(self) -> None:
        """Compile all programs, which otherwise the first calls wait for."""
        super().warm_up()
        with self._lock:
            for count in self._counts:
                self._write([], np.full(count, self.slots, np.int32))

    def _draw(self, requests: list[Request]) -> None:
        """Draw tokens in several slots; the result is the tokens, and `documents`."""
        places = self._places(one.work.slot for one in requests)
        written = self._write([one.work for one in requests], places)
        tokens, counts, left, finite = map(np.asarray, written)
        for n, one in enumerate(requests):
            if not finite[n]:
                one.error = generation.not_finite()
            one.result = tokens[: counts[n], n], int(left[n])

    def _write(self, draws: list[Draws], places: np.ndarray) -> generation.Written:
        size = len(places)
        keys = np.zeros((size, *self._key_shape), np.uint32)
        first, lengths, documents = np.zeros((3, size), np.int32)
        settings = generation.Draw(
            np.ones(size, np.float32),
            np.full(size, generation.ALL, np.int32),
            np.full(size, np.inf, np.float32),
        )
        for n, draw in enumerate(draws):
            keys[n], first[n] = draw.key, draw.first
            lengths[n], documents[n] = draw.length, draw.documents
            for array, value in zip(settings, draw.settings, strict=True):
                array[n] = value[0]
        self._rows, written = generation.write(
            self.model,
            self.params,
            self._rows,
            places,
            keys,
            first,
            lengths,
            documents,
            settings,
            self._allowed,
            self._document_token,
        )
        return written
