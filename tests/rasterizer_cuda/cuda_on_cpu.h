// Runs CUDA kernels on the CPU: what of CUDA the kernels of cuda/ use, in plain C++.
//
// Every thread of a block is a fiber with a stack of its own, and blocks run one after another. A fiber runs until it
// comes to a barrier or to an exchange within its warp; when all that must come there have, they go on. Which warp and
// which lane is next depends on the schedule: a barrier that is missing shows as a result that depends on it.
//
// Stricter than a GPU: a barrier or an exchange that not all threads reach, or that they reach at different lines, ends
// the launch with an error. Shared memory holds NaN when a block starts.
#ifndef STREAMSPLAT_TESTS_CUDA_ON_CPU_H_
#define STREAMSPLAT_TESTS_CUDA_ON_CPU_H_

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "watch_on_cpu.h"

#define __global__ static
#define __device__
#define __launch_bounds__(...)
// One section of the program holds all shared variables; the linker names its ends.
#define __shared__ static __attribute__((section("cuda_shared")))
extern "C" char __start_cuda_shared[], __stop_cuda_shared[];

#define __syncthreads() (void)cuda_on_cpu::block().barrier(__LINE__, 0)
#define __syncthreads_count(predicate) cuda_on_cpu::block().barrier(__LINE__, (predicate) ? 1 : 0)
#define __any_sync(mask, predicate) cuda_on_cpu::any(__LINE__, mask, predicate)
#define __ballot_sync(mask, predicate) cuda_on_cpu::ballot(__LINE__, mask, predicate)
#define __match_any_sync(mask, value) cuda_on_cpu::match_any(__LINE__, mask, value)
#define __shfl_sync(mask, value, lane) cuda_on_cpu::shuffle(__LINE__, mask, value, lane)
#define __shfl_xor_sync(mask, value, bit) cuda_on_cpu::shuffle_xor(__LINE__, mask, value, bit)

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx;

inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// A fiber gives way at barriers and exchanges only, so that nothing comes between a read and its write.
template <class T>
UNWATCHED T atomicAdd(T* at, T value) {
  cuda_on_cpu::watch().touch(at, sizeof(T), true, true);
  const T old = *at;
  *at = static_cast<T>(old + value);
  return old;
}
template <class T>
UNWATCHED T atomicMin(T* at, T value) {
  cuda_on_cpu::watch().touch(at, sizeof(T), true, true);
  const T old = *at;
  *at = std::min(old, value);
  return old;
}
template <class T>
UNWATCHED T atomicMax(T* at, T value) {
  cuda_on_cpu::watch().touch(at, sizeof(T), true, true);
  const T old = *at;
  *at = std::max(old, value);
  return old;
}

namespace cuda_on_cpu {

constexpr int kLanes = 32;
constexpr std::size_t kStack = 64 * 1024;

// A block of threads. 0: warps and lanes in order; 1: in reverse; from 2 on: drawn by chance with this seed.
class Block {
 public:
  std::uint64_t schedule = 0;

  // Runs `body` once per thread.
  void run(int threads, const std::function<void()>& body) {
    if (threads % kLanes != 0) throw std::logic_error("blocks must be whole warps");
    while (static_cast<int>(fibers_.size()) < threads) fibers_.push_back(std::make_unique<Fiber>());
    body_ = &body;
    threads_ = threads;
    random_ = schedule * 0x9E3779B97F4A7C15u | 1;
    Watch& seen = watch();
    seen.shared_begin = reinterpret_cast<std::uintptr_t>(__start_cuda_shared);
    seen.shared_end = reinterpret_cast<std::uintptr_t>(__stop_cuda_shared);
    seen.stop = &Block::stop;
    seen.next_block();
    std::memset(__start_cuda_shared, 0xFF, static_cast<std::size_t>(__stop_cuda_shared - __start_cuda_shared));
    for (int i = 0; i < threads; ++i) fibers_[i]->start();
    const int warps = threads / kLanes;
    while (true) {
      std::vector<int> ready;
      for (int w = 0; w < warps; ++w) {
        if (any_of(w, [](const Fiber& f) { return f.state == State::kReady; })) ready.push_back(w);
      }
      if (!ready.empty()) {
        run_warp(schedule == 0 ? ready.front() : schedule == 1 ? ready.back() : ready[draw(ready.size())]);
      } else if (!release_block()) {
        return;
      }
    }
  }

  // Returns how many threads came with 1.
  int barrier(int line, std::uint64_t value) {
    wait(State::kAtBarrier, line, value);
    return barrier_sum_;
  }

  // Returns what every lane of the warp gave.
  const std::uint64_t* exchange(int line, std::uint64_t value) {
    const int warp = current_ / kLanes;
    wait(State::kExchanging, line, value);
    return exchanged_[warp];
  }

  int lane() const { return current_ % kLanes; }

 private:
  enum class State { kReady, kAtBarrier, kExchanging, kDone };

  struct Fiber {
    std::unique_ptr<char[]> stack{new char[kStack]};
    ucontext_t context;
    jmp_buf resume;
    bool started = false;
    State state = State::kReady;
    int line = 0;
    std::uint64_t value = 0;

    void start() {
      started = false;
      state = State::kReady;
      getcontext(&context);
      context.uc_stack.ss_sp = stack.get();
      context.uc_stack.ss_size = kStack;
      context.uc_link = nullptr;
      makecontext(&context, &Block::enter, 0);
    }
  };

  static void enter();

  // ucontext starts a fiber; _setjmp and _longjmp change between fibers without a system call.
  void resume(int i) {
    current_ = i;
    threadIdx.x = static_cast<unsigned>(i);
    Fiber& fiber = *fibers_[i];
    watch().thread = i;
    watch().stack_begin = reinterpret_cast<std::uintptr_t>(fiber.stack.get());
    watch().stack_end = watch().stack_begin + kStack;
    if (_setjmp(scheduler_) != 0) {
      if (watch().failed()) throw std::logic_error(watch().take_problem() + where(i));
      return;
    }
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  void wait(State state, int line, std::uint64_t value) {
    set_watching(false);
    Fiber& fiber = *fibers_[current_];
    fiber.state = state;
    fiber.line = line;
    fiber.value = value;
    if (_setjmp(fiber.resume) == 0) _longjmp(scheduler_, 1);
    set_watching(true);
  }

  template <class Test>
  bool any_of(int warp, Test test) const {
    for (int l = 0; l < kLanes; ++l) {
      if (test(*fibers_[warp * kLanes + l])) return true;
    }
    return false;
  }

  // Runs the lanes that are ready, then completes an exchange that waits for nobody any more.
  void run_warp(int warp) {
    int order[kLanes];
    std::iota(order, order + kLanes, 0);
    if (schedule == 1) std::reverse(order, order + kLanes);
    for (std::size_t l = kLanes - 1; schedule > 1 && l > 0; --l) std::swap(order[l], order[draw(l + 1)]);
    for (int l : order) {
      if (fibers_[warp * kLanes + l]->state == State::kReady) resume(warp * kLanes + l);
    }
    if (!any_of(warp, [](const Fiber& f) { return f.state == State::kExchanging; })) return;
    const int first = warp * kLanes;
    for (int l = 0; l < kLanes; ++l) {
      const Fiber& fiber = *fibers_[first + l];
      if (fiber.state != State::kExchanging || fiber.line != fibers_[first]->line)
        throw std::logic_error("lanes 0 and " + std::to_string(l) + " of a warp part at an exchange" +
                               where(first + l));
      exchanged_[warp][l] = fiber.value;
    }
    for (int l = 0; l < kLanes; ++l) fibers_[first + l]->state = State::kReady;
  }

  // Completes a barrier; false if the block has ended.
  bool release_block() {
    int done = 0;
    barrier_sum_ = 0;
    for (int i = 0; i < threads_; ++i) {
      const Fiber& fiber = *fibers_[i];
      if (fiber.state != fibers_[0]->state || (fiber.state != State::kDone && fiber.line != fibers_[0]->line))
        throw std::logic_error("threads 0 and " + std::to_string(i) + " part at a barrier" + where(i));
      done += fiber.state == State::kDone;
      barrier_sum_ += static_cast<int>(fiber.value);
    }
    if (done > 0) return false;
    watch().barrier();
    for (int i = 0; i < threads_; ++i) fibers_[i]->state = State::kReady;
    return true;
  }

  static void stop();

  std::string where(int thread) const { return ", line " + std::to_string(fibers_[thread]->line); }

  std::size_t draw(std::size_t below) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return static_cast<std::size_t>(random_ >> 33) % below;
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  const std::function<void()>* body_ = nullptr;
  int threads_ = 0, current_ = 0, barrier_sum_ = 0;
  std::uint64_t exchanged_[1024 / kLanes][kLanes];
  std::uint64_t random_ = 1;
  jmp_buf scheduler_;
};

inline Block& block() {
  static Block the_block;
  return the_block;
}

inline void Block::enter() {
  Block& b = block();
  (*b.body_)();
  b.fibers_[b.current_]->state = State::kDone;
  _longjmp(b.scheduler_, 1);
}

UNWATCHED inline void Block::stop() { _longjmp(block().scheduler_, 1); }

inline void check_mask(unsigned mask) {
  if (mask != 0xFFFFFFFFu) throw std::logic_error("only exchanges of whole warps are known here");
}

inline unsigned ballot(int line, unsigned mask, bool predicate) {
  check_mask(mask);
  const std::uint64_t* const all = block().exchange(line, predicate ? 1 : 0);
  unsigned bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= static_cast<unsigned>(all[l]) << l;
  return bits;
}

inline bool any(int line, unsigned mask, bool predicate) { return ballot(line, mask, predicate) != 0; }

template <class T>
std::uint64_t exchanged_bits(T value) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t), "exchanges are of at most eight bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
unsigned match_any(int line, unsigned mask, T value) {
  check_mask(mask);
  const std::uint64_t bits = exchanged_bits(value);
  const std::uint64_t* const all = block().exchange(line, bits);
  unsigned same = 0;
  for (int l = 0; l < kLanes; ++l) same |= static_cast<unsigned>(all[l] == bits) << l;
  return same;
}

template <class T>
T shuffle(int line, unsigned mask, T value, int lane) {
  check_mask(mask);
  const std::uint64_t bits = block().exchange(line, exchanged_bits(value))[lane % kLanes];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffle_xor(int line, unsigned mask, T value, int bit) {
  return shuffle(line, mask, value, block().lane() ^ bit);
}

}  // namespace cuda_on_cpu

#endif  // STREAMSPLAT_TESTS_CUDA_ON_CPU_H_
