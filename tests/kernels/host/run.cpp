// Runs a kernel of one_sided.cu call after call on threads of a CPU, several ranks at a time, and checks every byte.
#include <system.cuh>

#include "../../../kernels/commbench_kernels/one_sided.cu"

#include <cstring>
#include <string>
#include <vector>

static unsigned char byte(u64 number, u64 source, u64 target, u64 i) {
  u64 z = number * 0x9E3779B97F4A7C15 + source * 0xBF58476D1CE4E5B9 + target * 0x94D049BB133111EB + i * 0xD6E8FEB86659FD93;
  z ^= z >> 29;
  return (unsigned char)((z * 0xBF58476D1CE4E5B9) >> 56);
}

struct Rank {
  std::vector<char> memory;
  char *inp, *out;
  Call call;
  u64 wrong = 0;
};

using Kernel = void (*)(Call);
static Kernel find(const std::string& name) {
  if (name == "store_16") return store_16;
  if (name == "store_4") return store_4;
  if (name == "store_1") return store_1;
  if (name == "own_16") return own_16;
  if (name == "own_1") return own_1;
  if (name == "packets_8") return packets_8;
  if (name == "packets_1") return packets_1;
  return nullptr;
}

// `matrix`: bytes from rank i to rank j. `scratch_bytes`, `slot_bytes`: as scratch.py gives them. `resident` blocks run
// at the same time, the others after them. Returns the number of wrong bytes, all calls and ranks together.
extern "C" u64 run(const char* name, const u64* matrix, u64 scratch_bytes, u64 slot_bytes, u32 blocks, u32 resident,
                   u32 threads, u32 number_of_calls, u32 most_us, u32 shift, u32 seed) {
  Kernel kernel = find(name);
  std::vector<Rank> ranks(RANKS);
  auto sent = [&](u32 i, u32 j) { return matrix[i * RANKS + j]; };
  auto start = [&](u32 rank, u32 other, bool inputs) {
    u64 sum = 0;
    for (u32 k = 0; k < other; ++k) sum += inputs ? sent(rank, k) : sent(k, rank);
    return sum;
  };
  for (u32 r = 0; r < RANKS; ++r) {
    u64 inputs = start(r, RANKS, true), outputs = start(r, RANKS, false);
    ranks[r].memory.assign(scratch_bytes + inputs + outputs + 256, 0);
    char* base = (char*)(((uintptr_t)ranks[r].memory.data() + 63) / 64 * 64);
    ranks[r].out = base + scratch_bytes + shift;
    ranks[r].inp = (char*)(((uintptr_t)ranks[r].out + outputs + 15) / 16 * 16) + shift;
    ranks[r].call.rank = r;
    ranks[r].call.slot_bytes = slot_bytes;
    for (u32 p = 0; p < RANKS; ++p) ranks[r].call.peers[p].scratch = nullptr;
  }
  for (u32 r = 0; r < RANKS; ++r)
    for (u32 p = 0; p < RANKS; ++p) {
      char* base = (char*)(((uintptr_t)ranks[p].memory.data() + 63) / 64 * 64);
      ranks[r].call.peers[p] = {ranks[r].inp + start(r, p, true), ranks[p].out + start(p, r, false),
                                ranks[r].out + start(r, p, false), base, sent(r, p), sent(p, r)};
    }
  auto fill = [&](u32 r, u32 number) {
    char* at = ranks[r].inp;
    for (u32 p = 0; p < RANKS; ++p)
      for (u64 i = 0; i < sent(r, p); ++i) *at++ = (char)byte(number, r, p, i);
  };
  auto check = [&](u32 r, u32 number) {
    char* at = ranks[r].out;
    for (u32 p = 0; p < RANKS; ++p)
      for (u64 i = 0; i < sent(p, r); ++i, ++at) {
        ranks[r].wrong += (unsigned char)*at != byte(number, p, r, i);
        *at = (char)~byte(number + 1, p, r, i);
      }
  };
  std::vector<std::thread> all;
  std::vector<std::unique_ptr<std::barrier<>>> streams, locals;
  for (u32 r = 0; r < RANKS; ++r) {
    fill(r, 1);
    streams.push_back(std::make_unique<std::barrier<>>(resident * threads));
    for (u32 b = 0; b < resident; ++b) locals.push_back(std::make_unique<std::barrier<>>(threads));
  }
  for (u32 r = 0; r < RANKS; ++r)
    for (u32 slot = 0; slot < resident; ++slot)
      for (u32 t = 0; t < threads; ++t)
        all.emplace_back([&, r, slot, t] {
          delays = {std::mt19937(seed * 7919 + r * 101 + slot * 11 + t), most_us};
          for (u32 number = 1; number <= number_of_calls; ++number) {
            for (u32 b = slot; b < blocks; b += resident) {
              here = {t, threads, b, blocks, locals[r * resident + slot].get()};
              dawdle();
              kernel(ranks[r].call);
              locals[r * resident + slot]->arrive_and_wait();
            }
            streams[r]->arrive_and_wait();  // the next kernel on this stream starts when this one is over
            if (slot == 0 && t == 0) {
              dawdle();
              check(r, number);
              fill(r, number + 1);
            }
            streams[r]->arrive_and_wait();
          }
        });
  for (auto& thread : all) thread.join();
  u64 wrong = 0;
  for (auto& rank : ranks) wrong += rank.wrong;
  return wrong;
}
