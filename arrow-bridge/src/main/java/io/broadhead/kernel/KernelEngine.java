// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.broadhead.arrow.Allocators;
import io.broadhead.nativelib.bh_backend_info;
import io.broadhead.nativelib.bh_engine;
import io.broadhead.nativelib.bh_engine_info;
import io.broadhead.nativelib.bh_engine_options;
import io.broadhead.nativelib.bh_error;
import io.broadhead.nativelib.global.broadhead;
import java.util.ArrayList;
import java.util.List;
import org.apache.arrow.memory.ArrowBuf;
import org.bytedeco.javacpp.BytePointer;

/**
 * An opened backend, from which caches and layers are made. Its owner closes it; caches and layers
 * that are still open keep it alive. Used by one thread at a time.
 */
public final class KernelEngine extends NativeHandle {
  private final bh_engine handle;
  private final EngineInfo info;

  private KernelEngine(bh_engine handle) {
    super("engine");
    this.handle = handle;
    try (bh_engine_info description = new bh_engine_info()) {
      broadhead.bh_engine_describe(handle, description);
      this.info =
          new EngineInfo(
              NativeErrors.text(description.backend()),
              NativeErrors.text(description.tier()),
              NativeErrors.text(description.device()),
              NativeErrors.text(description.reason()),
              description.threads(),
              description.free_memory(),
              description.overlaps() != 0);
    }
  }

  /**
   * Opens a backend.
   *
   * @throws KernelException with the reason if it cannot be used here
   */
  public static KernelEngine open(EngineConfig config) {
    NativeLoader.load();
    bh_engine handle = new bh_engine();
    try (bh_engine_options options = new bh_engine_options();
        BytePointer backend = new BytePointer(config.backend(), UTF_8)) {
      options
          .struct_size((int) options.sizeof())
          .backend(backend)
          .threads(config.threads())
          .device(config.device());
      NativeErrors.check(error -> broadhead.bh_engine_create(options, handle, error));
    }
    return new KernelEngine(handle);
  }

  /** Every backend that the library knows, usable here or not. */
  public static List<BackendInfo> backends() {
    NativeLoader.load();
    List<BackendInfo> backends = new ArrayList<>();
    try (bh_backend_info info = new bh_backend_info()) {
      for (int i = 0; i < broadhead.bh_backend_count(); i++) {
        int status = broadhead.bh_backend_describe(i, info);
        if (status != broadhead.BH_OK) {
          throw new KernelException(ErrorCode.of(status), -1, "backend " + i + " has no answer");
        }
        backends.add(
            new BackendInfo(
                NativeErrors.text(info.name()),
                NativeErrors.text(info.device()),
                info.usable() != 0,
                NativeErrors.text(info.reason())));
      }
    }
    return backends;
  }

  /** Engines, caches, layers, bindings and steps of this JVM that exist and were not yet freed. */
  public static long liveHandles() {
    NativeLoader.load();
    return broadhead.bh_live_handles();
  }

  /** Which backend, tier and device this is, and why. */
  public EngineInfo info() {
    return info;
  }

  /**
   * Memory that this engine's steps use in place: for a GPU pinned and mapped, so that tensors are
   * neither staged nor copied, for a CPU in huge pages where it is large. It is reused. Every
   * buffer keeps the engine alive; for {@link Allocators#root(Allocators.Memory)}.
   */
  public Allocators.Memory memory() {
    return new Allocators.Memory() {
      @Override
      public long allocate(long bytes) {
        acquire();
        long address = broadhead.bh_engine_alloc(handle, bytes);
        if (address == 0) {
          drop();
        }
        return address;
      }

      @Override
      public void free(long address) {
        broadhead.bh_engine_free(handle, address);
        drop();
      }
    };
  }

  /**
   * Reads blocks of a cache of this engine once, whole and several at a time: as fast as a decode
   * step over these blocks can be at best.
   *
   * @return nanoseconds
   * @throws KernelException if the backend does not measure it, or a block is out of range
   */
  public long probeRead(KernelCache cache, int[] blocks) {
    cache.enter();
    try {
      return probe(
          (nanoseconds, error) ->
              broadhead.bh_probe_read(
                  handle, cache.handle(), blocks, blocks.length, nanoseconds, error));
    } finally {
      cache.exit();
    }
  }

  /**
   * Does {@code flops} float32 operations on registers, a fused multiply-add counting as two: as
   * fast as a prefill step can be at best.
   *
   * @return nanoseconds
   * @throws KernelException if the backend does not measure it
   */
  public long probeCompute(long flops) {
    return probe(
        (nanoseconds, error) -> broadhead.bh_probe_compute(handle, flops, nanoseconds, error));
  }

  /**
   * Copies the bytes of {@code source} to {@code target}, which is as long: as fast as a cache
   * update can be at best.
   *
   * @return nanoseconds
   * @throws KernelException if the backend does not measure it
   */
  public long probeCopy(ArrowBuf source, ArrowBuf target) {
    if (target.capacity() < source.capacity()) {
      throw new IllegalArgumentException(
          "target: expected a buffer of " + source.capacity() + " bytes, got " + target.capacity());
    }
    Address from = new Address(source.memoryAddress());
    Address to = new Address(target.memoryAddress());
    return probe(
        (nanoseconds, error) ->
            broadhead.bh_probe_copy(handle, from, to, source.capacity(), nanoseconds, error));
  }

  private interface Probe {
    int run(long[] nanoseconds, bh_error error);
  }

  private long probe(Probe probe) {
    long[] nanoseconds = new long[1];
    enter();
    try {
      NativeErrors.check(error -> probe.run(nanoseconds, error));
    } finally {
      exit();
    }
    return nanoseconds[0];
  }

  /**
   * Makes steps that are running on this engine, and all later ones, end with {@link
   * ErrorCode#CANCELLED} as soon as they notice; its caches are good for nothing any more. May be
   * called by any thread; does nothing on a closed engine.
   */
  public void cancel() {
    tryUse(() -> broadhead.bh_engine_cancel(handle));
  }

  bh_engine handle() {
    return handle;
  }

  @Override
  void destroy() {
    broadhead.bh_engine_destroy(handle);
  }
}
