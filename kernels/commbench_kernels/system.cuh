// What the kernels need beside plain CUDA C++: accesses whose order or whose scope is the whole system.
// tests/kernels/host/system.cuh is the same for threads of a CPU, on which the tests run these kernels.
#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;

#define SHARED(type, name) __shared__ type name  // one of each block
#define KERNEL extern "C" __global__

__device__ inline u32 thread() { return threadIdx.x; }
__device__ inline u32 threads() { return blockDim.x; }
__device__ inline u32 block() { return blockIdx.x; }
__device__ inline u32 blocks() { return gridDim.x; }
__device__ inline void block_barrier() { __syncthreads(); }
constexpr u32 LANES = 32;  // threads that move one row together
__device__ inline u32 add_shared(u32* at, u32 more) { return atomicAdd(at, more); }

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
__device__ inline int load(const int* at) { return __ldg(at); }
__device__ inline float load(const float* at) { return __ldg(at); }
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

// Two numbers in one word, the first in its low half, as fp32 and back: rounded to the nearest, half to even.
struct Bf16 {
  __device__ static inline float low(u32 word) { return __uint_as_float(word << 16); }
  __device__ static inline float high(u32 word) { return __uint_as_float(word & 0xFFFF0000); }
  __device__ static inline u32 pack(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
};

struct Fp16 {
  __device__ static inline float low(u32 word) {
    float value;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(value) : "r"(word));
    return value;
  }
  __device__ static inline float high(u32 word) {
    float value;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(word));
    return value;
  }
  __device__ static inline u32 pack(float low, float high) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
};

__device__ inline float as_float(u32 word) { return __uint_as_float(word); }
__device__ inline u32 as_word(float value) { return __float_as_uint(value); }
