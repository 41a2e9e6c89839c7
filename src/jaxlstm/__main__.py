"""`python -m jaxlstm` is the command `jaxlstm`."""

from jaxlstm.lab.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
