"""What a config stands for, built and ready: data, model, optimizer."""

import os
from typing import Any, NamedTuple

import jax
import optax

from jaxlstm.lab import native
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config import Config
from jaxlstm.lab.data import Corpus, Streams, read
from jaxlstm.lab.parallel import splits
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.loop import TrainState, initial_state
from jaxlstm.layers import Layer


class Workbench(NamedTuple):
    """The parts of a run. Whatever is wrong with a config is found in building them."""

    config: Config
    corpus: Corpus
    streams: Streams
    model: Layer
    optimizer: optax.GradientTransformation

    @classmethod
    def of(cls, config: Config) -> "Workbench":
        """Read the data and build the model.

        Errors: `BadInput` for data that cannot be used, an optimizer that Optax does
        not take, and a model that does not fit the memory of this machine.
        """
        corpus = read(config.data)
        streams = Streams(
            corpus.train,
            batch_size=config.training.batch_size,
            window=config.training.window,
            seed=config.seed,
            document_token=corpus.document_token,
        )
        if config.sample.length:
            task.prompt(config.sample, config.data, corpus.vocabulary)
        try:
            if config.model.engine == "native":
                native.load()
            model = task.build(config.model, corpus.vocabulary.size)
            optimizer = optimizers.build(config.optimizer)
            bench = cls(config, corpus, streams, model, optimizer)
            bench.require_memory()
        except (ValueError, NotImplementedError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"model: {error}") from error
        return bench

    def start(self) -> TrainState:
        """The state before the first step."""
        return initial_state(
            self.model,
            self.optimizer,
            batch_size=self.config.training.batch_size,
            seed=self.config.seed,
        )

    def parameters(self) -> int:
        """How many numbers are learnt."""
        params = jax.eval_shape(self.start).params
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def epochs(self) -> float:
        """How often the training text is read."""
        return self.config.training.steps / self.streams.steps_per_epoch

    def copies(self) -> int:
        """The bytes that shards take besides: parameters and a gradient for each."""
        shards = splits.number(self.config.training)
        params = jax.eval_shape(self.start).params
        return 2 * shards * _bytes(params) if shards > 1 else 0

    def require_memory(self) -> None:
        """Refuse, before anything is drawn, a state that cannot fit this machine."""
        state = jax.eval_shape(self.start)
        needed = 2 * _bytes(state) + self.copies()  # before a step and after it
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise BadInput(
                f"model: {self.parameters():,} parameters need {needed / 1e9:,.0f} GB "
                f"to be trained, and this machine has {there / 1e9:,.0f} GB; lower "
                "model.hidden_size or model.layers"
            )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
