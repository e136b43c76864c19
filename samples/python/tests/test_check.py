# SPDX-License-Identifier: Apache-2.0
"""Tests of the reference and of the comparison with it."""

import contextlib
import io
import pathlib
import tempfile
import unittest

import numpy as np
import pyarrow as pa

from broadhead_samples import check, consume, jobfile, produce
from support import quietly, write_output

FEATURES = [
    "",
    "--dtype float32 --sliding-window 20 --alibi",
    "--dtype bfloat16 --logits-soft-cap 5 --sinks --return-lse",
    "--kv-cache-dtype fp8 --k-scale 0.037 --v-scale 0.011 --dtype bfloat16",
    "--rope gptj --rotary-dim 32 --share-kv",
    "--attn-type encoder --sliding-window 7 --sinks",
    "--attn-type encoder_decoder --string-ids",
    "--format stream --compression zstd",
    "--managed --compression lz4",
    "--managed --beams 2 --shared-prefix 20 --layers 3",
    "--managed --share-kv --string-ids",
]


class ReferenceTest(unittest.TestCase):
    """The reference."""

    def test_result_does_not_depend_on_chunking(self):
        layer = {"name": "a", "num_heads": 4, "num_kv_heads": 2, "head_size": 32, "sliding_window": 9}
        rng = np.random.default_rng(0)
        q, k, v = (rng.standard_normal((40, h, 32)) for h in (4, 2, 2))
        outputs = []
        for chunk in (40, 7, 1):
            reference = check.Reference({"kv_cache": {"block_size": 16}, "layers": [layer]})
            blocks = produce.BlockAllocator(8, 16, seed=chunk)
            rows = []
            for at in range(0, 40, chunk):
                part = slice(at, min(at + chunk, 40))
                slots = blocks.append("s", len(k[part]))
                builder = produce.StepBatchBuilder("float32")
                builder.add(
                    "s",
                    query=q[part],
                    key=k[part],
                    value=v[part],
                    seq_len=part.stop,
                    slot_mapping=slots,
                    block_table=blocks.table("s"),
                )
                rows.append(reference.step(builder.build())[0].output)
            outputs.append(np.concatenate(rows))
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-12)
        np.testing.assert_allclose(outputs[0], outputs[2], atol=1e-12)

    def test_every_feature_compares_equal_with_itself_and_not_when_moved(self):
        for options in FEATURES:
            with self.subTest(options), tempfile.TemporaryDirectory() as folder:
                small = [
                    folder,
                    "--sequences",
                    "3",
                    "--steps",
                    "5",
                    "--max-prompt",
                    "20",
                    "--head-size",
                    "32",
                ]
                self.assertEqual(quietly(produce.main, small + options.split())[0], 0)
                job, steps = str(pathlib.Path(folder, "job.yaml")), str(pathlib.Path(folder, "steps.arrow"))
                rows = list(check.reference_rows(jobfile.load_job(job), steps))
                result = str(pathlib.Path(folder, "result.arrow"))
                write_output(result, rows)
                self.assertEqual(quietly(check.main, ["--job", job, "--steps", steps, result])[0], 0)
                write_output(result, rows, shift=0.1)
                code, text = quietly(check.main, ["--job", job, "--steps", steps, result])
                self.assertEqual(code, 1)
                self.assertIn("error 0.", text)
                write_output(result, rows[1:])
                code, text = quietly(check.main, ["--job", job, "--steps", steps, result])
                self.assertEqual(code, 1)
                self.assertIn("missing in the result", text)

    def test_rows_without_queries_update_the_cache(self):
        layer = {"name": "a", "num_heads": 4, "num_kv_heads": 2, "head_size": 32}
        rng = np.random.default_rng(0)
        query, key, value = (rng.standard_normal((8, heads, 32)) for heads in (4, 2, 2))
        outputs = []
        for parts in ((slice(0, 8),), (slice(0, 5), slice(5, 8))):
            reference = check.Reference({"layers": [layer]})
            for part in parts:
                now = query[part] if part.stop == 8 else query[:0]
                builder = produce.StepBatchBuilder()
                builder.add(1, query=now, key=key[part], value=value[part], seq_len=part.stop)
                row = reference.step(builder.build())[0]
                self.assertEqual(row.output.shape, now.shape)
                self.assertEqual(row.lse.shape, now.shape[:2])
                rows = check.keyed([row])
                self.assertEqual(check.Comparison().run(rows, rows).problems, [])
            outputs.append(row.output[-3:])
        np.testing.assert_array_equal(outputs[0], outputs[1])

    def test_batches_without_rows_have_no_results(self):
        layer = {"name": "a", "num_heads": 2, "num_kv_heads": 1, "head_size": 32}
        builder = produce.StepBatchBuilder(layer="a").add(1, query=np.zeros((2, 2, 32)))
        reference = check.Reference({"layers": [layer]})
        self.assertEqual(reference.step(builder.build().slice(0, 0)), [])

    def test_the_tolerance_is_the_given_one(self):
        with tempfile.TemporaryDirectory() as folder:
            result, expected = (str(pathlib.Path(folder, name)) for name in ("r.arrow", "e.arrow"))
            row = consume.ResultRow(5, "a", np.ones((2, 1, 4), np.float32), None, "float32", {})
            write_output(result, [row], shift=1e-6)
            field, output = produce.tensor_list([row.output], (1, 4), "float32", "expected")
            schema = pa.schema([("sequence_id", pa.int64()), ("layer", pa.utf8()), field])
            batch = pa.RecordBatch.from_arrays([pa.array([5]), pa.array(["a"]), output], schema=schema)
            produce.write_ipc(expected, [batch])
            compare = ["--expected", expected, result]
            self.assertEqual(quietly(check.main, compare)[0], 0)
            self.assertEqual(quietly(check.main, [*compare, "--tolerance", "0"])[0], 1)
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                check.main([*compare, "--tolerance", "nan"])


if __name__ == "__main__":
    unittest.main()
