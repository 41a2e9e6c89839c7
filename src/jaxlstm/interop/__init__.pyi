from . import layout as layout
