"""Format, lint, types and import contracts, in one command: `python tests/lint.py`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["pyright", "--pythonpath", sys.executable],
    "imports": ["lint-imports"],
}


def main() -> int:
    """Run every check, whatever the others say; 0 if all of them pass."""
    failed = []
    for name, (tool, *arguments) in CHECKS.items():
        print(f"==> {name}", flush=True)
        if subprocess.run([BIN / tool, *arguments], cwd=ROOT, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
