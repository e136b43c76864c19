// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.bench.Mode;
import io.broadhead.job.bench.Rows;
import java.util.List;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** {@code broadhead bench step}. */
@Command(
    name = "step",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description = {
      "Overhead of a whole step beside its kernels: the Java call, the import of the"
          + " batch, its checks and the plan; and the garbage it leaves. Then the same rows"
          + " as batches of one row, joined to one step and apart.",
      "The same small step is repeated, from the processor's caches."
    },
    footerHeading = "%nExample:%n",
    footer = "  broadhead bench step --model gpt-2 --batch 64 --context 16 --threads 1,2")
final class BenchStepCommand extends BenchModeCommand {
  @Option(
      names = "--batch",
      paramLabel = "N",
      split = ",",
      defaultValue = "1,64",
      description = "Sequences per step. Default: ${DEFAULT-VALUE}.")
  List<Integer> batches;

  @Option(
      names = "--context",
      paramLabel = "TOKENS",
      split = ",",
      defaultValue = "16",
      description = "Tokens of each sequence in the cache. Default: ${DEFAULT-VALUE}.")
  List<Integer> contexts;

  @Override
  Mode mode() {
    return Mode.STEP;
  }

  @Override
  List<List<Rows>> steps() {
    requireAll("--batch", 1, batches);
    requireAll("--context", 1, contexts);
    return Rows.decodes(batches, contexts);
  }
}
