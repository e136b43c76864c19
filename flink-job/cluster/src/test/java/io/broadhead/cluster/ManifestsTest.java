// SPDX-License-Identifier: Apache-2.0
package io.broadhead.cluster;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;

import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.cfg.MapperConfig;
import com.fasterxml.jackson.databind.introspect.Annotated;
import com.fasterxml.jackson.databind.introspect.JacksonAnnotationIntrospector;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.fasterxml.jackson.dataformat.yaml.YAMLFactory;
import io.broadhead.flink.PagedAttentionOptions;
import io.broadhead.job.Main;
import java.lang.reflect.Field;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.ExternalResourceOptions;
import org.apache.flink.configuration.HighAvailabilityOptions;
import org.apache.flink.configuration.JobManagerOptions;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.MetricOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.kubernetes.operator.api.FlinkDeployment;
import org.apache.flink.kubernetes.operator.api.spec.FlinkDeploymentSpec;
import org.apache.flink.kubernetes.operator.api.spec.JobSpec;
import org.apache.flink.runtime.clusterframework.TaskExecutorProcessUtils;
import org.apache.flink.runtime.jobmanager.JobManagerProcessUtils;
import org.apache.flink.runtime.util.EnvironmentInformation;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import picocli.CommandLine;

/**
 * The FlinkDeployments against the Kubernetes operator's classes, Flink's options and the command
 * line. Nothing is deployed.
 */
class ManifestsTest {
  private static final List<Class<?>> OPTIONS =
      List.of(
          CheckpointingOptions.class,
          ExternalResourceOptions.class,
          HighAvailabilityOptions.class,
          MetricOptions.class,
          PagedAttentionOptions.class,
          StateBackendOptions.class,
          TaskManagerOptions.class);

  /** Of reporters and resources, whose keys have a name in them. */
  private static final Set<String> NAMED_KEYS =
      Set.of(
          "metrics.reporter.prometheus.factory.class",
          "metrics.reporter.prometheus.port",
          ExternalResourceOptions.getAmountConfigOptionForResource("gpu"),
          ExternalResourceOptions.getExternalResourceDriverFactoryConfigOptionForResource("gpu"),
          ExternalResourceOptions.getSystemConfigKeyConfigOptionForResource(
              "gpu", "kubernetes.config-key"));

  private static final ObjectMapper YAML =
      new ObjectMapper(new YAMLFactory())
          .enable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
          .enable(DeserializationFeature.FAIL_ON_READING_DUP_TREE_KEY)
          .setAnnotationIntrospector(new Strict());

  /** The operator's and Kubernetes' classes take keys that they do not know. */
  private static final class Strict extends JacksonAnnotationIntrospector {
    private static final long serialVersionUID = 1;

    @Override
    public JsonIgnoreProperties.Value findPropertyIgnoralByName(
        MapperConfig<?> config, Annotated annotated) {
      return JsonIgnoreProperties.Value.empty();
    }

    @Override
    public Boolean hasAnySetter(Annotated annotated) {
      return false;
    }
  }

  static List<Path> manifests() throws Exception {
    try (Stream<Path> files = Files.list(Path.of("kubernetes"))) {
      return files.sorted().toList();
    }
  }

  /** The operator's classes know no Flink as new as ours: its version is compared by itself. */
  private static FlinkDeploymentSpec spec(Path manifest) throws Exception {
    JsonNode tree = YAML.readTree(Files.readString(manifest));
    String[] version = EnvironmentInformation.getVersion().split("\\.");
    assertThat(((ObjectNode) tree.get("spec")).remove("flinkVersion").asText())
        .isEqualTo("v" + version[0] + "_" + version[1]);
    FlinkDeployment deployment = YAML.treeToValue(tree, FlinkDeployment.class);
    assertThat(deployment.getKind()).isEqualTo(tree.get("kind").asText());
    assertThat(deployment.getApiVersion()).isEqualTo(tree.get("apiVersion").asText());
    return deployment.getSpec();
  }

  /** What Flink's options are called, each with the option. */
  private static Map<String, ConfigOption<?>> options() throws Exception {
    Map<String, ConfigOption<?>> options = new HashMap<>();
    for (Class<?> holder : OPTIONS) {
      for (Field field : holder.getFields()) {
        if (field.getType() == ConfigOption.class) {
          ConfigOption<?> option = (ConfigOption<?>) field.get(null);
          options.put(option.key(), option);
        }
      }
    }
    return options;
  }

  @ParameterizedTest
  @MethodSource("manifests")
  void everyKeyIsAnOptionWithAValueOfItsType(Path manifest) throws Exception {
    Map<String, String> given = spec(manifest).getFlinkConfiguration();
    Map<String, ConfigOption<?>> options = options();
    Configuration configuration = Configuration.fromMap(given);
    for (String key : given.keySet()) {
      if (!NAMED_KEYS.contains(key)) {
        assertThat(options).containsKey(key);
        assertThat(configuration.getOptional(options.get(key))).isPresent();
      }
    }
  }

  @ParameterizedTest
  @MethodSource("manifests")
  void memoryAddsUp(Path manifest) throws Exception {
    FlinkDeploymentSpec spec = spec(manifest);
    Configuration configuration = Configuration.fromMap(spec.getFlinkConfiguration());
    configuration.set(
        TaskManagerOptions.TOTAL_PROCESS_MEMORY,
        MemorySize.parse(spec.getTaskManager().getResource().getMemory()));
    configuration.set(
        JobManagerOptions.TOTAL_PROCESS_MEMORY,
        MemorySize.parse(spec.getJobManager().getResource().getMemory()));
    assertThatCode(() -> TaskExecutorProcessUtils.processSpecFromConfig(configuration))
        .doesNotThrowAnyException();
    assertThatCode(() -> JobManagerProcessUtils.processSpecFromConfig(configuration))
        .doesNotThrowAnyException();
  }

  @ParameterizedTest
  @MethodSource("manifests")
  void theJobTakesItsArguments(Path manifest) throws Exception {
    JobSpec job = spec(manifest).getJob();
    CommandLine line = new CommandLine(Main.class).setCaseInsensitiveEnumValuesAllowed(true);
    assertThat(line.parseArgs(job.getArgs()).hasSubcommand()).isTrue();
    assertThat(job.getParallelism()).isPositive();
  }
}
