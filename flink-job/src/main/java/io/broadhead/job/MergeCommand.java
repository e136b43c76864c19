// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.PartialResults;
import io.broadhead.job.sink.ResultLayout;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.apache.arrow.memory.BufferAllocator;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;

/** {@code broadhead merge}: joins partial results into results over all keys, batch by batch. */
@Command(
    name = "merge",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description = {
      "Merge results of attention over disjoint parts of the keys, by their lse"
          + " columns. The layers of the parts need return_lse: true and no output_scale.",
      "All parts must hold the same batches in the same order: the n-th batch of each"
          + " has the same sequences, layers and tokens, row by row. Other columns are taken"
          + " from the first part. An output file gets its final name when it is complete."
    },
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead merge prefix.arrow suffix.arrow --output out.arrow",
      "  broadhead merge worker-0/ worker-1/ worker-2/ --output results/",
    })
final class MergeCommand extends EngineCommand {
  @Parameters(
      arity = "2..*",
      paramLabel = "PART",
      description =
          "Partial results: an Arrow IPC file, a stream, or a folder of them, read in the order of"
              + " their names.")
  List<Path> parts;

  @Option(
      names = "--output",
      required = true,
      paramLabel = "PATH",
      description =
          "Where results go. A name with an extension (out.arrow) is one IPC file with one"
              + " schema. Any other name is a folder; if the first part is a folder too, the"
              + " output has a file for each of its files.")
  Path output;

  @Mixin ResultOptions written;

  @Override
  int executeOnEngine() throws Exception {
    for (Path part : parts) {
      Failure.requireReadable(part, "PART");
      if (Files.exists(output) && Files.isSameFile(part, output)) {
        throw usage("--output: expected another path than those of the parts, got " + output);
      }
    }
    long start = System.nanoTime();
    StepCounts counts = new StepCounts(false);
    try (BufferAllocator allocator = Allocators.root();
        PartialResults merger =
            PartialResults.open(new AttentionConfig(backend, threads, device), allocator);
        ResultFiles results =
            ResultFiles.create(
                output,
                written.overwrite,
                parts,
                ResultLayout.bySchema(),
                written.compression,
                allocator);
        Inputs inputs = new Inputs(parts, allocator)) {
      boolean mirrored = Files.isDirectory(parts.get(0)) && ResultFiles.isFolder(output);
      while (inputs.next()) {
        try (ArrowBatch result = merge(merger, inputs)) {
          StepInput.Origin origin = inputs.origin(0);
          if (mirrored) {
            results.write(withoutSuffix(origin.file()), result, origin);
          } else {
            results.write(result, origin);
          }
          counts.add(result);
        }
      }
      if (counts.batches() == 0) {
        throw new WorkFailedException(
            parts.get(0) + ": expected at least one record batch, got none");
      }
      results.finish();
    }
    if (!written.quiet) {
      out()
          .println(
              String.format(
                  Locale.ROOT,
                  "done: parts=%d batches=%d rows=%d tokens=%d seconds=%.3f output=%s",
                  parts.size(),
                  counts.batches(),
                  counts.rows(),
                  counts.tokens(),
                  (System.nanoTime() - start) / 1e9,
                  output));
    }
    return 0;
  }

  private static ArrowBatch merge(PartialResults merger, Inputs inputs) throws WorkFailedException {
    try {
      return merger.merge(inputs.batches);
    } catch (InvalidBatchException e) {
      throw new WorkFailedException(inputs + ": " + e.getMessage(), e);
    }
  }

  private static String withoutSuffix(Path file) {
    String name = file.getFileName().toString();
    int dot = name.lastIndexOf('.');
    return dot > 0 ? name.substring(0, dot) : name;
  }

  /** Reads all parts in step; owns the batches that it holds. Used by one thread. */
  private static final class Inputs implements AutoCloseable {
    private final List<Path> parts;
    private final List<StepInput> inputs = new ArrayList<>();
    private final List<ArrowBatch> batches = new ArrayList<>();

    Inputs(List<Path> parts, BufferAllocator allocator) throws IOException {
      this.parts = parts;
      for (Path part : parts) {
        inputs.add(StepInput.open(part, allocator));
      }
    }

    /** Takes the next batch of every part; false behind the last. */
    boolean next() throws IOException, WorkFailedException {
      release();
      for (StepInput input : inputs) {
        ArrowBatch batch = input.next();
        if (batch != null) {
          batches.add(batch);
        }
        int read = batches.size();
        int asked = inputs.indexOf(input) + 1;
        if (read != 0 && read != asked) {
          int ended = batch == null ? asked - 1 : 0;
          int going = batch == null ? 0 : asked - 1;
          throw new WorkFailedException(
              parts.get(ended)
                  + ": expected as many batches as the other parts have, got the end where "
                  + parts.get(going)
                  + " has "
                  + inputs.get(going).origin());
        }
      }
      return !batches.isEmpty();
    }

    StepInput.Origin origin(int part) {
      return inputs.get(part).origin();
    }

    private void release() {
      batches.forEach(ArrowBatch::close);
      batches.clear();
    }

    @Override
    public void close() throws IOException {
      release();
      IOException failure = null;
      for (StepInput input : inputs) {
        try {
          input.close();
        } catch (IOException e) {
          failure = e;
        }
      }
      if (failure != null) {
        throw failure;
      }
    }

    /** Where the batches came from, part by part. */
    @Override
    public String toString() {
      StringBuilder text = new StringBuilder();
      for (int i = 0; i < inputs.size(); i++) {
        text.append(i == 0 ? "" : "; ").append("part ").append(i + 1).append(" is ");
        text.append(origin(i));
      }
      return text.toString();
    }
  }
}
