#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times torch's attention beside broadhead_gpu_bench and joins both tables.

    gpu_peers.py BENCH.csv OUT.csv [OUT.png]

BENCH.csv is what `broadhead_gpu_bench cuda` printed in the same run. torch reads keys and values that were gathered into
contiguous memory beforehand: no paging. Needs torch with CUDA and triton; matplotlib for the plot."""

import csv
import itertools
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PEERS = {"torch flash": SDPBackend.FLASH_ATTENTION, "torch cuDNN": SDPBackend.CUDNN_ATTENTION}


def time_peer(row, backend):
    """Median microseconds of one call, or None where torch refuses."""
    batch, queries, context = int(row["batch"]), int(row["queries"]), int(row["context"])
    heads, kv_heads = map(int, row["heads"].split("/"))
    size, dtype = int(row["head_size"]), DTYPES.get(row["dtype"])
    if row["kind"] not in ("decode", "prefill") or row["cache"] != row["dtype"] or (1 < queries != context):
        return None
    if not dtype:  # neither takes float32
        return None
    q = torch.randn(batch, heads, queries, size, device="cuda", dtype=dtype)
    k = torch.randn(batch, kv_heads, context, size, device="cuda", dtype=dtype)
    v = torch.randn_like(k)
    causal = queries > 1

    def call():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)

    try:
        with sdpa_kernel(backend):
            call()
            return do_bench(call, warmup=20, rep=100, return_mode="median") * 1000
    except RuntimeError:
        return None


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(15, 6))
    for axis, kind, unit in ((axes[0], "decode", "fraction of copy bandwidth"), (axes[1], "prefill", "TFLOP/s")):
        chosen = [r for r in rows if r["kind"] == kind]
        labels = [
            f"{r['batch']} x {r['queries'] + ' on ' if kind == 'prefill' else ''}{r['context']} "
            f"{r['heads']} {r['head_size']} {r['dtype']}/{r['cache']} b{r['block_size']}"
            for r in chosen
        ]
        column = "of_limit" if kind == "decode" else "TFLOP/s"
        names = ["Broadhead (paged)", *PEERS]
        for n, name in enumerate(names):
            values = []
            for r in chosen:
                own = float(r[column])
                values.append(own if n == 0 else own * float(r["us"]) / float(r[name]) if r[name] else 0)
            axis.barh([i + 0.27 * n for i in range(len(chosen))], values, height=0.25, label=name)
        axis.set_yticks([i + 0.27 for i in range(len(chosen))], labels, fontsize=7)
        axis.invert_yaxis()
        axis.set_xlabel(unit)
        axis.set_title(kind)
        axis.legend(fontsize=8)
    figure.suptitle(f"{torch.cuda.get_device_name()}, second-level cache overwritten before each run")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    source, target, *picture = sys.argv[1:]
    with open(source) as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    # The second table is of whole steps.
    rows = list(itertools.takewhile(lambda row: row["kind"] != "kind", rows))
    for row in rows:
        for name, backend in PEERS.items():
            microseconds = time_peer(row, backend)
            row[name] = f"{microseconds:.2f}" if microseconds else ""
        print(",".join(row.values()), flush=True)
    with open(target, "w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    if picture:
        plot(rows, picture[0])


if __name__ == "__main__":
    main()
