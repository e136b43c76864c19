# SPDX-License-Identifier: Apache-2.0
"""Tests of the sample package that need neither Broadhead nor a model."""

import contextlib
import io
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import pyarrow as pa

from broadhead_samples import check, consume, dtypes, jobfile, produce
from broadhead_samples.rope import rotate

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


def quietly(function, *args):
    """Calls a command's main without its output; returns (exit code, output)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = function(*args)
    return code, out.getvalue()


def write_output(path, rows, dtype="float32", shift=0.0):
    """Writes ResultRows as a result file, one row a batch, every value moved by `shift`."""
    batches = []
    for row in rows:
        field, output = produce.tensor_list([row.output + shift], row.output.shape[1:], dtype, "output")
        ids, layers = pa.array([row.sequence_id]), pa.array([row.layer])
        schema = pa.schema([("sequence_id", ids.type), ("layer", pa.utf8()), field])
        batches.append(pa.RecordBatch.from_arrays([ids, layers, output], schema=schema))
    produce.write_ipc(path, batches)


class DtypesTest(unittest.TestCase):
    """Conversions between floats and stored bits."""

    def test_every_float8_code_survives(self):
        for dtype in ("float8_e4m3fn", "float8_e5m2"):
            values = dtypes.decode(np.arange(256, dtype=np.uint8), dtype)
            finite = np.isfinite(values)
            codes = dtypes.encode(values, dtype)
            np.testing.assert_array_equal(codes[finite], np.arange(256)[finite])

    def test_float8_rounds_to_even_and_saturates(self):
        values = np.array([0.0, 17.0, 19.0, 1e9, -1e9, np.inf, 2.0**-10, 1.5 * 2.0**-9])
        got = dtypes.decode(dtypes.encode(values, "float8_e4m3fn"), "float8_e4m3fn")
        np.testing.assert_array_equal(got, [0.0, 16.0, 20.0, 448.0, -448.0, 448.0, 0.0, 2.0**-8])
        self.assertTrue(np.isnan(dtypes.decode(dtypes.encode(np.nan, "float8_e4m3fn"), "float8_e4m3fn")))

    def test_bfloat16_rounds_to_even(self):
        values = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, np.inf, np.nan], np.float32)
        got = dtypes.decode(dtypes.encode(values, "bfloat16"), "bfloat16")
        np.testing.assert_array_equal(got, [1.0, 1.0, 1 + 2.0**-6, np.inf, np.nan])


class JobFileTest(unittest.TestCase):
    """The YAML subset."""

    def test_reads_what_it_writes(self):
        job = {
            "kv_cache": {"block_size": 16, "num_blocks": 64, "dtype": "auto"},
            "layers": [
                {"name": "a.0", "num_heads": 2, "head_size": 64, "scale": 1e-05, "sinks": [1.0, -0.5]},
                {"name": "b", "num_heads": 4, "rope": {"rotary_dim": 32, "rope_scaling": {"factor": 2.0}}},
            ],
        }
        self.assertEqual(job, jobfile.parse(jobfile.dump_job(job, "a comment: with [brackets")))

    def test_reads_block_style(self):
        text = """
# comment
layers:
- name: 'a # b'   # trailing
  sinks:
    - 1
    - 2.5
  alibi_slopes: [0.5,
                 0.25]
"""
        expected = {"layers": [{"name": "a # b", "sinks": [1, 2.5], "alibi_slopes": [0.5, 0.25]}]}
        self.assertEqual(expected, jobfile.parse(text))

    def test_names_the_line_of_what_it_cannot_read(self):
        for text in ("a: 1\nb: &x 2", "a: 1\nb", "a: 1\nb: [1, 2", "a: 1\na: 2"):
            with self.assertRaisesRegex(ValueError, "job.yaml:2"):
                jobfile.parse(text)

    def test_knows_the_keys_of_the_reference_page(self):
        page = pathlib.Path(__file__).parents[3] / "docs/reference/job-file.md"
        sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.M)
        keys = {s.split("`")[1]: set(re.findall(r"^\| `(\w+)`", s, re.M)) for s in sections if s[0] == "`"}
        self.assertEqual(keys["kv_cache"], set(jobfile._KV_CACHE))
        self.assertEqual(keys["layers[]"], set(jobfile._LAYER))

    def test_null_counts_as_absent(self):
        job = jobfile.checked(jobfile.parse("layers: [{name: a, num_heads: 4, head_size: 32, scale: null}]"))
        self.assertEqual(job["layers"], [{"name": "a", "num_heads": 4, "head_size": 32, "num_kv_heads": 4}])

    def test_what_is_wrong_is_named(self):
        for wrong, message in {
            "scal: 1.0": r"layers\[0\].scal: unknown key",
            "scale: .nan": r"layers\[0\].scale: expected a finite number, got '.nan'",
            "scale: 1e999": r"layers\[0\].scale: expected a finite number, got inf",
            "sinks: [1, x]": r"layers\[0\].sinks: expected a list of finite numbers",
            "attn_type: x": r"layers\[0\].attn_type: expected one of decoder, .*, got x",
            "return_lse: 1": r"layers\[0\].return_lse: expected true or false, got 1",
            "num_kv_heads: 3": r"layers\[0\].num_kv_heads: expected a number that divides 4, got 3",
        }.items():
            text = f"layers: [{{name: a, num_heads: 4, head_size: 32, {wrong}}}]"
            with self.subTest(wrong), self.assertRaisesRegex(ValueError, message):
                jobfile.checked(jobfile.parse(text))


class BatchesTest(unittest.TestCase):
    """Building and reading batches."""

    def test_slices_and_nulls_read_right(self):
        rng = np.random.default_rng(0)
        rows = [rng.standard_normal((n, 2, 4)).astype(np.float32) for n in (3, 0, 2, 5)]
        builder = produce.StepBatchBuilder("float32", "a")
        for i, row in enumerate(rows):
            builder.add(i, query=row, key=None if i == 1 else row, value=None if i == 1 else row, seq_len=9)
        batch = builder.build()
        for start in range(4):
            part = batch.slice(start)
            for name in ("query", "key"):
                got, dtype = consume.tensor_rows(part, name)
                self.assertEqual(dtype, "float32")
                for want, row in zip(rows[start:], got, strict=True):
                    np.testing.assert_array_equal(want, row)
        self.assertTrue(batch.column("key")[1].as_py() is None)

    def test_wrong_shapes_are_explained(self):
        builder = produce.StepBatchBuilder()
        builder.add(1, query=np.zeros((2, 2, 4))).add(2, query=np.zeros((2, 3, 4)))
        with self.assertRaisesRegex(
            ValueError, r"column query, row 1: expected \[n, 2, 4\], got \[2, 3, 4\]"
        ):
            builder.build()
        with self.assertRaisesRegex(ValueError, "row 0: slot_mapping has 1 entries for 2 keys"):
            zeros = np.zeros((2, 1, 4))
            produce.StepBatchBuilder().add(1, key=zeros, value=zeros, slot_mapping=[1])

    def test_values_that_would_be_changed_are_refused(self):
        query = np.zeros((1, 2, 4))
        for columns, message in (
            ({"slot_mapping": [1.5], "key": query, "value": query}, "slot_mapping, row 0: expected integers"),
            ({"block_table": [[1]]}, "block_table, row 0: expected integers"),
            ({"seq_len": 1.5}, "seq_len, row 0: expected integers"),
            ({"seq_len": 2**31}, "seq_len, row 0: expected int32, got 2147483648"),
            (
                {"slot_mapping": np.array([2**63], np.uint64), "key": query, "value": query},
                "slot_mapping, row 0: expected int64, got 9223372036854775808",
            ),
            ({"block_table": [7, -(2**31) - 1]}, "block_table, row 0: expected int32, got -2147483649"),
            ({"token_ids": [2**64 - 1]}, "token_ids, row 0: expected int64, got 18446744073709551615"),
            ({"sequence_id": 2**63}, "sequence_id, row 0: expected int64, got 9223372036854775808"),
            (
                {"sequence_group": np.uint64(2**63)},
                "sequence_group, row 0: expected int64, got 9223372036854775808",
            ),
            (
                {"parent_sequence_id": "a"},
                "parent_sequence_id, row 0: expected int64 as in sequence_id, got 'a'",
            ),
            ({"query": query[0]}, r"query: expected \[n, heads, head_size\], got \[2, 4\]"),
            ({"sequence_id": 1.5}, "sequence_id: expected integers in all rows, or text in all"),
            ({"sequence_id": None}, "sequence_id: expected integers in all rows, or text in all"),
        ):
            row = {"sequence_id": 1, "query": query, **columns}
            with self.subTest(message), self.assertRaisesRegex(ValueError, f"column {message}"):
                produce.StepBatchBuilder().add(**row).build()

    def test_files_are_complete_or_absent(self):
        one, other = (
            produce.StepBatchBuilder(dtype).add(1, query=np.zeros((1, 2, 4))).build()
            for dtype in ("float16", "float32")
        )
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "steps.arrow")
            for bad in ([], [one, other]):
                with self.assertRaises(ValueError):
                    produce.write_ipc(path, bad)
                self.assertEqual(list(path.parent.iterdir()), [])
            produce.write_ipc(path, [one])
            self.assertEqual(list(path.parent.iterdir()), [path])

    def test_files_are_read_in_the_order_of_the_other_commands(self):
        with tempfile.TemporaryDirectory() as folder:
            names = ["step-10.arrow", "b/step-11.arrow", "step-2.arrow", ".hidden", "_side", "c.arrow.tmp-1"]
            for name in reversed(names):
                path = pathlib.Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.touch()
            for sub_folders, expected in ((False, [names[0], names[2]]), (True, names[:3])):
                found = consume.files_of(folder, sub_folders)
                self.assertEqual([str(file.relative_to(folder)) for file in found], expected)

    def test_blocks_are_distinct_and_come_back(self):
        blocks = produce.BlockAllocator(num_blocks=4, block_size=16, seed=1)
        slots = np.concatenate([blocks.append("a", 17), blocks.append("b", 16), blocks.append("a", 1)])
        self.assertEqual(len(set(slots.tolist())), 34)
        self.assertEqual(list(blocks.table("a")), [slots[0] // 16, slots[16] // 16])
        with self.assertRaisesRegex(ValueError, "all 4 blocks"):
            blocks.append("c", 17)
        blocks.free("a")
        self.assertEqual(len(blocks.append("c", 16)), 16)


class CheckTest(unittest.TestCase):
    """The reference and the comparison."""

    def test_rope_keeps_lengths_and_depends_on_distance_only(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, 1, 64))
        y = rng.standard_normal((1, 1, 64))
        for neox in (True, False):
            rope = {"rotary_dim": 48, "max_position": 100, "is_neox": neox}
            near = rotate(x, [3], rope) @ rotate(y, [5], rope)[0].T
            far = rotate(x, [73], rope) @ rotate(y, [75], rope)[0].T
            np.testing.assert_allclose(near, far, atol=1e-12)

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

    def test_consume_prints_and_saves(self):
        with tempfile.TemporaryDirectory() as folder:
            result, saved = str(pathlib.Path(folder, "r.arrow")), str(pathlib.Path(folder, "r.npz"))
            rows = [consume.ResultRow(5, "a", np.ones((2, 1, 4), np.float32), None, "float32", {})]
            write_output(result, rows, "bfloat16")
            code, text = quietly(consume.main, [result, "--npz", saved])
            self.assertEqual(code, 0)
            self.assertIn("1 rows, 1 sequence and layer pairs, 2 tokens", text)
            np.testing.assert_array_equal(np.load(saved)["a/5/0"], np.ones((2, 1, 4)))

    def test_help_tells_defaults_and_an_example(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), self.assertRaises(SystemExit):
            produce.main(["--help"])
        self.assertIn("blocks of a layer's pool (default: 256)", out.getvalue())
        self.assertIn("\n  broadhead-produce --dtype bfloat16", out.getvalue())
        self.assertNotIn("None", out.getvalue())
        for action in produce._parser()._actions:
            self.assertTrue(action.help, action.option_strings)

    def test_interrupts_and_closed_pipes_need_no_words(self):
        for raised, code in ((KeyboardInterrupt, 130), (BrokenPipeError, 1)):
            with self.subTest(raised.__name__):
                script = f"""
from broadhead_samples import command_line

@command_line.command
def main(argv=None):
    raise {raised.__name__}

raise SystemExit(main())
"""
                done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
                self.assertEqual((done.returncode, done.stderr), (code, ""))

    def assert_told(self, main, args, message):
        """The command ends with 1, and one line that has `message`."""
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            code, _ = quietly(main, args)
        self.assertEqual(code, 1)
        self.assertRegex(told.getvalue(), rf"\A[^\n]*{message}[^\n]*\n\Z")

    def test_mistakes_are_told_in_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assert_told(consume.main, ["nowhere.arrow"], "nowhere.arrow")
            self.assert_told(consume.main, [folder], "expected result rows, got none")
            text = pathlib.Path(folder, "text.arrow")
            text.write_text("no batches")
            self.assert_told(consume.main, [str(text)], "text.arrow: expected an Arrow IPC file or stream")
            self.assert_told(produce.main, [str(text)], "text.arrow: File exists")
            self.assert_told(produce.main, [folder, "--heads", "7"], "num_kv_heads: expected a number")
            self.assert_told(produce.main, [folder, "--scale", "nan"], "scale: expected a finite number")
            self.assert_told(produce.main, [folder, "--steps", "0"], "expected at least one batch")

    def test_wrong_steps_are_told_with_their_batch(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(quietly(produce.main, [folder, "--steps", "4"])[0], 0)
            job = str(pathlib.Path(folder, "job.yaml"))
            batches = list(consume.read_batches(pathlib.Path(folder, "steps.arrow")))
            wrong = str(pathlib.Path(folder, "wrong.arrow"))
            args = ["--job", job, "--steps", wrong, wrong]
            for column in ("sequence_id", "seq_len", "block_table", "layer", "value"):
                produce.write_ipc(wrong, [batch.drop_columns([column]) for batch in batches])
                self.assert_told(check.main, args, rf"wrong.arrow, batch 0: expected a column '{column}'")
            at = batches[0].schema.get_field_index("seq_len")
            long = pa.array([9999] * batches[0].num_rows, pa.int32())
            produce.write_ipc(wrong, [batches[0].set_column(at, "seq_len", long)])
            self.assert_told(check.main, args, "wrong.arrow, batch 0: column seq_len: 9999, expected 0 to")

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
