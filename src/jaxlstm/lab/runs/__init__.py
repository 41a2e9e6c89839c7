"""Run directories: creating, opening and locking one, its metrics and its weights.

Importing this package does not import JAX. Trained models are in `runs.trained`.
"""

from jaxlstm.lab.checkpoints.weights import export_weights as export_weights
from jaxlstm.lab.checkpoints.weights import load_weights as load_weights
from jaxlstm.lab.runs.directory import create as create
from jaxlstm.lab.runs.directory import finish as finish
from jaxlstm.lab.runs.directory import finished as finished
from jaxlstm.lab.runs.directory import is_run as is_run
from jaxlstm.lab.runs.directory import log as log
from jaxlstm.lab.runs.directory import open as open
from jaxlstm.lab.runs.directory import progress as progress
from jaxlstm.lab.runs.directory import read_config as read_config
from jaxlstm.lab.runs.directory import read_overrides as read_overrides
from jaxlstm.lab.runs.directory import write_config as write_config
from jaxlstm.lab.runs.environment import describe_environment as describe_environment
from jaxlstm.lab.runs.environment import write_environment as write_environment
from jaxlstm.lab.runs.locking import lock as lock
from jaxlstm.lab.runs.metrics import append as append
from jaxlstm.lab.runs.metrics import read_metrics as read_metrics
from jaxlstm.lab.runs.metrics import truncate_metrics as truncate_metrics
from jaxlstm.lab.runs.paths import Run as Run
