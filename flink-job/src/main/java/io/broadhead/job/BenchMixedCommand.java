// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.bench.Mode;
import io.broadhead.job.bench.Rows;
import java.util.List;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** {@code broadhead bench mixed}. */
@Command(
    name = "mixed",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description =
        "Decode of some sequences and a chunk of another prompt in one step, as"
            + " schedulers combine them. Peers need two calls.",
    footerHeading = "%nExample:%n",
    footer = "  broadhead bench mixed --model llama-3-8b --batch 8 --context 4096 --chunk 512")
final class BenchMixedCommand extends BenchModeCommand {
  @Option(
      names = "--batch",
      paramLabel = "N",
      defaultValue = "8",
      description = "Sequences that decode. Default: ${DEFAULT-VALUE}.")
  int batch;

  @Option(
      names = "--context",
      paramLabel = "TOKENS",
      defaultValue = "4096",
      description = "Tokens of each decoding sequence in the cache. Default: ${DEFAULT-VALUE}.")
  int context;

  @Option(
      names = "--chunk",
      paramLabel = "TOKENS",
      defaultValue = "512",
      description = "Tokens of the prompt. Default: ${DEFAULT-VALUE}.")
  int chunk;

  @Override
  Mode mode() {
    return Mode.MIXED;
  }

  @Override
  List<List<Rows>> steps() {
    requireAll("--batch", 1, List.of(batch));
    requireAll("--context", 1, List.of(context));
    requireAll("--chunk", 1, List.of(chunk));
    return List.of(List.of(new Rows(batch, 1, context), new Rows(1, chunk, chunk)));
  }
}
