"""`python -m benchmarks.worker REQUEST RESPONSE`: measure what a JSON file asks for."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Read the request, measure, and write the response."""
    request, response = map(Path, sys.argv[1:])
    from benchmarks.measure import run_request

    response.write_text(json.dumps(run_request(json.loads(request.read_text()))))


if __name__ == "__main__":
    main()
