# SPDX-License-Identifier: Apache-2.0
"""Tests of the benchmark that need no peers."""

import contextlib
import csv
import importlib.util
import io
import itertools
import pathlib
import tempfile
import unittest
from unittest import mock

import numpy as np

from broadhead_samples import dtypes
from broadhead_samples.bench import cells, interleave, main, peers, workload
from broadhead_samples.bench.library import Library
from support import quietly

LIBRARY = pathlib.Path(__file__).parents[3] / "native/target/cmake/libbroadhead.so"
HEADS = cells.Heads("4/2/32", 4, 2, 32)


def decode(batch, context, dtype="float16"):
    """A decode cell."""
    return cells.Cell("decode", HEADS, dtype, 16, (cells.Rows(batch, 1, context),), 2)


def attend(part, dtype="float16"):
    """Causal attention in float64, [batch * tokens, num_heads, head_size]."""
    query, key, value = (dtypes.decode(x, dtype).astype(float) for x in (part.query, part.key, part.value))
    tokens, context = query.shape[1], key.shape[2]
    key, value = (np.repeat(x, HEADS.group_size, axis=1) for x in (key, value))
    scores = np.einsum("bthd,bhjd->bhtj", query, key) * HEADS.head_size**-0.5
    seen = np.arange(context) <= np.arange(context - tokens, context)[:, None]
    weights = np.where(seen, np.exp(scores), 0)
    output = np.einsum("bhtj,bhjd->bthd", weights / weights.sum(-1, keepdims=True), value)
    return output.reshape(-1, HEADS.num_heads, HEADS.head_size)


class LoopPeer:
    """A peer that needs no library, and is as far from right as `off` says."""

    name = "loop"
    off = 0.0

    def __init__(self, cell, steps):
        self._steps = steps

    @staticmethod
    def refusal(cell):
        """It has no float32."""
        return "it has no float32" if cell.dtype == "float32" else None

    def describe(self):
        """What it is."""
        return "loops"

    def run(self):
        """Does nothing."""

    def output(self, copy):
        """The output of a step, [tokens of all rows, num_heads, head_size]."""
        return np.concatenate([attend(part) for part in self._steps[copy]]) + self.off

    def close(self):
        """Has nothing to give back."""


class CellsTest(unittest.TestCase):
    """Sizes, names and the results file."""

    def test_sizes(self):
        cell = decode(3, 100)
        self.assertEqual(cell.context_bytes, 2 * 300 * 2 * 32 * 2)
        self.assertEqual(cell.flops, 4 * 300 * 4 * 32)
        self.assertEqual(cell.copies, 64)
        prompt = cells.Cell("prefill", HEADS, "float32", 16, (cells.Rows(1, 3, 5),), 2)
        self.assertEqual(prompt.flops, 4 * (3 + 4 + 5) * 4 * 32)
        self.assertEqual(prompt.copies, 4)

    def test_heads_have_names_or_sizes(self):
        self.assertEqual(cells.Heads.parse("gpt-2").num_heads, 12)
        self.assertEqual(cells.Heads.parse("4/2/32"), HEADS)
        for text in ("gpt-9", "4/3/32", "4/0/32"):
            with self.assertRaisesRegex(ValueError, "expected llama-3-8b"):
                cells.Heads.parse(text)

    def test_results_file(self):
        mixed = cells.Cell("mixed", HEADS, "bfloat16", 16, (cells.Rows(8, 1, 64), cells.Rows(1, 5, 5)), 2)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "results.csv"
            cells.write_results(path, [cells.Result(mixed, "torch", "peer", 0.002, 3.5, 9, True)])
            with path.open(newline="", encoding="utf-8") as file:
                (row,) = csv.DictReader(file)
        self.assertEqual((row["rows"], row["microseconds"], row["disturbed"]), ("8x1@64+1x5@5", "2000", "1"))
        self.assertEqual(float(row["tokens_per_s"]), 13 / 0.002)

    def test_options_that_are_wrong_are_told(self):
        for options, message in (
            ("--batch 0", "expected 1 or more, got 0"),
            ("--model gpt-9", "expected llama-3-8b, .* or HEADS/KV_HEADS/HEAD_SIZE, got gpt-9"),
            ("--tokens 5+", r"expected NEW or NEW\+OLD, as in 512\+3584, got 5\+"),
            ("--dtype int8", "expected float16, bfloat16 or float32, got int8"),
        ):
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as told:
                main._parser().parse_args(["decode", *options.split()])
            self.assertRegex(told.getvalue(), f"argument {options.split()[0]}: {message}")

    def test_options_make_cells(self):
        args = main._parser().parse_args(["decode", "--batch", "1,8", "--context", "64,128"])
        self.assertEqual(len(main.cells(args)), 5 * 4)
        args = main._parser().parse_args(["prefill", "--model", "4/2/32", "--tokens", "20,8+30"])
        self.assertEqual([str(cell.rows[0]) for cell in main.cells(args)], ["1x20@20", "1x8@38"])
        args = main._parser().parse_args(["mixed", "--model", "4/2/32", "--batch", "2", "--tokens", "20"])
        self.assertEqual([tuple(map(str, cell.rows)) for cell in main.cells(args)], [("2x1@4096", "1x20@20")])


class InterleaveTest(unittest.TestCase):
    """Ratios of neighbours."""

    def test_ratios_survive_a_machine_that_slows_down(self):
        clock = itertools.count(1000)

        def contender(name, kind, cost):
            return interleave.Contender(name, kind, lambda: cost * next(clock))

        ours, peer = contender("ours", "ours", 2e-4), contender("torch", "limit", 7e-4)
        timings = interleave.interleave(ours, [peer], 0.001)
        self.assertEqual([timing.contender.name for timing in timings], ["ours", "torch"])
        self.assertAlmostEqual(timings[1].times_ours, 3.5, delta=0.01)
        self.assertGreaterEqual(timings[1].samples, 3)

    def test_summary_takes_the_strongest_peer(self):
        results = [
            cells.Result(cell, name, "peer", 1.0, times, 3, False)
            for cell, name, times in (
                (decode(1, 64), "torch", 9.0),
                (decode(1, 64), "onnxruntime", 2.0),
                (decode(8, 64), "torch", 8.0),
            )
        ]
        self.assertEqual(
            main.summary(results),
            "times as fast as the strongest peer: 4.00 in the geometric mean of 2 cells, 2.00 at least "
            "(decode 4/2/32 float16 1x1@64, 2 threads)",
        )


@unittest.skipUnless(LIBRARY.is_file(), f"{LIBRARY} was not built")
class LibraryTest(unittest.TestCase):
    """The C ABI by ctypes."""

    def test_steps_attend_to_what_they_were_given(self):
        rows = (cells.Rows(3, 1, 50), cells.Rows(1, 20, 37))
        cell = cells.Cell("mixed", HEADS, "float16", 16, rows, 2)
        inputs = workload.random_steps(cell)
        with Library(LIBRARY, 2) as library:
            ours = workload.OurSteps(library, cell, inputs)
            for copy in (0, 1, 0):
                expected = np.concatenate([attend(part) for part in inputs[copy]])
                np.testing.assert_allclose(ours.output(copy), expected, atol=2e-3)
            own, limits = ours.contenders()
            self.assertEqual([limit.name for limit in limits], ["read", "fma"])
            for contender in (own, *limits):
                self.assertGreater(contender.run(), 0)

    def measure(self, *options):
        """Exit code, output and diagnostics of the command for small cells beside a LoopPeer."""
        args = ["decode", "--model", "4/2/32", "--batch", "1", "--context", "40", "--time", "0.01"]
        with mock.patch.object(main, "PEERS", [LoopPeer]), mock.patch.object(interleave, "WARM_UP", 0):
            told = io.StringIO()
            with contextlib.redirect_stderr(told):
                code, text = quietly(main.main, [*args, "--library", str(LIBRARY), *options])
        return code, text, told.getvalue()

    def test_the_command_tells_and_writes_what_it_measured(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "results.csv")
            code, text, told = self.measure(
                "--dtype", "float16,float32", "--csv", str(path), "--threads", "1"
            )
            self.assertEqual(code, 0)
            first, second, summary = text.splitlines()
            limits = r"[\d.]+ ms, [\d.]+ of read, [\d.]+ of fma"
            mark = "(, disturbed)?"
            self.assertRegex(
                first, rf"\Adecode 4/2/32 float16 1x1@40, 1 threads: {limits}, loop [\d.]+ times{mark}\Z"
            )
            self.assertRegex(second, rf"\Adecode 4/2/32 float32 1x1@40, 1 threads: {limits}{mark}\Z")
            self.assertRegex(summary, "mean of 1 cells, .* at least .decode 4/2/32 float16 1x1@40, 1 threads")
            self.assertRegex(
                told,
                r"\Abackend cpu, tier \w+, 1 threads, .*\nloops\nloop is left out: it has no float32\n\Z",
            )
            with path.open(newline="", encoding="utf-8") as file:
                rows = [(row["dtype"], row["contender"], row["kind"]) for row in csv.DictReader(file)]
        ours = [("broadhead", "ours"), ("read", "limit"), ("fma", "limit")]
        expected = [("float16", *of) for of in (*ours, ("loop", "peer"))] + [("float32", *of) for of in ours]
        self.assertEqual(rows, expected)

    def test_times_of_other_results_are_not_compared(self):
        for off in (0.01, np.nan):
            with mock.patch.object(LoopPeer, "off", off):
                code, _, told = self.measure()
            self.assertEqual(code, 1)
            self.assertIn(f"loop: its result differs from ours by {off:.2g}", told)

    def test_what_does_not_fit_is_skipped(self):
        with mock.patch.object(main, "_available_memory", lambda: 1000):
            code, text, told = self.measure()
        self.assertEqual((code, text), (0, "no peer was measured\n"))
        self.assertRegex(
            told, r"\Askipped decode .*: needs 0.0 GB for keys and values, 0.0 GB are available\n\Z"
        )
        code, _, told = self.measure("--library", "nowhere.so")
        self.assertEqual(code, 1)
        self.assertIn("--library nowhere.so: no such file; './mvnw package' builds it", told)

    @unittest.skipUnless(
        all(importlib.util.find_spec(name) for name in ("torch", "onnxruntime", "onnx")),
        "the extra is not there",
    )
    def test_peers_attend_to_the_same(self):
        for rows in ((cells.Rows(3, 1, 50),), (cells.Rows(2, 20, 20), cells.Rows(1, 7, 37))):
            for dtype in ("float32", "float16", "bfloat16"):
                cell = cells.Cell("mixed", HEADS, dtype, 16, rows, 1)
                inputs = workload.random_steps(cell)
                for peer_class in peers.PEERS:
                    if peer_class.refusal(cell):
                        continue
                    with self.subTest(peer_class.name, rows=rows, dtype=dtype):
                        peer = peer_class(cell, inputs)
                        for copy in (0, 1):
                            expected = np.concatenate([attend(part, dtype) for part in inputs[copy]])
                            peers.check(peer.name, expected, peer.output(copy), dtype)
                        peer.run()
                        self.assertIn(peer.name, peer.describe())
                        peer.close()

    def test_what_is_refused_is_told(self):
        with (
            Library(LIBRARY, 1) as library,
            self.assertRaisesRegex(ValueError, "bh_cache_create: .*block_size"),
        ):
            library.cache(4, 17, 2, 32, "float16")
        with (
            mock.patch("broadhead_samples.bench.library.ABI_VERSION", 99),
            self.assertRaisesRegex(ValueError, "libbroadhead.so: expected ABI version 99, got "),
        ):
            Library(LIBRARY, 1)


if __name__ == "__main__":
    unittest.main()
