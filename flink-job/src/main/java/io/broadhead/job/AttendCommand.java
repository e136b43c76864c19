// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.RefusedRow;
import io.broadhead.attention.StepHandler;
import io.broadhead.attention.StepQueue;
import io.broadhead.attention.cache.CacheStores;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.JobFile;
import io.broadhead.flink.OnBadRow;
import io.broadhead.job.sink.ResultLayout;
import io.broadhead.kernel.EngineInfo;
import io.broadhead.kernel.KernelEngine;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.List;
import java.util.Queue;
import org.apache.arrow.memory.BufferAllocator;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/**
 * {@code broadhead attend}: step batches in, result batches out, in one thread and without Flink.
 */
@Command(
    name = "attend",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description = {
      "Compute attention for step batches, without Flink. Result batches are in the"
          + " order of the input. An output file gets its final name when it is complete."
    },
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead attend --job job.yaml --input steps.arrow --output out.arrow",
      "  broadhead attend --job job.yaml --input steps/ --output results/",
      "  broadhead attend --job job.yaml --input steps.arrow --output out.arrow \\",
      "      --on-bad-row side-output",
    })
final class AttendCommand extends EngineCommand {
  @Option(
      names = "--job",
      required = true,
      paramLabel = "FILE",
      description = "Job file: the layers and their KV cache.")
  Path job;

  @Option(
      names = "--input",
      required = true,
      paramLabel = "PATH",
      description =
          "Step batches: an Arrow IPC file, an IPC stream, or a folder of them, read in the order"
              + " of their names.")
  Path input;

  @Option(
      names = "--output",
      required = true,
      paramLabel = "PATH",
      description =
          "Where results go. A name with an extension (out.arrow) is one IPC file with one"
              + " schema. Any other name is a folder with results.arrow, or with a file per layer"
              + " if the layers' results have different shapes. Results with a further schema,"
              + " for example another element type, go to schema-02.arrow or"
              + " LAYER_schema-02.arrow, and so on.")
  Path output;

  @Mixin ResultOptions written;

  @Option(
      names = "--on-bad-row",
      paramLabel = "POLICY",
      defaultValue = "fail",
      description =
          "What to do with a bad row. fail: end the work; side-output: leave the row out"
              + " and write it to --refused. Default: ${DEFAULT-VALUE}.")
  OnBadRow onBadRow;

  @Mixin BlockPoolOptions pool;

  @Option(
      names = "--refused",
      paramLabel = "FILE",
      description =
          "File for the rows that were left out, as JSON lines. Default: the output's name"
              + " plus .refused.jsonl.")
  Path refused;

  @Override
  int executeOnEngine() throws Exception {
    Failure.requireFile(job, "--job");
    Failure.requireReadable(input, "--input");
    requireNotRead("--output", output);
    requireNotRead("--refused", refusedFile());
    requireOption(
        !absolute(refusedFile()).equals(absolute(output)),
        "--refused",
        "a file other than that of --output",
        refusedFile());
    Job loaded = JobFile.load(job);
    long start = System.nanoTime();
    try (KernelEngine kernels = new AttentionConfig(backend, threads, device).openEngine();
        BufferAllocator allocator = Allocators.root(kernels.memory());
        PagedAttention attention =
            PagedAttention.open(
                loaded, kernels, pool.outOfBlocks, allocator, CacheStores.onHeap());
        ResultFiles results =
            ResultFiles.create(
                output,
                written.overwrite,
                List.of(input),
                ResultLayout.of(loaded),
                written.compression,
                allocator);
        RefusedFile refusedRows = new RefusedFile(refusedFile())) {
      EngineInfo engine = attention.engine();
      if (!written.quiet) {
        err().println(EngineLine.start(spec.name(), engine, attention.job(), 1));
      }
      StepCounts counts = new StepCounts(true);
      attendAll(attention, allocator, results, refusedRows, counts);
      results.finish();
      refusedRows.finish();
      if (!written.quiet) {
        out()
            .println(
                new RunSummary(
                        counts.batches(),
                        counts.rows(),
                        counts.sequences(),
                        counts.tokens(),
                        refusedRows.count(),
                        counts.bytesCopied(),
                        (System.nanoTime() - start) / 1e9,
                        engine.backend(),
                        engine.tier(),
                        engine.threads(),
                        output.toString())
                    .line());
      }
      return 0;
    }
  }

  private void requireNotRead(String option, Path written) throws IOException {
    for (Path read : List.of(job, input)) {
      requireOption(
          !Files.isRegularFile(written) || !written.toRealPath().startsWith(read.toRealPath()),
          option,
          "a file other than those of --job and --input",
          written);
    }
  }

  private static Path absolute(Path path) {
    return path.toAbsolutePath().normalize();
  }

  private void attendAll(
      PagedAttention attention,
      BufferAllocator allocator,
      ResultFiles results,
      RefusedFile refusedRows,
      StepCounts counts)
      throws Exception {
    Queue<Computed> computed = new ArrayDeque<>();
    try (StepInput steps = StepInput.open(input, allocator);
        Progress progress = progress(allocator);
        StepQueue queue =
            attention.queue(0, step -> counts.addBytesCopied(step.stats().bytesStaged()))) {
      for (ArrowBatch batch = steps.next(); batch != null; batch = steps.next()) {
        StepInput.Origin origin = steps.origin();
        try (ArrowBatch open = batch) {
          counts.addBytesCopied(open.bytesCopied());
          queue.add(open, new Handler(origin, refusedRows, computed));
          while (queue.batches() > 0) {
            queue.step();
          }
        } catch (InvalidBatchException e) {
          throw new WorkFailedException(origin + ", " + e.getMessage(), e);
        }
        write(computed, results, counts);
        progress.update(counts.batches(), counts.tokens());
      }
      queue.drain();
      write(computed, results, counts);
    } finally {
      computed.forEach(left -> left.result().close());
    }
    if (counts.batches() == 0) {
      throw new WorkFailedException(input + ": expected at least one record batch, got none");
    }
  }

  /** A result that is to be written. */
  private record Computed(ArrowBatch result, StepInput.Origin origin) {}

  /** What becomes of a batch of the input. */
  private final class Handler implements StepHandler {
    private final StepInput.Origin origin;
    private final RefusedFile refusedRows;
    private final Queue<Computed> computed;

    Handler(StepInput.Origin origin, RefusedFile refusedRows, Queue<Computed> computed) {
      this.origin = origin;
      this.refusedRows = refusedRows;
      this.computed = computed;
    }

    @Override
    public void refused(RefusedRow row) {
      if (!onBadRow.leavesOut(row.code(), pool.outOfBlocks)) {
        throw new InvalidBatchException(row, null);
      }
      refusedRows.add(origin, row);
    }

    @Override
    public void done(ArrowBatch result) {
      computed.add(new Computed(result, origin));
    }
  }

  private static void write(Queue<Computed> computed, ResultFiles results, StepCounts counts)
      throws Exception {
    for (Computed next = computed.poll(); next != null; next = computed.poll()) {
      try (ArrowBatch result = next.result()) {
        results.write(result, next.origin());
        counts.add(result);
      }
    }
  }

  private Progress progress(BufferAllocator allocator) {
    boolean shown = !written.quiet && StatusLine.onTerminal();
    return new Progress(
        err(), shown, shown ? InputSize.batches(input, allocator) : InputSize.UNKNOWN);
  }

  private Path refusedFile() {
    return refused != null
        ? refused
        : output.resolveSibling(output.getFileName() + ".refused.jsonl");
  }
}
