// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import io.broadhead.arrow.DType;
import java.io.IOException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * Results as CSV: one line for each contender of each cell, the same columns whoever measured. What
 * follows from other columns (rates) is written for spreadsheets and not read.
 */
public final class ResultFile {
  private static final String HEADER =
      "mode,model,num_heads,num_kv_heads,head_size,dtype,cache_dtype,block_size,rows,rope,threads,"
          + "contender,kind,microseconds,times_ours,samples,disturbed,garbage_bytes,"
          + "tokens_per_s,gb_per_s,gflop_per_s";

  private ResultFile() {}

  /** Writes {@code results}, replacing what was there. */
  public static void write(Path file, List<Result> results) throws IOException {
    List<String> lines = new ArrayList<>(List.of(HEADER));
    results.forEach(result -> lines.add(line(result)));
    Files.write(file, lines);
  }

  private static String line(Result result) {
    Cell cell = result.cell();
    StepShape shape = cell.shape();
    Heads heads = shape.heads();
    return String.join(
        ",",
        cell.mode().toString(),
        heads.name(),
        String.valueOf(heads.numHeads()),
        String.valueOf(heads.numKvHeads()),
        String.valueOf(heads.headSize()),
        shape.dtype().label(),
        shape.cacheDtype().label(),
        String.valueOf(shape.blockSize()),
        Rows.text(shape.rows()),
        flag(shape.rope()),
        String.valueOf(cell.threads()),
        result.contender(),
        result.kind().toString(),
        number(result.microseconds()),
        number(result.timesOurs()),
        String.valueOf(result.samples()),
        flag(result.disturbed()),
        number(result.garbageBytes()),
        number(result.tokensPerSecond()),
        number(result.gigabytesPerSecond()),
        number(result.gigaflopsPerSecond()));
  }

  private static String flag(boolean value) {
    return value ? "1" : "0";
  }

  private static String number(double value) {
    return Double.isNaN(value) ? "" : String.format(Locale.ROOT, "%.6g", value);
  }

  /**
   * Reads what {@link #write} wrote, here or elsewhere.
   *
   * @throws IOException naming the line that is none
   */
  public static List<Result> read(Path file) throws IOException {
    List<String> lines = Files.readAllLines(file);
    List<Result> results = new ArrayList<>();
    String[] names = lines.isEmpty() ? new String[0] : lines.get(0).split(",");
    for (int i = 1; i < lines.size(); i++) {
      try {
        results.add(result(fields(names, lines.get(i).split(",", -1))));
      } catch (IllegalArgumentException e) {
        throw new FileSystemException(
            file.toString(), null, "line " + (i + 1) + ": " + e.getMessage());
      }
    }
    return results;
  }

  private static Map<String, String> fields(String[] names, String[] values) {
    if (names.length != values.length) {
      throw new IllegalArgumentException(
          "expected " + names.length + " fields, got " + values.length);
    }
    Map<String, String> fields = new HashMap<>();
    for (int i = 0; i < names.length; i++) {
      fields.put(names[i], values[i]);
    }
    return fields;
  }

  private static Result result(Map<String, String> fields) {
    Heads heads =
        new Heads(
            text(fields, "model"),
            integer(fields, "num_heads"),
            integer(fields, "num_kv_heads"),
            integer(fields, "head_size"));
    List<Rows> rows = Rows.parse(text(fields, "rows"));
    Mode mode = Mode.parse(text(fields, "mode"));
    StepShape shape =
        new StepShape(
            heads,
            DType.parse(text(fields, "dtype")),
            DType.parse(text(fields, "cache_dtype")),
            integer(fields, "block_size"),
            rows,
            mode != Mode.UPDATE,
            integer(fields, "rope") != 0);
    return new Result(
        new Cell(mode, shape, integer(fields, "threads")),
        text(fields, "contender"),
        Contender.Kind.parse(text(fields, "kind")),
        number(fields, "microseconds"),
        number(fields, "times_ours"),
        integer(fields, "samples"),
        integer(fields, "disturbed") != 0,
        number(fields, "garbage_bytes"));
  }

  private static String text(Map<String, String> fields, String name) {
    String value = fields.get(name);
    if (value == null) {
      throw new IllegalArgumentException("expected a column " + name + ", got none");
    }
    return value;
  }

  private static int integer(Map<String, String> fields, String name) {
    return Integer.parseInt(text(fields, name));
  }

  private static double number(Map<String, String> fields, String name) {
    String value = text(fields, name);
    return value.isEmpty() ? Double.NaN : Double.parseDouble(value);
  }
}
