# SPDX-License-Identifier: Apache-2.0
"""The command `broadhead-bench-peers`."""

import argparse
import contextlib
import os
import pathlib
import re
import statistics
import sys
import time

from broadhead_samples import command_line
from broadhead_samples.bench.cells import MODELS, Cell, Heads, Result, Rows, write_results
from broadhead_samples.bench.interleave import interleave, timed
from broadhead_samples.bench.library import Library
from broadhead_samples.bench.peers import PEERS, check
from broadhead_samples.bench.workload import OurSteps, random_steps

EXAMPLE = """\
examples:
  broadhead-bench-peers decode --model llama-3-8b --batch 8 --context 4096
  broadhead-bench-peers prefill --dtype float16,float32 --csv prefill.csv
  java -jar flink-job/target/broadhead.jar bench report prefill.csv
"""

#: Memory that keys and values may not take.
RESERVE = 1 << 30


def _list(of):
    def parse(text):
        return [of(part) for part in text.split(",")]

    return parse


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def _heads(text):
    try:
        return Heads.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _prompt(text):
    tokens = re.fullmatch(r"([1-9]\d*)(?:\+(\d+))?", text)
    if not tokens:
        raise argparse.ArgumentTypeError(f"expected NEW or NEW+OLD, as in 512+3584, got {text}")
    new, old = int(tokens[1]), int(tokens[2] or 0)
    return Rows(1, new, new + old)


def _dtype(text):
    if text not in ("float16", "bfloat16", "float32"):
        raise argparse.ArgumentTypeError(f"expected float16, bfloat16 or float32, got {text}")
    return text


def _parser():
    parser = command_line.parser(
        "broadhead-bench-peers",
        "Measures Broadhead's kernels, PyTorch and ONNX Runtime in turns, on the same numbers.",
        EXAMPLE,
    )
    parser.add_argument("mode", choices=["decode", "prefill", "mixed"])
    parser.add_argument(
        "--model",
        type=_list(_heads),
        default=list(MODELS.values()),
        metavar="NAME,...",
        help="models, or head shapes as HEADS/KV_HEADS/HEAD_SIZE; default: " + ", ".join(MODELS),
    )
    parser.add_argument(
        "--dtype",
        type=_list(_dtype),
        default=["float16"],
        metavar="TYPE,...",
        help="float16 (the default), bfloat16, float32",
    )
    parser.add_argument(
        "--batch",
        type=_list(_positive),
        metavar="N,...",
        help="sequences per step; default: 1,8,32 (decode), 8 (mixed)",
    )
    parser.add_argument(
        "--context",
        type=_list(_positive),
        metavar="TOKENS,...",
        help="tokens of each sequence in the cache; default: 512,4096,32768 (decode), 4096 (mixed)",
    )
    parser.add_argument(
        "--tokens",
        type=_list(_prompt),
        metavar="NEW[+OLD],...",
        help="prompt tokens, new and in the cache; default: 512,2048,512+3584 (prefill), 512 (mixed)",
    )
    parser.add_argument(
        "--threads",
        type=_list(_positive),
        default=[os.cpu_count()],
        metavar="N,...",
        help="CPU threads; default: one per core",
    )
    parser.add_argument(
        "--block-size",
        type=_positive,
        default=16,
        metavar="TOKENS",
        help="tokens per block of Broadhead's cache",
    )
    parser.add_argument(
        "--time", type=float, default=3, metavar="SECONDS", help="time for the samples of one cell"
    )
    parser.add_argument("--csv", type=pathlib.Path, metavar="FILE", help="also write the results as CSV")
    parser.add_argument(
        "--library",
        type=pathlib.Path,
        default=pathlib.Path("native/target/cmake/libbroadhead.so"),
        metavar="FILE",
        help="path of libbroadhead.so; default: where this repository's build puts it",
    )
    return parser


def steps(args):
    """The rows of the steps to measure."""
    if args.mode == "prefill":
        return [(row,) for row in args.tokens or map(_prompt, ("512", "2048", "512+3584"))]
    batches = args.batch or ([1, 8, 32] if args.mode == "decode" else [8])
    contexts = args.context or ([512, 4096, 32768] if args.mode == "decode" else [4096])
    chunks = args.tokens or [_prompt("512")]
    decodes = [Rows(batch, 1, context) for context in contexts for batch in batches]
    return [(row,) for row in decodes] if args.mode == "decode" else [(r, c) for r in decodes for c in chunks]


def cells(args):
    """The cells that the command line asks for."""
    return [
        Cell(args.mode, heads, dtype, args.block_size, rows, threads)
        for threads in args.threads
        for dtype in args.dtype
        for heads in args.model
        for rows in steps(args)
    ]


def _available_memory():
    for line in pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 - RESERVE
    return sys.maxsize


def measure(cell, library_path, budget):
    """Measures one cell; answers its results and a description of the peers."""
    # Ours, and the contiguous memory that the peers share.
    needed, available = 2 * cell.copies * cell.context_bytes, _available_memory()
    if needed > available:
        raise MemoryError(
            f"needs {needed / 1e9:.1f} GB for keys and values, {available / 1e9:.1f} GB are available"
        )
    inputs = random_steps(cell)
    with Library(library_path, cell.threads) as library, contextlib.ExitStack() as opened:
        ours = OurSteps(library, cell, inputs)
        own, others = ours.contenders()
        described = [library.describe()]
        for peer_class in PEERS:
            if reason := peer_class.refusal(cell):
                described.append(f"{peer_class.name} is left out: {reason}")
                continue
            peer = peer_class(cell, inputs)
            opened.callback(peer.close)
            described.append(peer.describe())
            check(peer.name, ours.output(0), peer.output(0), cell.dtype)
            others.append(timed(peer.name, "peer", peer.run))
        timings = interleave(own, others, budget)
    results = [
        Result(cell, t.contender.name, t.contender.kind, t.seconds, t.times_ours, t.samples, t.disturbed)
        for t in timings
    ]
    return results, described


def _line(results):
    """One cell as a line."""
    ours, others = results[0], results[1:]
    limits = [f"{r.times_ours:.2f} of {r.contender}" for r in others if r.kind == "limit"]
    peers = [f"{r.contender} {r.times_ours:.2f} times" for r in others if r.kind == "peer"]
    mark = ", disturbed" if ours.disturbed else ""
    return f"{ours.cell}: {ours.seconds * 1e3:.3g} ms, {', '.join(limits + peers)}{mark}"


def _progress(done, total, seconds):
    if sys.stderr.isatty():
        left = f", {seconds / done * (total - done):.0f} s left" if done else ""
        print(f"\r\033[K{done}/{total} cells{left}\r", end="", file=sys.stderr, flush=True)


def summary(results):
    """What the strongest peers come to: geometric mean and the least."""
    strongest = {}
    for result in results:
        if result.kind == "peer":
            strongest[result.cell] = min(result.times_ours, strongest.get(result.cell, float("inf")))
    if not strongest:
        return "no peer was measured"
    worst = min(strongest, key=strongest.get)
    mean = statistics.geometric_mean(strongest.values())
    return (
        f"times as fast as the strongest peer: {mean:.2f} in the geometric mean of {len(strongest)} cells, "
        f"{strongest[worst]:.2f} at least ({worst})"
    )


@command_line.command
def main(argv=None):
    """Command line entry; returns the exit code."""
    args = _parser().parse_args(argv)
    if not args.library.is_file():
        raise FileNotFoundError(f"--library {args.library}: no such file; './mvnw package' builds it")
    results, told, start = [], set(), time.monotonic()
    wanted = cells(args)
    for done, cell in enumerate(wanted):
        _progress(done, len(wanted), time.monotonic() - start)
        try:
            measured, described = measure(cell, args.library, args.time)
        except MemoryError as error:
            print(f"skipped {cell}: {error}", file=sys.stderr)
            continue
        for line in described:
            if line not in told:
                told.add(line)
                print(line, file=sys.stderr)
        print(_line(measured))
        results += measured
        if args.csv:
            write_results(args.csv, results)
    print(summary(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
