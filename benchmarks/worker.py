"""`python -m benchmarks.worker ORDER ANSWER`: run one order of the harness, in JSON."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Read the order, run it, and write the answer."""
    order, answer = (Path(word) for word in sys.argv[1:])
    from benchmarks.measure import carry_out

    answer.write_text(json.dumps(carry_out(json.loads(order.read_text()))))


if __name__ == "__main__":
    main()
