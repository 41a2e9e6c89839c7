"""`jaxlstm sample`: generate text with a trained model."""

import argparse

from jaxlstm.lab.cli import common
from jaxlstm.lab.cli.common import Arguments, Verb


def _declare(parser: argparse.ArgumentParser) -> None:
    common.declare_run(parser)
    common.declare_moved_data(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="start of the text")
    parser.add_argument("--length", type=int, metavar="N", help="tokens to generate")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy decoding"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="sample from the K most likely tokens"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the most likely tokens with total probability P",
    )
    parser.add_argument(
        "--documents",
        type=int,
        metavar="N",
        help="end after N documents; 0 shows their ends and goes on",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--count",
        type=int,
        default=1,
        metavar="N",
        help="samples, with the seeds --seed, --seed + 1, ...; default: 1",
    )


def _run(arguments: Arguments) -> None:
    from jaxlstm.lab import runs
    from jaxlstm.lab._util.errors import BadInput
    from jaxlstm.lab._util.wording import join_names
    from jaxlstm.lab.data import encoding
    from jaxlstm.lab.runs import trained
    from jaxlstm.lab.sinks import formatting

    model = trained.load(
        arguments.run, overrides=arguments.overrides, report=common.warn
    )
    run = runs.open(model.run)
    if runs.finished(run) is None:
        common.warn(
            f"{run.path} is not finished ({runs.progress(run)}); this is the model of "
            f"step {model.step}"
        )
    prompt = arguments.prompt
    if arguments.count < 1:
        raise BadInput(f"--count: got {arguments.count}, expected at least 1")
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    texts = [
        model.sample(
            prompt,
            length=arguments.length,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            documents=arguments.documents,
            seed=seed,
        )
        for seed in seeds
    ]
    prompt = model.config.sample.prompt if prompt is None else prompt
    documents = "".join(encoding.split(prompt, model.config.data))
    if unknown := model.vocabulary.unknown(documents):
        common.warn(
            f"--prompt: {join_names(unknown[:5], last='and')} not in the model's "
            "vocabulary; read as the unknown token"
        )
    for seed, text in zip(seeds, texts, strict=True):
        if len(seeds) > 1:
            print(f"--- seed {seed} ---")
        print(formatting.printable(prompt + text))


VERB = Verb(
    help="generate text with a trained model",
    example='jaxlstm sample runs/a --prompt "class " --temperature 0.7 --top-p 0.95',
    declare=_declare,
    run=_run,
)
