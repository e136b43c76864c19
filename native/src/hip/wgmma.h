// SPDX-License-Identifier: Apache-2.0
// Hopper's asynchronous instructions: matrix products of a warpgroup (4 warps) on shared memory,
// bulk copies into it, and the barriers that order both.
//
// C[64 x kColumns] += A[64 x 16] B[16 x kColumns]. Thread (warp w, lane / 4 = g, lane % 4 = t) of
// the group holds of C, for every 8 columns j, rows 16w + g (numbers 4j, 4j + 1) and 16w + g + 8
// (4j + 2, 4j + 3) of columns 8j + 2t and 8j + 2t + 1. A comes from shared memory or from
// registers: words {row g, 2t}, {row g + 8, 2t}, {row g, 2t + 8}, {row g + 8, 2t + 8}, so that two
// blocks of 8 columns of C, rounded, are the A of the next product.
//
// Matrices in shared memory are panels of 128 bytes a row, the last one of 128, 64 or 32, as
// hip/cache_layout.h has them: the swizzles of as many bytes. Queries and keys are contiguous along
// the contracted index, values along the other.
#pragma once

#include "hip/element.h"

namespace broadhead::gpu::hopper {

constexpr int kGroupThreads = 128;
constexpr int kSharedBytes = 227 << 10;  ///< of a block of threads, at most

BH_INLINE uint32_t shared_address(const void* memory) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

/// Describes a matrix of panels of kWidth bytes in shared memory; 8 rows of one begin at a multiple
/// of their size. `group_stride`: bytes from 8 rows to the next 8; `panel_stride`: from a panel to
/// the next, for matrices that are contiguous along the columns of C.
template <int kWidth>
BH_INLINE uint64_t describe_matrix(uint32_t address, uint32_t group_stride,
                                   uint32_t panel_stride = 16) {
  static_assert(kWidth == 128 || kWidth == 64 || kWidth == 32);
  constexpr uint64_t kSwizzle = kWidth == 128 ? 1 : kWidth == 64 ? 2 : 3;
  return kSwizzle << 62 | uint64_t{group_stride >> 4} << 32 | uint64_t{panel_stride >> 4} << 16 |
         uint64_t{(address & 0x3ffffu) >> 4};
}

/// The matrix that starts so many bytes later.
BH_INLINE uint64_t advance(uint64_t matrix, int bytes) {
  return matrix + static_cast<uint64_t>(bytes >> 4);
}

BH_INLINE void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
BH_INLINE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kInFlight>
BH_INLINE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
}

#define BH_C4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define BH_C8(c, i) BH_C4(c, i), BH_C4(c, i + 4)
#define BH_C16(c, i) BH_C8(c, i), BH_C8(c, i + 8)
#define BH_C32(c, i) BH_C16(c, i), BH_C16(c, i + 16)
#define BH_C64(c, i) BH_C32(c, i), BH_C32(c, i + 32)
#define BH_LIST8 "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define BH_LIST16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define BH_LIST32                                                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31}"
#define BH_C48(c, i) BH_C32(c, i), BH_C16(c, i + 32)
#define BH_LIST48                                                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,"    \
  "%45,%46,%47}"
#define BH_LIST64                                                                           \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,"    \
  "%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

/// C = A B, or C += A B if `add`; A and B in shared memory, contiguous along the contracted index.
template <class T, int kColumns>
BH_INLINE void multiply(uint64_t a, uint64_t b, bool add, float* c);
/// C += A B; A in registers, B contiguous along the columns.
template <class T, int kColumns>
BH_INLINE void accumulate(const uint32_t* a, uint64_t b, float* c);

#define BH_MULTIPLY(T, type, n, list, numbers, p0, p1, p2)                                       \
  template <>                                                                                    \
  BH_INLINE void multiply<T, n>(uint64_t a, uint64_t b, bool add, float* c) {                    \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " p2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n \
                 "k16.f32." type "." type " " list ", " p0 ", " p1 ", p, 1, 1, 0, 0;}"           \
                 : numbers(c, 0)                                                                 \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                  \
  }
#define BH_ACCUMULATE(T, type, n, list, numbers, p0, p1, p2, p3, p4)                               \
  template <>                                                                                      \
  BH_INLINE void accumulate<T, n>(const uint32_t* a, uint64_t b, float* c) {                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " " list ", {" p0 \
                 ", " p1 ", " p2 ", " p3 "}, " p4 ", 1, 1, 1, 1;"                                  \
                 : numbers(c, 0)                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                            \
  }
#define BH_PRODUCTS(T, type)                                                       \
  BH_MULTIPLY(T, type, 64, BH_LIST32, BH_C32, "%32", "%33", "%34")                 \
  BH_MULTIPLY(T, type, 96, BH_LIST48, BH_C48, "%48", "%49", "%50")                 \
  BH_MULTIPLY(T, type, 128, BH_LIST64, BH_C64, "%64", "%65", "%66")                \
  BH_ACCUMULATE(T, type, 16, BH_LIST8, BH_C8, "%8", "%9", "%10", "%11", "%12")     \
  BH_ACCUMULATE(T, type, 32, BH_LIST16, BH_C16, "%16", "%17", "%18", "%19", "%20") \
  BH_ACCUMULATE(T, type, 64, BH_LIST32, BH_C32, "%32", "%33", "%34", "%35", "%36") \
  BH_ACCUMULATE(T, type, 128, BH_LIST64, BH_C64, "%64", "%65", "%66", "%67", "%68")
BH_PRODUCTS(Float16, "f16")
BH_PRODUCTS(BFloat16, "bf16")
#undef BH_PRODUCTS
#undef BH_ACCUMULATE
#undef BH_MULTIPLY

// ---- barriers in shared memory, and copies that arrive at them ----

BH_INLINE void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
BH_INLINE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
BH_INLINE void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
BH_INLINE void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
BH_INLINE void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
BH_INLINE void copy_bulk(void* to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
/// True for one lane of a warp, all of whose lanes come here.
BH_INLINE bool elect() {
  uint32_t elected;
  asm volatile(
      "{.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;}"
      : "=r"(elected));
  return elected != 0;
}
/// As copy_chunk of hip/copy.h, or stores zeros and reads nothing.
BH_INLINE void copy_or_clear(void* to, const void* from, bool copies) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(copies ? 16 : 0)
               : "memory");
}
/// Makes ordinary stores to shared memory visible to products and copies.
BH_INLINE void fence_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

BH_INLINE void synchronize(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
/// Synchronizes, and tells whether `found` is true for any of the threads.
BH_INLINE bool synchronize_any(int barrier, int threads, bool found) {
  uint32_t any;
  asm volatile(
      "{.reg .pred mine, any;\n"
      "setp.ne.u32 mine, %3, 0;\n"
      "bar.red.or.pred any, %1, %2, mine;\n"
      "selp.u32 %0, 1, 0, any;}"
      : "=r"(any)
      : "r"(barrier), "r"(threads), "r"(static_cast<uint32_t>(found))
      : "memory");
  return any != 0;
}

template <int kRegisters>
BH_INLINE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
BH_INLINE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace broadhead::gpu::hopper
