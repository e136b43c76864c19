// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.bench.Report;
import io.broadhead.job.bench.Result;
import io.broadhead.job.bench.ResultFile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** {@code broadhead bench report}: tables and charts of results that were measured before. */
@Command(
    name = "report",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description =
        "Combine the results of several runs of 'broadhead bench' and of"
            + " broadhead-bench-peers: tables, geometric means over their cells, charts.",
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead bench report decode.csv peers.csv",
      "  broadhead bench report *.csv --output docs/performance",
    })
final class BenchReportCommand extends ReportingCommand {
  @Parameters(paramLabel = "FILE", arity = "1..*", description = "Results as CSV.")
  List<Path> files;

  @Option(
      names = "--output",
      paramLabel = "FOLDER",
      description =
          "Write tables.md and the charts (SVG) to this folder instead of printing tables.")
  Path output;

  @Override
  int execute() throws Exception {
    if (output != null) {
      OutputFolder.requireUsable("--output", output, List.of());
    }
    List<Result> results = new ArrayList<>();
    for (Path file : files) {
      Failure.requireReadable(file, "FILE");
      results.addAll(ResultFile.read(file));
    }
    Report report = new Report(results);
    if (output == null) {
      report.text().forEach(out()::println);
    } else {
      write(report.charts(), output);
      Files.write(output.resolve("tables.md"), report.markdown());
    }
    return 0;
  }

  /** Writes charts, which have names, to {@code folder}. */
  static void write(Map<String, String> charts, Path folder) throws IOException {
    Files.createDirectories(folder);
    for (Map.Entry<String, String> chart : charts.entrySet()) {
      Files.writeString(folder.resolve(chart.getKey()), chart.getValue());
    }
  }
}
