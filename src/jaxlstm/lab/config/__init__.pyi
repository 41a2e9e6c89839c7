from .loading import Config as Config
from .loading import ConfigError as ConfigError
from .loading import digest as digest
from .loading import dump as dump
from .loading import json_schema as json_schema
from .loading import load as load
from .schema import RunConfig as RunConfig
from .schema import register as register
