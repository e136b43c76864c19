# SPDX-License-Identifier: Apache-2.0
"""Tests of what the commands tell."""

import contextlib
import io
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import pyarrow as pa

from broadhead_samples import check, consume, produce
from broadhead_samples.trace.main import main as trace_model
from support import quietly


class CommandLineTest(unittest.TestCase):
    """Help and mistakes."""

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

    def test_missing_extras_are_named(self):
        with mock.patch.dict(sys.modules, {"torch": None}), tempfile.TemporaryDirectory() as folder:
            self.assert_told(trace_model, ["llama", folder], "an extra of broadhead-samples has it, trace or")

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


if __name__ == "__main__":
    unittest.main()
