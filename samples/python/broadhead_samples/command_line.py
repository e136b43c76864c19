# SPDX-License-Identifier: Apache-2.0
"""What the commands share: how they describe their options, and how they tell what the user got wrong."""

import argparse
import functools
import os
import pathlib
import sys


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves examples as they are, and tells the default of an option that takes a number or a word."""

    def _get_help_string(self, action):
        told = isinstance(action.default, (int, float, str)) and not isinstance(action.default, bool)
        return super()._get_help_string(action) if told else action.help


def parser(prog, description, example):
    """An argument parser whose help ends with `example`."""
    return argparse.ArgumentParser(
        prog, description=description, epilog=example, formatter_class=_HelpFormatter
    )


def _text(error):
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; an extra of broadhead-samples has it, trace or bench"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return error


def command(main):
    """Makes a command of a main function: what the user got wrong is told in one line, with exit code 1.

    A reader that closes the pipe, and Ctrl-C (exit code 130), need no words.
    """

    @functools.wraps(main)
    def told(argv=None):
        try:
            code = main(argv)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
            return 1
        except KeyboardInterrupt:
            return 130
        except (ValueError, OSError, ModuleNotFoundError) as error:
            print(f"{pathlib.Path(sys.argv[0]).name}: {_text(error)}", file=sys.stderr)
            return 1

    return told
