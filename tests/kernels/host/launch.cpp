// Launches a kernel of one_sided.cu on threads of this process: its blocks run one after the other.
#include <system.cuh>

#include "../../../kernels/commbench_kernels/one_sided.cu"

#include <cstring>
#include <vector>

using Kernel = void (*)(Call);
static const struct {
  const char* name;
  Kernel kernel;
} KERNELS[] = {{"store_16", store_16}, {"store_4", store_4},     {"store_1", store_1},
               {"packets_8", packets_8}, {"packets_1", packets_1}, {"handshake", handshake},
               {"own_16", own_16},       {"own_4", own_4},         {"own_1", own_1}};

// 0, or 1 where there is no such kernel.
extern "C" int launch(const char* name, const Call* call, u32 blocks, u32 threads) {
  Kernel kernel = nullptr;
  for (auto& known : KERNELS)
    if (!strcmp(known.name, name)) kernel = known.kernel;
  if (!kernel) return 1;
  std::barrier<> barrier(threads);
  std::vector<std::thread> all;
  for (u32 t = 0; t < threads; ++t)
    all.emplace_back([&, t] {
      for (u32 b = 0; b < blocks; ++b) {
        here = {t, threads, b, blocks, &barrier};
        kernel(*call);
        barrier.arrive_and_wait();
      }
    });
  for (auto& thread : all) thread.join();
  return 0;
}
