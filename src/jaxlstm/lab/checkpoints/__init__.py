"""Checkpoints that are complete or invisible, with a hash of every array."""

from jaxlstm.lab.checkpoints.manifest import CheckpointError as CheckpointError
from jaxlstm.lab.checkpoints.manifest import DamagedCheckpoint as DamagedCheckpoint
from jaxlstm.lab.checkpoints.retention import best as best
from jaxlstm.lab.checkpoints.retention import clean as clean
from jaxlstm.lab.checkpoints.retention import forget_best as forget_best
from jaxlstm.lab.checkpoints.retention import mark_best as mark_best
from jaxlstm.lab.checkpoints.retention import prune as prune
from jaxlstm.lab.checkpoints.retention import steps as steps
from jaxlstm.lab.checkpoints.store import latest as latest
from jaxlstm.lab.checkpoints.store import read_meta as read_meta
from jaxlstm.lab.checkpoints.store import require_room as require_room
from jaxlstm.lab.checkpoints.store import restore as restore
from jaxlstm.lab.checkpoints.store import save as save
