"""Read text into NumPy batches of token ids. This package does not import JAX."""

from jaxlstm.lab.data.corpus import Corpus as Corpus
from jaxlstm.lab.data.sources import read as read
from jaxlstm.lab.data.streams import Batch as Batch
from jaxlstm.lab.data.streams import Streams as Streams
from jaxlstm.lab.data.streams import Window as Window
from jaxlstm.lab.data.streams import validation_windows as validation_windows
from jaxlstm.lab.data.vocabulary import Vocabulary as Vocabulary
