// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import io.broadhead.arrow.JvmFlags;
import io.broadhead.nativelib.global.broadhead;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.JarURLConnection;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ForkJoinPool;
import org.bytedeco.javacpp.Loader;

/** Loads the native library once per class loader, or says in one sentence why it cannot. */
public final class NativeLoader {
  private static final String MAX_PHYSICAL_BYTES = "org.bytedeco.javacpp.maxPhysicalBytes";
  private static final String CACHE_FOLDER = "org.bytedeco.javacpp.cachedir";
  private static final String BUILD_PREFIX = "broadhead-";

  private static volatile boolean loaded;

  private NativeLoader() {}

  /**
   * Loads the library if it is not yet loaded.
   *
   * @throws IllegalStateException naming the JVM flag to add
   * @throws KernelException {@link ErrorCode#ABI_MISMATCH} if library and binding do not fit
   */
  public static void load() {
    if (!loaded) {
      loadOnce();
    }
  }

  private static synchronized void loadOnce() {
    if (loaded) {
      return;
    }
    JvmFlags.requireJavaNioOpen();
    // JavaCPP would otherwise count the whole process, KV cache included, against four times the
    // heap and throw OutOfMemoryError. It reads the property when its first class is initialised.
    if (System.getProperty(MAX_PHYSICAL_BYTES) == null) {
      System.setProperty(MAX_PHYSICAL_BYTES, "0");
    }
    int version;
    // JavaCPP's first class starts a thread that never ends and keeps what it inherits from its
    // creator, which in a Flink task would be the class loader of the job.
    ForkJoinPool creator = new ForkJoinPool(1);
    try {
      version = CompletableFuture.supplyAsync(NativeLoader::abiVersion, creator).join();
    } catch (CompletionException e) {
      if (!(e.getCause() instanceof LinkageError)) {
        throw e;
      }
      throw new IllegalStateException(
          "the native library of Broadhead cannot be loaded on "
              + System.getProperty("os.name")
              + " "
              + System.getProperty("os.arch")
              + ": "
              + e.getCause().getMessage(),
          e.getCause());
    } finally {
      creator.shutdown();
    }
    checkVersion(broadhead.BH_ABI_VERSION, version);
    loaded = true;
  }

  private static int abiVersion() {
    String library = "/io/broadhead/nativelib/" + Loader.getPlatform() + "/libjnibroadhead.so";
    try {
      URL inJar = broadhead.class.getResource(library);
      if (inJar != null && inJar.openConnection() instanceof JarURLConnection jar) {
        System.setProperty(CACHE_FOLDER, cacheFolder(jar.getJarEntry().getCrc()).toString());
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return broadhead.bh_abi_version();
  }

  /**
   * Where JavaCPP is to put the library of the jar. In its own folder it takes a library that is
   * there already for the one of the jar if name, size and time are equal; those of two builds of a
   * version often are, as a reproducible build has one time, and the size is rounded to pages.
   */
  private static Path cacheFolder(long crc) throws IOException {
    String build = BUILD_PREFIX + String.format("%08x", crc);
    String configured = System.getProperty(CACHE_FOLDER);
    if (configured != null) {
      Path folder = Path.of(configured);
      boolean ofBuild = String.valueOf(folder.getFileName()).startsWith(BUILD_PREFIX);
      return ofBuild ? folder.resolveSibling(build) : folder.resolve(build);
    }
    try {
      return Files.createDirectories(
          Path.of(System.getProperty("user.home"), ".javacpp", "cache", build));
    } catch (IOException readOnlyHome) {
      return Path.of(
          System.getProperty("java.io.tmpdir"),
          ".javacpp-" + System.getProperty("user.name"),
          "cache",
          build);
    }
  }

  static void checkVersion(int expected, int got) {
    if (expected != got) {
      throw new KernelException(
          ErrorCode.ABI_MISMATCH,
          -1,
          "native library: expected ABI version "
              + expected
              + ", got "
              + got
              + "; two versions of Broadhead are on the class path or in the library folder");
    }
  }

  /** Whether {@link #load()} has succeeded in this class loader. */
  public static boolean isLoaded() {
    return loaded;
  }
}
