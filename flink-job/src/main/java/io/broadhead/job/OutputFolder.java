// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.sink.ResultFileSink;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.function.Predicate;
import java.util.stream.Stream;

/** A folder for results: never a mixture of two runs. */
final class OutputFolder {
  private static final int DEPTH = 2;

  private OutputFolder() {}

  /**
   * Makes {@code folder}, and refuses it if it holds results, or removes them.
   *
   * @param inputs what must not be removed with them
   * @return whether the folder was made here
   */
  static boolean prepare(Path folder, boolean overwrite, List<Path> inputs)
      throws IOException, WorkFailedException {
    requireUsable("--output", folder, inputs);
    if (!Files.exists(folder)) {
      Files.createDirectories(folder);
      return true;
    }
    clear(
        "--output",
        folder,
        name -> name.endsWith(ResultFileSink.RESULT_SUFFIX) && !name.startsWith("."),
        overwrite,
        inputs);
    return false;
  }

  /**
   * Refuses a folder that is not there and cannot be made, one in which nothing can be written, and
   * one of {@code inputs}: the next command would read what this one wrote.
   */
  static void requireUsable(String option, Path folder, List<Path> inputs)
      throws IOException, WorkFailedException {
    Path there = folder.toAbsolutePath().normalize();
    while (!Files.exists(there)) {
      there = there.getParent();
    }
    if (!Files.isDirectory(there)) {
      throw new WorkFailedException(
          option + " " + folder + ": expected a folder, got the file " + there);
    }
    if (!Files.isWritable(there)) {
      throw new WorkFailedException(option + " " + there + ": permission denied");
    }
    for (Path input : inputs) {
      if (Files.exists(folder) && Files.isSameFile(folder, input)) {
        throw new WorkFailedException(
            option + " " + folder + ": expected a folder other than that of the input");
      }
    }
  }

  /** Refuses a folder with rows that an earlier run left out, or removes them. */
  static void clearRefused(Path folder, boolean overwrite, List<Path> inputs)
      throws IOException, WorkFailedException {
    if (Files.isDirectory(folder)) {
      clear(
          "--refused",
          folder,
          name -> name.startsWith(ResultFileSink.REFUSED + "-"),
          overwrite,
          inputs);
    }
  }

  private static void clear(
      String option, Path folder, Predicate<String> isResult, boolean overwrite, List<Path> inputs)
      throws IOException, WorkFailedException {
    List<Path> results = find(folder, isResult);
    if (results.isEmpty()) {
      return;
    }
    if (!overwrite) {
      throw new WorkFailedException(
          option
              + " "
              + folder
              + ": expected a folder without results, got "
              + results.size()
              + (results.size() == 1 ? " file" : " files")
              + ", such as "
              + folder.relativize(results.get(0))
              + "; choose another folder, or --overwrite to remove them");
    }
    for (Path input : inputs) {
      if (input.toRealPath().startsWith(folder.toRealPath())) {
        throw new WorkFailedException(
            "--overwrite: expected the input outside the folder " + folder + ", got " + input);
      }
    }
    for (Path result : results) {
      Files.delete(result);
    }
  }

  /**
   * Removes the parts that a run began and did not end well, and folders that are empty then.
   *
   * @param kind what the names start with
   * @param since a bound that the names of the run's parts sort behind
   * @param committed whether parts that already have their final name are removed too
   * @param own whether the folder itself was made by that run
   */
  static void removeParts(Path folder, String kind, String since, boolean committed, boolean own)
      throws IOException {
    if (!Files.isDirectory(folder)) {
      return;
    }
    for (Path file : find(folder, name -> isPart(name, kind, since, committed))) {
      Files.delete(file);
      Path parent = file.getParent();
      if (!parent.equals(folder) && isEmpty(parent)) {
        Files.delete(parent);
      }
    }
    if (own && isEmpty(folder)) {
      Files.delete(folder);
    }
  }

  /** Flink hides a part behind a dot until it is committed. */
  private static boolean isPart(String name, String kind, String since, boolean committed) {
    boolean hidden = name.startsWith(".") && name.contains(".inprogress.");
    String plain = hidden ? name.substring(1) : name;
    return plain.startsWith(kind + "-") && plain.compareTo(since) > 0 && (hidden || committed);
  }

  static boolean isEmpty(Path folder) throws IOException {
    try (Stream<Path> entries = Files.list(folder)) {
      return entries.findAny().isEmpty();
    }
  }

  private static List<Path> find(Path folder, Predicate<String> name) throws IOException {
    try (Stream<Path> entries = Files.walk(folder, DEPTH)) {
      return entries
          .filter(Files::isRegularFile)
          .filter(file -> name.test(file.getFileName().toString()))
          .sorted()
          .toList();
    }
  }
}
