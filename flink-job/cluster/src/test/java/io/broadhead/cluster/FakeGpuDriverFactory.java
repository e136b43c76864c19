// SPDX-License-Identifier: Apache-2.0
package io.broadhead.cluster;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.jar.JarEntry;
import java.util.jar.JarOutputStream;
import org.apache.flink.api.common.externalresource.ExternalResourceDriver;
import org.apache.flink.api.common.externalresource.ExternalResourceDriverFactory;
import org.apache.flink.api.common.externalresource.ExternalResourceInfo;
import org.apache.flink.configuration.Configuration;

/** A plugin of Flink's that says every TaskManager has the GPU {@link #INDEX}. */
public final class FakeGpuDriverFactory implements ExternalResourceDriverFactory {
  static final int INDEX = 3;

  /** What Flink's GPU driver tells of a GPU. */
  private static final class Gpu implements ExternalResourceInfo {
    @Override
    public Optional<String> getProperty(String key) {
      return key.equals("index") ? Optional.of(Integer.toString(INDEX)) : Optional.empty();
    }

    @Override
    public Collection<String> getKeys() {
      return List.of("index");
    }
  }

  @Override
  public ExternalResourceDriver createExternalResourceDriver(Configuration configuration) {
    return amount -> Set.of(new Gpu());
  }

  /** Flink's properties for a resource gpu of this driver. */
  static String[] properties() {
    return new String[] {
      "external-resources=gpu",
      "external-resource.gpu.amount=1",
      "external-resource.gpu.driver-factory.class=" + FakeGpuDriverFactory.class.getName()
    };
  }

  /** Puts the plugin into a folder of plugins. */
  static void install(Path plugins) throws IOException {
    Path folder = Files.createDirectories(plugins.resolve("fake-gpu"));
    try (OutputStream file = Files.newOutputStream(folder.resolve("driver.jar"));
        JarOutputStream jar = new JarOutputStream(file)) {
      jar.putNextEntry(
          new JarEntry("META-INF/services/" + ExternalResourceDriverFactory.class.getName()));
      jar.write(FakeGpuDriverFactory.class.getName().getBytes(StandardCharsets.UTF_8));
      for (Class<?> type : List.of(FakeGpuDriverFactory.class, Gpu.class)) {
        String name = type.getName().replace('.', '/') + ".class";
        jar.putNextEntry(new JarEntry(name));
        try (InputStream bytes = type.getClassLoader().getResourceAsStream(name)) {
          bytes.transferTo(jar);
        }
      }
    }
  }
}
