// What the kernels need beside plain CUDA C++: accesses whose order or whose scope is the whole system.
// tests/kernels/host/system.cuh is the same for threads of a CPU, on which the tests run these kernels.
#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;

#define SHARED __shared__
#define KERNEL extern "C" __global__

__device__ inline u32 thread() { return threadIdx.x; }
__device__ inline u32 threads() { return blockDim.x; }
__device__ inline u32 block() { return blockIdx.x; }
__device__ inline u32 blocks() { return gridDim.x; }
__device__ inline void block_barrier() { __syncthreads(); }

// Everything that this thread's block did before its last `block_barrier` is seen by whoever acquires this value.
__device__ inline void release(u32* flag, u32 value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ inline u32 acquire(const u32* flag) {
  u32 value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Input that nobody writes meanwhile and nobody reads again: it shall not push other lines out of the first cache.
__device__ inline uint4 load(const uint4* at) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(at));
  return v;
}
__device__ inline u64 load(const u64* at) { return __ldg(at); }
__device__ inline u32 load(const u32* at) { return __ldg(at); }
__device__ inline unsigned char load(const unsigned char* at) { return __ldg(at); }

// Eight bytes of data in two halves, each beside the number of the call. Hardware writes and reads eight aligned bytes
// at once, so a half is there when its number is.
struct alignas(16) Packet {
  u32 low, first, high, second;
};

__device__ inline void put(Packet* at, u64 data, u32 number) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"((u32)data), "r"(number),
               "r"((u32)(data >> 32)), "r"(number)
               : "memory");
}

__device__ inline Packet get(const Packet* at) {
  Packet p;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(p.low), "=r"(p.first), "=r"(p.high), "=r"(p.second)
               : "l"(at)
               : "memory");
  return p;
}

__device__ inline void idle() {}
