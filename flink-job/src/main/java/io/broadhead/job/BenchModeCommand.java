// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.bench.Bench;
import io.broadhead.job.bench.BenchDtype;
import io.broadhead.job.bench.Cell;
import io.broadhead.job.bench.Heads;
import io.broadhead.job.bench.Mode;
import io.broadhead.job.bench.Peer;
import io.broadhead.job.bench.Peers;
import io.broadhead.job.bench.Report;
import io.broadhead.job.bench.Result;
import io.broadhead.job.bench.ResultFile;
import io.broadhead.job.bench.Rows;
import io.broadhead.job.bench.StepShape;
import io.broadhead.job.bench.Variant;
import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.KernelEngine;
import java.io.IOException;
import java.net.URI;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.TreeSet;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Option;
import picocli.CommandLine.TypeConversionException;

/** What the modes of {@code broadhead bench} share: the cells, the measurement, the output. */
abstract class BenchModeCommand extends ReportingCommand {
  private static final String NO_PEERS = "none";

  @Option(
      names = "--model",
      paramLabel = "NAME",
      split = ",",
      converter = HeadsConverter.class,
      description =
          "Models, or head shapes written as HEADS/KV_HEADS/HEAD_SIZE. Default: llama-3-8b,"
              + " llama-2-7b, qwen3-0.6b, gpt-2, gemma.")
  List<Heads> models = Heads.MODELS;

  @Option(
      names = "--dtype",
      paramLabel = "TYPE",
      split = ",",
      defaultValue = "float16",
      description =
          "Element types: float16, bfloat16, float32, fp8 (a cache of float8_e4m3fn under float16)."
              + " Default: ${DEFAULT-VALUE}.")
  List<BenchDtype> dtypes;

  @Option(
      names = "--block-size",
      paramLabel = "TOKENS",
      split = ",",
      defaultValue = "16",
      description = "Tokens per cache block, multiples of 16. Default: ${DEFAULT-VALUE}.")
  List<Integer> blockSizes;

  @Option(
      names = "--threads",
      paramLabel = "N",
      split = ",",
      description = "CPU threads, also of the peers. Default: one per core.")
  List<Integer> threads = List.of(Runtime.getRuntime().availableProcessors());

  @Option(
      names = "--backend",
      paramLabel = "NAME",
      defaultValue = "auto",
      description = "Backend that runs the kernels; 'broadhead doctor' lists them. Default: auto.")
  String backend;

  @Option(
      names = "--device",
      paramLabel = "N",
      defaultValue = "0",
      description =
          "Device index of a GPU backend; -1: the device with the most free memory."
              + " Default: ${DEFAULT-VALUE}.")
  int device;

  @Option(
      names = "--peers",
      paramLabel = "FOLDER",
      description =
          "Folder with the jars of other libraries to measure too, or none. Default: the"
              + " folder peers beside broadhead.jar, if it exists ('mvn -Ppeers package' creates"
              + " it).")
  String peersFolder;

  @Option(
      names = "--beside",
      paramLabel = "CHANGE",
      split = ",",
      converter = VariantConverter.class,
      description =
          "Also time Broadhead's steps with one change, beside each cell: threads=N,"
              + " dtype=TYPE or rows=COUNTxTOKENS@CONTEXT.")
  List<Variant> variants = List.of();

  @Option(
      names = "--time",
      paramLabel = "SECONDS",
      defaultValue = "3",
      description = "Time for the samples of one cell. Default: ${DEFAULT-VALUE}.")
  double seconds;

  @Option(names = "--csv", paramLabel = "FILE", description = "Also write the results as CSV.")
  Path csv;

  @Option(names = "--plot", paramLabel = "FOLDER", description = "Also draw charts (SVG).")
  Path plots;

  @Option(
      names = {"-q", "--quiet"},
      description = "Print only the table and errors.")
  boolean quiet;

  /** What is measured. */
  abstract Mode mode();

  /** The rows of the steps to measure; checks the options of the mode. */
  abstract List<List<Rows>> steps();

  /** Whether queries and keys are rotated. */
  boolean rope() {
    return false;
  }

  /** Reads {@code --model}. */
  static final class HeadsConverter implements ITypeConverter<Heads> {
    @Override
    public Heads convert(String text) {
      try {
        return Heads.parse(text);
      } catch (IllegalArgumentException e) {
        throw new TypeConversionException(e.getMessage());
      }
    }
  }

  /** Reads {@code --beside}. */
  static final class VariantConverter implements ITypeConverter<Variant> {
    @Override
    public Variant convert(String text) {
      try {
        return Variant.parse(text);
      } catch (IllegalArgumentException e) {
        throw new TypeConversionException(e.getMessage());
      }
    }
  }

  @Override
  final int execute() throws Exception {
    requireOption(seconds > 0, "--time", "more than 0", seconds);
    requireAll("--threads", 1, threads);
    requireKnownBackend(backend);
    requireOption(device >= -1, "--device", "0 or more, or -1", device);
    requireOption(
        variants.isEmpty() || mode() != Mode.STEP, "--beside", "nothing in this mode", variants);
    blockSizes.forEach(
        size ->
            requireOption(
                size >= 16 && size % 16 == 0, "--block-size", "a positive multiple of 16", size));
    if (csv != null) {
      Failure.requireWritable(csv, "--csv");
    }
    if (plots != null) {
      OutputFolder.requireUsable("--plot", plots, List.of());
    }
    List<Cell> cells = cells();
    try (Peers peers = peers();
        StatusLine status = new StatusLine(err())) {
      announce(peers);
      List<Result> results = measure(cells, peers.all(), status);
      if (results.isEmpty()) {
        throw new WorkFailedException("no cell could be measured");
      }
      status.close();
      Report report = new Report(results);
      report.text().forEach(out()::println);
      if (plots != null) {
        BenchReportCommand.write(report.charts(), plots);
      }
      return 0;
    }
  }

  /** Refuses values below {@code least}. */
  final void requireAll(String option, int least, List<Integer> values) {
    values.forEach(value -> requireOption(value >= least, option, least + " or more, each", value));
  }

  private List<Cell> cells() {
    List<Cell> cells = new ArrayList<>();
    for (int count : new TreeSet<>(threads)) {
      for (BenchDtype dtype : dtypes) {
        for (int blockSize : blockSizes) {
          for (Heads model : models) {
            for (List<Rows> rows : steps()) {
              StepShape shape =
                  new StepShape(
                      model,
                      dtype.tensors,
                      dtype.cache,
                      blockSize,
                      rows,
                      mode() != Mode.UPDATE,
                      rope());
              cells.add(new Cell(mode(), shape, count));
            }
          }
        }
      }
    }
    return cells;
  }

  private Peers peers() throws IOException, WorkFailedException {
    Path folder = peersFolder == null ? besideJar() : Path.of(peersFolder);
    if (NO_PEERS.equals(peersFolder) || peersFolder == null && !Files.isDirectory(folder)) {
      return Peers.none();
    }
    Failure.requireReadable(folder, "--peers");
    Peers peers = Peers.load(folder);
    if (peers.all().isEmpty()) {
      peers.close();
      throw new WorkFailedException("--peers " + folder + ": expected jars with peers, found none");
    }
    return peers;
  }

  private static Path besideJar() {
    URL own = BenchModeCommand.class.getProtectionDomain().getCodeSource().getLocation();
    return Path.of(URI.create(own.toString())).resolveSibling("peers");
  }

  private void announce(Peers peers) {
    if (quiet) {
      return;
    }
    try (KernelEngine engine =
        KernelEngine.open(new EngineConfig(backend, threads.get(0), device))) {
      err().println("broadhead bench: " + engine.info().describe());
    }
    for (Peer peer : peers.all()) {
      err().println("broadhead bench: beside " + peer.name() + ", " + peer.description());
    }
  }

  private List<Result> measure(List<Cell> cells, List<Peer> peers, StatusLine status)
      throws IOException {
    Bench bench =
        new Bench(backend, device, Duration.ofNanos((long) (seconds * 1e9)), peers, variants);
    List<Result> results = new ArrayList<>();
    long start = System.nanoTime();
    for (int done = 0; done < cells.size(); done++) {
      Cell cell = cells.get(done);
      show(status, done, cells, (System.nanoTime() - start) / 1e9);
      Optional<String> refusal = bench.refusal(cell);
      if (refusal.isPresent()) {
        note(status, "skipped " + cell + ": " + refusal.get());
        continue;
      }
      for (Peer peer : peers) {
        bench
            .refusal(peer, cell)
            .ifPresent(reason -> note(status, peer.name() + " without " + cell + ": " + reason));
      }
      results.addAll(bench.measure(cell));
      if (csv != null) {
        ResultFile.write(csv, results);
      }
    }
    return results;
  }

  private void show(StatusLine status, int done, List<Cell> cells, double elapsed) {
    if (quiet) {
      return;
    }
    String text =
        StatusLine.count(done, cells.size())
            + " cells, "
            + StatusLine.time(done, cells.size(), elapsed)
            + ": "
            + cells.get(done);
    if (StatusLine.onTerminal()) {
      status.show(text);
    } else {
      err().println(text);
    }
  }

  private void note(StatusLine status, String text) {
    status.close();
    err().println(text);
  }
}
