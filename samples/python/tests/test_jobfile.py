# SPDX-License-Identifier: Apache-2.0
"""Tests of the job file's YAML subset and of what is checked."""

import pathlib
import re
import unittest

from broadhead_samples import jobfile


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


if __name__ == "__main__":
    unittest.main()
