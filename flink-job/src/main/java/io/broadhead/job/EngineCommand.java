// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import picocli.CommandLine.Option;

/** The options of the commands that open a backend. */
abstract class EngineCommand extends ReportingCommand {
  @Option(
      names = "--backend",
      paramLabel = "NAME",
      defaultValue = "auto",
      description =
          "Backend that runs the kernels: auto (the best that works on the machine), or a"
              + " name that 'broadhead doctor' lists. Default: ${DEFAULT-VALUE}.")
  String backend;

  @Option(
      names = "--threads",
      paramLabel = "N",
      defaultValue = "0",
      description = "CPU threads per step. Default: one per core.")
  int threads;

  @Option(
      names = "--device",
      paramLabel = "N",
      defaultValue = "0",
      description =
          "Device index of a GPU backend; -1: the device with the most free memory."
              + " Default: ${DEFAULT-VALUE}.")
  int device;

  /** Does the work, the engine's options being in range. */
  abstract int executeOnEngine() throws Exception;

  @Override
  final int execute() throws Exception {
    requireKnownBackend(backend);
    requireOption(threads >= 0, "--threads", "0 or more", threads);
    requireOption(device >= -1, "--device", "0 or more, or -1", device);
    return executeOnEngine();
  }
}
