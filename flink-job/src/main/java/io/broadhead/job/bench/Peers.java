// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.ServiceLoader;
import java.util.stream.Stream;

/** The peers in a folder of jars. Its owner closes it when no peer is in use any more. */
public final class Peers implements AutoCloseable {
  private final List<Peer> peers;
  private final URLClassLoader loader;

  private Peers(List<Peer> peers, URLClassLoader loader) {
    this.peers = peers;
    this.loader = loader;
  }

  /** Nobody. */
  public static Peers none() {
    return new Peers(List.of(), null);
  }

  /**
   * Loads the peers in the jars of {@code folder}. The calling thread gets their class loader as
   * its context class loader, since some of them look there for their parts.
   *
   * @throws IOException if it cannot be listed
   */
  public static Peers load(Path folder) throws IOException {
    URL[] jars;
    try (Stream<Path> files = Files.list(folder)) {
      jars =
          files
              .filter(file -> file.toString().endsWith(".jar"))
              .map(Peers::url)
              .toArray(URL[]::new);
    }
    URLClassLoader loader = new URLClassLoader("peers", jars, Peers.class.getClassLoader());
    Thread.currentThread().setContextClassLoader(loader);
    List<Peer> peers = new ArrayList<>();
    ServiceLoader.load(Peer.class, loader).forEach(peers::add);
    return new Peers(peers, loader);
  }

  private static URL url(Path file) {
    try {
      return file.toUri().toURL();
    } catch (MalformedURLException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** The peers, in the order in which they were found. */
  public List<Peer> all() {
    return peers;
  }

  @Override
  public void close() throws IOException {
    if (loader != null) {
      Thread.currentThread().setContextClassLoader(Peers.class.getClassLoader());
      loader.close();
    }
  }
}
