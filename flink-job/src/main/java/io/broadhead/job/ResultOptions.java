// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Compression;
import picocli.CommandLine.Option;

/** The options of the commands that write results. */
final class ResultOptions {
  @Option(
      names = "--overwrite",
      description =
          "First remove results and refused rows from the output's folders. Without it the"
              + " command fails if there are any; a single file is always replaced.")
  boolean overwrite;

  @Option(
      names = "--compression",
      paramLabel = "CODEC",
      defaultValue = "none",
      description =
          "Compression of the result batches: none, zstd, or lz4, which Arrow's Java library writes"
              + " slowly, about 1 MB/s. Default: none.")
  Compression compression;

  @Option(
      names = {"-q", "--quiet"},
      description = "Print only errors.")
  boolean quiet;
}
