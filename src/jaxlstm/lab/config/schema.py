"""The config models of all tasks, by the name of the task.

`Config()` is the quickstart, a language model. The keys of every run are in `base`, and
those of each task in a module of its own. The names of language modelling can be
imported from here too.
"""

from jaxlstm.lab.config.base import NAME_LENGTH as NAME_LENGTH
from jaxlstm.lab.config.base import EarlyStopping as EarlyStopping
from jaxlstm.lab.config.base import RunConfig as RunConfig
from jaxlstm.lab.config.base import Training as Training
from jaxlstm.lab.config.classification import ClassifyConfig, CTCConfig, TagConfig
from jaxlstm.lab.config.forecasting import ForecastConfig as ForecastConfig
from jaxlstm.lab.config.language_modelling import SUBWORD_SIZE as SUBWORD_SIZE
from jaxlstm.lab.config.language_modelling import Config as Config
from jaxlstm.lab.config.language_modelling import Data as Data
from jaxlstm.lab.config.language_modelling import (
    LanguageModelTraining as LanguageModelTraining,
)
from jaxlstm.lab.config.language_modelling import Model as Model
from jaxlstm.lab.config.language_modelling import PythonData as PythonData
from jaxlstm.lab.config.language_modelling import Sample as Sample
from jaxlstm.lab.config.language_modelling import TextData as TextData
from jaxlstm.lab.config.language_modelling import TokenData as TokenData
from jaxlstm.lab.config.memory import MemoryConfig as MemoryConfig
from jaxlstm.lab.config.recurrent import WRAPPERS as WRAPPERS
from jaxlstm.lab.config.recurrent import Recurrent as Recurrent

CONFIGS: dict[str, type[RunConfig]] = {
    "language_modelling": Config,
    "memory": MemoryConfig,
    "classify": ClassifyConfig,
    "tag": TagConfig,
    "ctc": CTCConfig,
    "forecast": ForecastConfig,
}
"""The config model of each task; a config without `task` is a language model's."""


def register(config: type[RunConfig]) -> None:
    """Register the config model of a task under the default of its field `task`."""
    CONFIGS[config.model_fields["task"].default] = config
