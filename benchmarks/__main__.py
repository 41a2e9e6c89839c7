"""`python -m benchmarks run | report | list`; see `--help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, harness, peers

RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; an invalid one prints one line and returns exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.function(arguments)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    selected = cases.select(_split(arguments.cases))
    names = peers.select(_split(arguments.peers))
    if arguments.seconds < 0:
        raise ValueError(f"--seconds: got {arguments.seconds:g}, expected 0 or more")
    cores = harness.use_cores(arguments.cores)
    RESULTS.mkdir(exist_ok=True)
    out = Path(arguments.out or RESULTS / f"cpu-{cores}-cores.json")
    if not out.parent.is_dir():
        raise ValueError(
            f"--out: got {out}, expected an existing directory, not {out.parent}"
        )
    harness.run(
        selected,
        names,
        seconds=arguments.seconds,
        cores=cores,
        peaks=not arguments.no_peaks,
        log=lambda text: print(text, flush=True),
        save=lambda result: out.write_text(harness.to_json(result)),
    )
    print(f"wrote {out}; python -m benchmarks report adds it to README.md")


def _split(given: str | None) -> list[str]:
    return [] if given is None else [w.strip() for w in given.split(",") if w.strip()]


def _report(arguments: argparse.Namespace) -> None:
    from benchmarks import report

    results = [Path(path) for path in arguments.results]
    for path in report.write(results or sorted(RESULTS.glob("*.json"))):
        print(f"wrote {path}")


def _list(arguments: argparse.Namespace) -> None:
    absent = peers.absent()
    for name in peers.FILES:
        print(f"contender  {name:18}{absent.get(name, '')}".rstrip())
    for case in cases.CASES:
        print(f"case       {case.name:34}{', '.join(case.measures)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure jaxlstm and other libraries, and write README.md.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="measure, and write results/NAME.json")
    run.set_defaults(function=_run)
    run.add_argument("--cases", metavar="A,B", help="groups or names; default all")
    run.add_argument("--peers", metavar="A,B", help="contenders; default all")
    run.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="seconds per contender of a case; default 4",
    )
    run.add_argument("--cores", type=int, metavar="N", help="default: all cores")
    run.add_argument("--out", metavar="JSON", help="default results/cpu-N-cores.json")
    run.add_argument(
        "--no-peaks", action="store_true", help="do not measure peak memory"
    )
    report = verbs.add_parser("report", help="results/*.json to README.md and plots")
    report.set_defaults(function=_report)
    report.add_argument("results", nargs="*", metavar="JSON", help="default all")
    list_ = verbs.add_parser("list", help="list contenders and cases")
    list_.set_defaults(function=_list)
    return parser


if __name__ == "__main__":
    sys.exit(main())
