// kernels/commbench_kernels/system.cuh for threads of a CPU: each CUDA thread is one of them.
#pragma once

#include <atomic>
#include <barrier>
#include <bit>
#include <chrono>
#include <cstdint>
#include <random>
#include <thread>

using u32 = unsigned int;
using u64 = unsigned long long;

#define KERNEL static
#define SHARED(type, name) type& name = *(type*)here.shared
#define __device__
#define __grid_constant__

struct uint4 {
  u32 x, y, z, w;
};

struct Place {
  u32 thread, threads, block, blocks;
  std::barrier<>* barrier;
  void* shared = nullptr;  // of the block
};
inline thread_local Place here;

// A thread may be late at any time, and most of all between what it tells others and what it hears from them.
struct Delays {
  std::mt19937 random;
  u32 most_us = 0;
};
inline thread_local Delays delays;
inline void dawdle() {
  if (delays.most_us && delays.random() % 8 == 0)
    std::this_thread::sleep_for(std::chrono::microseconds(delays.random() % delays.most_us));
}

inline u32 thread() { return here.thread; }
inline u32 threads() { return here.threads; }
inline u32 block() { return here.block; }
inline u32 blocks() { return here.blocks; }
inline void block_barrier() { here.barrier->arrive_and_wait(); }
constexpr u32 LANES = 2;
inline u32 add_shared(u32* at, u32 more) { return std::atomic_ref(*at).fetch_add(more); }

inline void release(u32* flag, u32 value) { std::atomic_ref(*flag).store(value, std::memory_order_release); }
inline u32 acquire(const u32* flag) {
  dawdle();
  return std::atomic_ref(*const_cast<u32*>(flag)).load(std::memory_order_acquire);
}

template <class T>
inline T load(const T* at) {
  return *at;
}

// Two separate halves: what hardware guarantees, and no more.
struct alignas(16) Packet {
  u32 low, first, high, second;
};
inline u64* half(const Packet* at, int which) { return (u64*)at + which; }

inline void put(Packet* at, u64 data, u32 number) {
  std::atomic_ref(*half(at, 0)).store((u64)number << 32 | (u32)data, std::memory_order_relaxed);
  dawdle();
  std::atomic_ref(*half(at, 1)).store((u64)number << 32 | data >> 32, std::memory_order_relaxed);
}
inline Packet get(const Packet* at) {
  dawdle();
  u64 a = std::atomic_ref(*half(at, 0)).load(std::memory_order_relaxed);
  u64 b = std::atomic_ref(*half(at, 1)).load(std::memory_order_relaxed);
  return {(u32)a, (u32)(a >> 32), (u32)b, (u32)(b >> 32)};
}

inline void idle() { std::this_thread::yield(); }

inline float as_float(u32 word) { return std::bit_cast<float>(word); }
inline u32 as_word(float value) { return std::bit_cast<u32>(value); }

struct Bf16 {
  static float low(u32 word) { return as_float(word << 16); }
  static float high(u32 word) { return as_float(word & 0xFFFF0000); }
  static u32 rounded(float value) { return (as_word(value) + 0x7FFF + (as_word(value) >> 16 & 1)) >> 16; }
  static u32 pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
};

// Numbers that are zero or not below 2^-14, and no infinity.
struct Fp16 {
  static float low(u32 word) { return high(word << 16); }
  static float high(u32 word) {
    u32 magnitude = word >> 16 & 0x7FFF;
    return as_float((word & 0x80000000) | (magnitude ? (magnitude << 13) + (112 << 23) : 0));
  }
  static u32 rounded(float value) {
    u32 word = as_word(value), magnitude = word & 0x7FFFFFFF;
    u32 half = magnitude ? (magnitude - (112 << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13 : 0;
    return (word >> 16 & 0x8000) | half;
  }
  static u32 pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
};
