// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.MalformedArrowException;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.job.InvalidJobException;
import io.broadhead.kernel.KernelException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/** Turns what was thrown into the one line that a user reads. */
final class Failure {
  /** Exceptions whose message is written for the user, the one that says most first. */
  private static final List<Class<? extends Throwable>> WRITTEN_FOR_USERS =
      List.of(
          WorkFailedException.class,
          InvalidJobException.class,
          InvalidBatchException.class,
          MalformedArrowException.class,
          KernelException.class);

  private Failure() {}

  /** The line, without the command's name. */
  static String describe(Throwable failure) {
    Optional<Throwable> told = find(failure);
    if (told.isPresent()) {
      return oneLine(told.get().getMessage()) + besides(failure);
    }
    Throwable root = failure;
    while (root.getCause() != null) {
      root = root.getCause();
    }
    if (root instanceof NoSuchFileException e) {
      return e.getFile() + ": no such file or folder";
    }
    if (root instanceof AccessDeniedException e) {
      return e.getFile() + ": permission denied";
    }
    if (root instanceof FileSystemException e) {
      return e.getFile() + ": " + (e.getReason() == null ? "cannot be used" : e.getReason());
    }
    if (root instanceof OutOfMemoryError) {
      return "out of memory: "
          + root.getMessage()
          + " (java -Xmx... raises the limit of the Java heap; the KV cache lies outside it)";
    }
    Throwable context = failure;
    while (context != root && says(context).isEmpty()) {
      context = context.getCause();
    }
    String cause = root.getClass().getSimpleName() + after(": ", oneLine(root.getMessage()));
    return context == root ? cause : oneLine(context.getMessage()) + " (" + cause + ")";
  }

  /**
   * What went wrong while {@code failure} was dealt with, such as the device of an earlier step.
   */
  private static String besides(Throwable failure) {
    StringBuilder text = new StringBuilder();
    for (Throwable t = failure; t != null; t = t.getCause()) {
      for (Throwable suppressed : t.getSuppressed()) {
        find(suppressed).ifPresent(e -> text.append("; besides: ").append(oneLine(e.getMessage())));
      }
    }
    return text.toString();
  }

  /** What {@code failure} adds to its cause; empty for the wrappers of thread pools and Flink. */
  private static String says(Throwable failure) {
    String message = oneLine(failure.getMessage());
    boolean wrapper =
        failure instanceof ExecutionException
            || failure instanceof CompletionException
            || failure.getClass().getName().startsWith("org.apache.flink.runtime.")
            || failure.getCause() != null
                && message.contains(oneLine(failure.getCause().toString()));
    return wrapper ? "" : message;
  }

  private static String after(String separator, String text) {
    return text.isEmpty() ? "" : separator + text;
  }

  /** Whether nobody expected this failure, so that a stack trace may help. */
  static boolean isUnexpected(Throwable failure) {
    if (find(failure).isPresent()) {
      return false;
    }
    Throwable root = failure;
    while (root.getCause() != null) {
      root = root.getCause();
    }
    return !(root instanceof FileSystemException);
  }

  private static Optional<Throwable> find(Throwable failure) {
    for (Class<? extends Throwable> type : WRITTEN_FOR_USERS) {
      for (Throwable t = failure; t != null; t = t.getCause()) {
        if (type.isInstance(t)) {
          return Optional.of(t);
        }
      }
    }
    return Optional.empty();
  }

  private static String oneLine(String message) {
    return message == null ? "" : message.strip().replaceAll("\\s*\\R\\s*", "; ");
  }

  /** Refuses a path that is no file or cannot be read. */
  static void requireFile(Path path, String option) throws WorkFailedException {
    requireReadable(path, option);
    if (Files.isDirectory(path)) {
      throw new WorkFailedException(option + " " + path + ": expected a file, got a folder");
    }
  }

  /** Refuses the path of a file that is to be written where that cannot be. */
  static void requireWritable(Path path, String option) throws WorkFailedException {
    if (Files.isDirectory(path)) {
      throw new WorkFailedException(option + " " + path + ": expected a file, got a folder");
    }
    Path folder = path.toAbsolutePath().getParent();
    if (!Files.isDirectory(folder)) {
      throw new WorkFailedException(option + " " + path + ": there is no folder " + folder);
    }
    if (!Files.isWritable(folder)) {
      throw new WorkFailedException(option + " " + folder + ": permission denied");
    }
  }

  /** Refuses a path that is not there or cannot be read. */
  static void requireReadable(Path path, String option) throws WorkFailedException {
    if (!Files.exists(path)) {
      throw new WorkFailedException(option + " " + path + ": no such file or folder");
    }
    if (!Files.isReadable(path)) {
      throw new WorkFailedException(option + " " + path + ": permission denied");
    }
  }
}
