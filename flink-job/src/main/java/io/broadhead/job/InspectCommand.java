// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.BatchSchema;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.job.JobFile;
import java.io.IOException;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.apache.arrow.memory.BufferAllocator;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** {@code broadhead inspect}: what is in step files, and everything that is wrong with it. */
@Command(
    name = "inspect",
    mixinStandardHelpOptions = true,
    description = {
      "Show the schema, batches, rows and a few values of step batches. With --job,"
          + " list every problem with its file, batch, row and column, and exit with 1 if"
          + " there is any. Computes nothing."
    },
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead inspect steps.arrow",
      "  broadhead inspect steps/ --job job.yaml",
      "  broadhead inspect out.arrow --values 10",
    })
final class InspectCommand extends EngineCommand {
  @Parameters(
      paramLabel = "PATH",
      description = "An Arrow IPC file, an IPC stream, or a folder of them.")
  Path path;

  @Option(
      names = "--job",
      paramLabel = "FILE",
      description = "Job file to check the batches against.")
  Path job;

  @Option(
      names = "--values",
      paramLabel = "N",
      defaultValue = "3",
      description =
          "Number of batches per file whose first row is shown. Default: ${DEFAULT-VALUE}.")
  int values;

  @Override
  int executeOnEngine() throws Exception {
    requireOption(values >= 0, "--values", "0 or more", values);
    Failure.requireReadable(path, "PATH");
    if (job != null) {
      Failure.requireFile(job, "--job");
    }
    try (BufferAllocator allocator = Allocators.root();
        PagedAttention attention = job == null ? null : open(allocator)) {
      Problems problems =
          new Problems(attention == null ? batch -> List.of() : attention::rehearse, row -> true);
      List<Path> files = StepInput.files(path);
      if (files.isEmpty()) {
        throw new WorkFailedException(path + ": expected step files, got an empty folder");
      }
      for (Path file : files) {
        try {
          inspect(file, allocator, problems);
        } catch (IOException e) {
          problems.add(file, e);
        }
      }
      return report(problems);
    }
  }

  private PagedAttention open(BufferAllocator allocator) throws IOException {
    return PagedAttention.open(
        JobFile.load(job), new AttentionConfig(backend, threads, device), allocator);
  }

  private void inspect(Path file, BufferAllocator allocator, Problems problems) throws IOException {
    out().println(file);
    Set<BatchSchema> schemas = new HashSet<>();
    long batches = 0;
    long rows = 0;
    try (StepInput steps = StepInput.open(file, allocator)) {
      for (ArrowBatch batch = steps.next(); batch != null; batch = steps.next()) {
        try (ArrowBatch open = batch) {
          if (schemas.add(open.schema())) {
            BatchText.schema(open.schema()).forEach(line -> out().println("  " + line));
          }
          if (batches < values) {
            out().println("  batch " + batches + ": " + open.numRows() + " rows");
            BatchText.firstRow(open, allocator).forEach(line -> out().println("    " + line));
          }
          problems.check(steps.origin(), open);
          batches++;
          rows += open.numRows();
        }
      }
    } finally {
      out().println("  " + batches + " batches, " + rows + " rows");
    }
  }

  private int report(Problems problems) {
    if (job == null && problems.all().isEmpty()) {
      return 0;
    }
    problems.all().forEach(problem -> out().println("problem: " + problem));
    out()
        .println(
            problems.all().size()
                + (problems.all().size() == 1 ? " problem" : " problems")
                + (job == null ? "" : " against " + job));
    return problems.all().isEmpty() ? 0 : Main.FAILED;
  }
}
