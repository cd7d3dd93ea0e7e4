// Runs a kernel of routed.cu call after call on threads of a CPU, several ranks at a time, and checks every byte.
#include <system.cuh>

#include "../../../kernels/commbench_kernels/routed.cu"

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

static std::function<void(const void*)> find(const std::string& name) {
  if (name == "dispatch") return [](const void* call) { dispatch(*(const Dispatch*)call); };
  if (name == "dispatch_slots") return [](const void* call) { dispatch_slots(*(const Dispatch*)call); };
  if (name == "combine_bf16") return [](const void* call) { combine_bf16(*(const Combine*)call); };
  if (name == "combine_fp16") return [](const void* call) { combine_fp16(*(const Combine*)call); };
  return [](const void* call) { combine_fp32(*(const Combine*)call); };
}

// Call `number` of rank r is `calls[number % sets * RANKS + r]`, of which so many bytes of `outs[r]` must then be
// `expected`; they are spoilt before the next one. `resident` blocks run at the same time, the others after them.
extern "C" u64 run(const char* name, const void* const* calls, unsigned char* const* outs, const u64* sizes,
                   unsigned char* const* expected, u32 sets, u32 blocks, u32 resident, u32 threads, u32 number_of_calls,
                   u32 most_us, u32 seed) {
  auto kernel = find(name);
  std::vector<std::thread> all;
  std::vector<u64> wrong(RANKS);
  std::vector<std::unique_ptr<std::barrier<>>> streams, locals;
  std::vector<std::unique_ptr<Shared>> shared;
  for (u32 r = 0; r < RANKS; ++r) {
    streams.push_back(std::make_unique<std::barrier<>>(resident * threads));
    for (u32 b = 0; b < resident; ++b) {
      locals.push_back(std::make_unique<std::barrier<>>(threads));
      shared.push_back(std::make_unique<Shared>());
      memset(shared.back().get(), 0xEE, sizeof(Shared));
    }
  }
  for (u32 r = 0; r < RANKS; ++r)
    for (u32 slot = 0; slot < resident; ++slot)
      for (u32 t = 0; t < threads; ++t)
        all.emplace_back([&, r, slot, t] {
          delays = {std::mt19937(seed * 7919 + r * 101 + slot * 11 + t), most_us};
          for (u32 number = 0; number < number_of_calls; ++number) {
            u32 at = number % sets * RANKS + r, place = r * resident + slot;
            for (u32 b = slot; b < blocks; b += resident) {
              here = {t, threads, b, blocks, locals[place].get(), shared[place].get()};
              dawdle();
              kernel(calls[at]);
              locals[place]->arrive_and_wait();
            }
            streams[r]->arrive_and_wait();  // the next kernel on this stream starts when this one is over
            if (slot == 0 && t == 0) {
              dawdle();
              for (u64 i = 0; i < sizes[at]; ++i) wrong[r] += outs[r][i] != expected[at][i];
              memset(outs[r], 0xA5, sizes[at]);
            }
            streams[r]->arrive_and_wait();
          }
        });
  for (auto& thread : all) thread.join();
  u64 total = 0;
  for (u64 of_rank : wrong) total += of_rank;
  return total;
}
