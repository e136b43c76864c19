// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import com.sun.management.OperatingSystemMXBean;
import io.broadhead.job.text.Json;
import io.broadhead.job.text.Units;
import io.broadhead.kernel.BackendInfo;
import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.EngineInfo;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import java.io.PrintWriter;
import java.lang.management.ManagementFactory;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** {@code broadhead doctor}: what would compute here and why, and what is missing. */
@Command(
    name = "doctor",
    mixinStandardHelpOptions = true,
    description = {
      "Show what this machine offers: backends, devices, CPU tier and the reason for"
          + " it, threads, memory, versions, missing JVM flags."
    },
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead doctor",
      "  broadhead doctor --json",
      "  broadhead doctor --backend cpu --threads 4",
    })
final class DoctorCommand extends EngineCommand {
  private static final String HOW_TO_ADD =
      "java -jar broadhead.jar needs no flags; elsewhere put them on the java command line, for a"
          + " Flink cluster into env.java.opts.all of its config.yaml";

  @Option(names = "--json", description = "Print one JSON object.")
  boolean json;

  @Override
  int executeOnEngine() {
    Report report = Report.make(new EngineConfig(backend, threads, device));
    if (json) {
      out().println(Json.of(report.toMap()));
    } else {
      report.print(out());
    }
    return report.chosen == null ? Main.FAILED : 0;
  }

  /** What was found. {@code chosen} is null, and {@code refusal} says why, if nothing can run. */
  private record Report(
      Map<String, String> versions,
      List<BackendInfo> backends,
      EngineInfo chosen,
      String refusal,
      Map<String, Object> machine,
      List<JvmAccess.Missing> missingFlags) {

    static Report make(EngineConfig config) {
      EngineInfo chosen = null;
      String refusal = null;
      try (KernelEngine engine = KernelEngine.open(config)) {
        chosen = engine.info();
      } catch (KernelException e) {
        refusal = e.getMessage();
      }
      return new Report(
          Versions.load(),
          KernelEngine.backends(),
          chosen,
          refusal,
          lookAtMachine(),
          JvmAccess.missing());
    }

    private static Map<String, Object> lookAtMachine() {
      OperatingSystemMXBean system =
          ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class);
      Map<String, Object> machine = new LinkedHashMap<>();
      machine.put("os", System.getProperty("os.name") + " " + System.getProperty("os.arch"));
      machine.put("processors", Runtime.getRuntime().availableProcessors());
      machine.put("memory_bytes", system.getTotalMemorySize());
      machine.put("memory_free_bytes", system.getFreeMemorySize());
      machine.put("java_heap_max_bytes", Runtime.getRuntime().maxMemory());
      return machine;
    }

    void print(PrintWriter out) {
      row(
          out,
          "versions",
          versions.entrySet().stream()
              .map(e -> e.getKey() + " " + e.getValue())
              .collect(Collectors.joining(", ")));
      row(out, "machine", machine.get("os") + ", " + machine.get("processors") + " processors");
      row(
          out,
          "memory",
          bytes("memory_bytes")
              + ", "
              + bytes("memory_free_bytes")
              + " free; Java heap up to "
              + bytes("java_heap_max_bytes")
              + ", the KV cache and Arrow buffers lie outside it");
      for (BackendInfo backend : backends) {
        row(
            out,
            "backend",
            backend.name()
                + (backend.usable() ? ": usable" : ": not usable")
                + (backend.device().isEmpty() ? "" : ", " + backend.device())
                + ", "
                + backend.reason());
      }
      if (chosen == null) {
        row(out, "chosen", "none: " + refusal);
      } else {
        row(out, "chosen", chosen.describe());
      }
      if (missingFlags.isEmpty()) {
        row(out, "jvm flags", "nothing is missing");
      } else {
        missingFlags.forEach(
            flag -> row(out, "jvm flags", "missing " + flag.flag() + ": " + flag.neededBy()));
        row(out, "", HOW_TO_ADD);
      }
    }

    private static void row(PrintWriter out, String name, String value) {
      out.printf("%-10s %s%n", name, value);
    }

    private String bytes(String key) {
      return Units.bytes((Long) machine.get(key));
    }

    Map<String, Object> toMap() {
      Map<String, Object> map = new LinkedHashMap<>();
      map.put("versions", versions);
      map.put("machine", machine);
      map.put("backends", backends.stream().map(Report::toMap).toList());
      map.put("chosen", chosen == null ? null : toMap(chosen));
      map.put("chosen_error", refusal);
      map.put(
          "missing_jvm_flags",
          missingFlags.stream()
              .map(flag -> Map.of("flag", flag.flag(), "needed_by", flag.neededBy()))
              .toList());
      map.put("how_to_add_jvm_flags", HOW_TO_ADD);
      return map;
    }

    private static Map<String, Object> toMap(BackendInfo backend) {
      Map<String, Object> map = new LinkedHashMap<>();
      map.put("name", backend.name());
      map.put("device", backend.device());
      map.put("usable", backend.usable());
      map.put("reason", backend.reason());
      return map;
    }

    private static Map<String, Object> toMap(EngineInfo engine) {
      Map<String, Object> map = new LinkedHashMap<>();
      map.put("backend", engine.backend());
      map.put("tier", engine.tier());
      map.put("device", engine.device());
      map.put("threads", engine.threads());
      map.put("reason", engine.reason());
      return map;
    }
  }
}
