// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.StepInput;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.stream.Stream;
import org.apache.arrow.memory.BufferAllocator;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** {@code broadhead compare}: holds results against a stored expectation, row by row. */
@Command(
    name = "compare",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description = {
      "Compare result batches with an expectation: batches with the columns"
          + " sequence_id, layer and expected. The n-th row of a sequence in a layer is"
          + " compared with its n-th expected row; every row must occur exactly once.",
      "The error of a row is max|result - expected| / max(1, max|expected|)."
    },
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead compare expected.arrow out.arrow",
      "  broadhead compare expected/ results/ --tolerance 1e-4",
    })
final class CompareCommand extends ReportingCommand {
  private static final int PROBLEMS_SHOWN = 5;

  @Parameters(
      index = "0",
      paramLabel = "EXPECTED",
      description = "Expectation: an Arrow IPC file, a stream, or a folder of them.")
  Path expected;

  @Parameters(
      index = "1",
      paramLabel = "RESULT",
      description =
          "Results: an Arrow IPC file, a stream, or a folder of them, sub-folders included.")
  Path result;

  @Option(
      names = "--tolerance",
      paramLabel = "ERROR",
      description =
          "Largest error allowed. Default, by the result's type: 1e-5 for float32, 2e-3 for"
              + " float16, 1.6e-2 for bfloat16.")
  Double tolerance;

  @Override
  int execute() throws Exception {
    requireOption(tolerance == null || tolerance >= 0, "--tolerance", "0 or more", tolerance);
    Failure.requireReadable(expected, "EXPECTED");
    Failure.requireReadable(result, "RESULT");
    Comparison comparison = new Comparison(tolerance);
    try (BufferAllocator allocator = Allocators.root()) {
      each(expected, allocator, comparison::expect);
      each(result, allocator, comparison::compare);
    }
    if (comparison.rows() == 0) {
      throw new WorkFailedException(result + ": expected result rows, got none");
    }
    List<String> problems = comparison.finish();
    out().println(comparison.line());
    problems.stream().limit(PROBLEMS_SHOWN).forEach(err()::println);
    if (problems.size() > PROBLEMS_SHOWN) {
      err().println("... and " + (problems.size() - PROBLEMS_SHOWN) + " more");
    }
    return problems.isEmpty() ? 0 : Main.FAILED;
  }

  private interface Visitor {
    void visit(ArrowBatch batch, String origin) throws WorkFailedException;
  }

  private static void each(Path path, BufferAllocator allocator, Visitor visitor)
      throws IOException, WorkFailedException {
    for (Path file : files(path)) {
      try (StepInput batches = StepInput.open(file, allocator)) {
        for (ArrowBatch batch = batches.next(); batch != null; batch = batches.next()) {
          try (ArrowBatch open = batch) {
            visitor.visit(open, batches.origin().toString());
          }
        }
      }
    }
  }

  /**
   * The files at or below {@code path} in the order of their names, whatever their folders: what
   * {@code run} writes is named for the time when it was begun.
   */
  private static List<Path> files(Path path) throws IOException {
    List<Path> files = new ArrayList<>();
    addFiles(path, files);
    files.sort(Comparator.comparing(file -> file.getFileName().toString()));
    return files;
  }

  private static void addFiles(Path path, List<Path> files) throws IOException {
    files.addAll(StepInput.files(path));
    if (!Files.isDirectory(path)) {
      return;
    }
    List<Path> folders;
    try (Stream<Path> entries = Files.list(path)) {
      folders =
          entries
              .filter(Files::isDirectory)
              .filter(folder -> !folder.getFileName().toString().startsWith("."))
              .sorted()
              .toList();
    }
    for (Path folder : folders) {
      addFiles(folder, files);
    }
  }
}
