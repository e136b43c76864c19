// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.attention.OutOfBlocks;
import picocli.CommandLine.Option;

/** What the commands that compute steps ask about managed block tables. */
final class BlockPoolOptions {
  @Option(
      names = "--out-of-blocks",
      paramLabel = "POLICY",
      defaultValue = "swap",
      description =
          "Where block tables are managed and the pool is full: swap out sequences that were not"
              + " used for long, reject the row, which then is written to --refused, or fail."
              + " Default: ${DEFAULT-VALUE}.")
  OutOfBlocks outOfBlocks;
}
