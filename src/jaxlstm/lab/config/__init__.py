"""Configs: read YAML into a frozen `Config`, and report errors with file and line."""

from jaxlstm.lab.config.loading import Config as Config
from jaxlstm.lab.config.loading import ConfigError as ConfigError
from jaxlstm.lab.config.loading import digest as digest
from jaxlstm.lab.config.loading import dump as dump
from jaxlstm.lab.config.loading import json_schema as json_schema
from jaxlstm.lab.config.loading import load as load
from jaxlstm.lab.config.schema import RunConfig as RunConfig
from jaxlstm.lab.config.schema import register as register
