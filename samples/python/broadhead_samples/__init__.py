# SPDX-License-Identifier: Apache-2.0
"""Producer, consumer, checker and model tracer for Broadhead's attention step batches.

Everything but `trace_model` and the peers of `bench` needs only NumPy and pyarrow. The wire format is
described in docs/reference/step-format.md.
"""

import functools
import pathlib
import sys

__version__ = "0.1.0"


def command(main):
    """Makes a command of a main function: what the user got wrong is told in one line, with exit code 1."""

    @functools.wraps(main)
    def told(argv=None):
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            print(f"{pathlib.Path(main.__code__.co_filename).stem}: {error}", file=sys.stderr)
            return 1

    return told
