// cuda/raster_grad.cu and cuda/raster_grad_sort.cu for the CPU: the same kernels behind the same C interface.
#include <tuple>
#include <utility>

#include "cuda_on_cpu.h"
// After it, because that needs its definitions:
#include "raster_grad_sort.h"

namespace streamsplat {
namespace {

std::string last_error;
constexpr int kFailed = 1;
constexpr std::int64_t kScratch = 40;  // bytes that the algorithms below claim to need

}  // namespace

struct DeviceScope {
  explicit DeviceScope(int) {}
  int status() const { return 0; }
};

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, void*, const Arguments&... arguments) {
  cuda_on_cpu::watch().next_launch();
  try {
    for (std::int64_t b = 0; b < blocks; ++b) {
      blockIdx.x = static_cast<unsigned>(b);
      cuda_on_cpu::block().run(threads, [&] {
        std::tuple<Parameters...> given(arguments...);
        cuda_on_cpu::call(kernel, given);
      });
    }
  } catch (const std::logic_error& error) {
    last_error = error.what();
    return kFailed;
  }
  return 0;
}

const char* describe_status(int) { return last_error.c_str(); }

// Whether there is something to do; as in CUB, a call without memory asks for its size.
static bool ready(GradScratch* scratch, int* status) {
  *status = 0;
  if (scratch->data == nullptr) {
    scratch->bytes = kScratch;
    return false;
  }
  if (scratch->bytes >= kScratch) return true;
  last_error = "too little scratch";
  *status = kFailed;
  return false;
}

int exclusive_sum(std::int64_t* data, std::int64_t count, GradScratch* scratch, void*) {
  int status;
  if (!ready(scratch, &status)) return status;
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += std::exchange(data[i], sum);
  return 0;
}

int sort_pairs(GradPairs* pairs, int bits, GradScratch* scratch, void*) {
  int status;
  if (!ready(scratch, &status)) return status;
  const std::uint64_t mask = bits == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
  std::vector<std::int64_t> order(static_cast<std::size_t>(pairs->count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return (pairs->keys[0][a] & mask) < (pairs->keys[0][b] & mask);
  });
  for (std::size_t i = 0; i < order.size(); ++i) {
    pairs->keys[1][i] = pairs->keys[0][order[i]];
    pairs->rows[1][i] = pairs->rows[0][order[i]];
  }
  pairs->current = 1;
  return 0;
}

}  // namespace streamsplat

#include "raster_grad_launch.cuh"

SSGRAD_API void on_cpu_schedule(std::uint64_t schedule) { cuda_on_cpu::block().schedule = schedule; }
