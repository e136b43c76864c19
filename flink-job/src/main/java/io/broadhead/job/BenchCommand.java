// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import picocli.CommandLine.Command;

/** {@code broadhead bench}: how fast attention is here, beside the limits and other libraries. */
@Command(
    name = "bench",
    mixinStandardHelpOptions = true,
    synopsisSubcommandLabel = "MODE",
    description = {
      "Measure attention on random data: shuffled block tables over a KV cache larger"
          + " than the processor's caches. The limits of the machine and other libraries are"
          + " measured in turns with it, so that all see the machine at the same speed;"
          + " compare the values of one row with each other.",
      "Each mode has its own --help."
    },
    subcommands = {
      BenchDecodeCommand.class,
      BenchPrefillCommand.class,
      BenchMixedCommand.class,
      BenchUpdateCommand.class,
      BenchStepCommand.class,
      BenchReportCommand.class,
    },
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead bench decode --model llama-3-8b --batch 8 --context 4096",
      "  broadhead bench prefill --csv prefill.csv --plot charts/",
      "  broadhead bench report decode.csv prefill.csv --output report/",
    })
final class BenchCommand {}
