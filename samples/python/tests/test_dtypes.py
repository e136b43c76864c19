# SPDX-License-Identifier: Apache-2.0
"""Tests of the conversions between floats and stored bits."""

import unittest

import numpy as np

from broadhead_samples import dtypes


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

    def test_float8_has_the_infinities_and_nans_of_its_type(self):
        for dtype, infinite, nans in (("float8_e4m3fn", [], [127]), ("float8_e5m2", [124], [125, 126, 127])):
            values = dtypes.decode(np.arange(256, dtype=np.uint8), dtype)
            self.assertEqual(values.dtype, np.float32)
            for sign, half in ((1, values[:128]), (-1, values[128:])):
                self.assertEqual(np.flatnonzero(half == sign * np.inf).tolist(), infinite)
                self.assertEqual(np.flatnonzero(np.isnan(half)).tolist(), nans)
        largest = dtypes.decode(dtypes.encode(np.array([1e9, -np.inf]), "float8_e5m2"), "float8_e5m2")
        np.testing.assert_array_equal(largest, [57344, -57344])

    def test_stored_elements_pass_as_they_are(self):
        for dtype, (storage, _) in dtypes.STORAGE.items():
            stored = np.array([0, 1, 3], storage)
            self.assertIs(dtypes.encode(stored, dtype), stored)
            self.assertEqual(dtypes.encode([0.5, 1.5], dtype).dtype, storage)
            self.assertEqual(dtypes.decode(stored, dtype).dtype, np.float32)
        self.assertEqual(dtypes.encode([0.1], "float16")[0], np.float16(0.1))

    def test_bfloat16_rounds_to_even(self):
        values = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, np.inf, np.nan], np.float32)
        got = dtypes.decode(dtypes.encode(values, "bfloat16"), "bfloat16")
        np.testing.assert_array_equal(got, [1.0, 1.0, 1 + 2.0**-6, np.inf, np.nan])


if __name__ == "__main__":
    unittest.main()
