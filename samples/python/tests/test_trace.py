# SPDX-License-Identifier: Apache-2.0
"""Tests of the model tracer, which need its extra."""

import importlib.util
import pathlib
import tempfile
import unittest

from broadhead_samples import check, consume, jobfile
from support import quietly

HAS_EXTRA = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
if HAS_EXTRA:
    import torch

    from broadhead_samples.trace import main, models

#: Presets whose rotary embedding can be recorded apart
ROTATING = ("llama", "llama31", "llama_linear", "llama_yarn", "qwen", "mistral", "gemma2", "gptj", "gpt_neox")


@unittest.skipUnless(HAS_EXTRA, "the extra is not there")
class TraceTest(unittest.TestCase):
    """What is recorded means to the reference what the model computed."""

    def assert_agrees(self, *options):
        """Records a model; returns its job and how many rows were compared."""
        with tempfile.TemporaryDirectory() as folder:
            code, text = quietly(main.main, [*options[:1], folder, *options[1:]])
            self.assertEqual(code, 0, text)
            folder = pathlib.Path(folder)
            job = jobfile.load_job(folder / "job.yaml")
            steps, expected = (
                path if path.exists() else path.with_suffix("")
                for path in (folder / "steps.arrow", folder / "expected.arrow")
            )
            wanted = check.keyed(check.reference_rows(job, steps))
            comparison = check.Comparison().run(wanted, check.keyed(consume.read_rows(expected, "expected")))
            self.assertEqual(comparison.problems, [])
            self.assertGreater(len(wanted), 0)
            return job, len(wanted)

    def test_every_preset_agrees_with_the_reference(self):
        small = ["--prompts", "30,5", "--chunk", "12", "--decode", "3"]
        for preset in models.PRESETS:
            for rope in ([], ["--rope"]) if preset in ROTATING else ([],):
                with self.subTest(preset, rope=bool(rope)):
                    job, _ = self.assert_agrees(preset, *small, *rope)
                    self.assertEqual(any("rope" in layer for layer in job["layers"]), bool(rope))

    def test_narrow_types_are_rounded_once(self):
        for dtype in ("float16", "bfloat16"):
            self.assert_agrees("llama", "--dtype", dtype, "--prompts", "20", "--decode", "2")

    def test_folders_have_models_with_and_without_weights(self):
        with tempfile.TemporaryDirectory() as folder:
            model = models.build_model("llama", "float32", seed=1)
            model.config.save_pretrained(folder)
            small = ("--prompts", "9", "--decode", "2")
            self.assert_agrees(folder, *small)
            model.save_pretrained(folder)
            self.assert_agrees(folder, *small)
            with torch.no_grad():
                loaded = models.build_model(folder, "float32", seed=2)
                for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
                    self.assertTrue(torch.equal(ours, theirs))

    def test_steps_are_those_of_the_options(self):
        job, rows = self.assert_agrees("llama", "--prompts", "10,3", "--chunk", "4", "--decode", "2")
        self.assertEqual(rows, len(job["layers"]) * ((3 + 2) + (1 + 2)))


if __name__ == "__main__":
    unittest.main()
