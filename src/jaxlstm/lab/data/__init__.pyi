from .corpus import Corpus as Corpus
from .sources import read as read
from .streams import Batch as Batch
from .streams import Streams as Streams
from .streams import Window as Window
from .streams import validation_windows as validation_windows
from .vocabulary import Vocabulary as Vocabulary
