// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Compression;
import picocli.CommandLine.Option;

/** The options of the commands that write results. */
final class ResultOptions {
  @Option(
      names = "--overwrite",
      description =
          "Remove the results, and refused rows, that are in the output's folders first. Without it"
              + " the command fails where there are any; a single file is always replaced.")
  boolean overwrite;

  @Option(
      names = "--compression",
      paramLabel = "CODEC",
      defaultValue = "none",
      description = "Body compression of the results: none, lz4 or zstd. Default: none.")
  Compression compression;

  @Option(
      names = {"-q", "--quiet"},
      description = "Print nothing but errors.")
  boolean quiet;
}
