// Sorting within a block: a bitonic network over keys in registers, and the choice of the next keys of a long list.
#ifndef STREAMSPLAT_RASTER_CUDA_SORT_CUH_
#define STREAMSPLAT_RASTER_CUDA_SORT_CUH_

#include "raster_cuda.h"

namespace streamsplat {

constexpr Word kNoKey = ~Word{0};  // above every key: depths are finite

SS_HD Word smaller_key(Word a, Word b) { return a < b ? a : b; }
SS_HD Word larger_key(Word a, Word b) { return a < b ? b : a; }

// Puts two keys in order. Equal ones are kNoKey, whose places do not matter.
SS_HD void exchange(Word* first, Word* second, bool upwards) {
  if ((*first > *second) != upwards) return;
  const Word kept = *first;
  *first = *second;
  *second = kept;
}

// What a thread keeps of its key and its partner's, who keeps the other one.
SS_HD Word keep_of_pair(Word own, Word other, bool keeps_smaller) {
  return (other < own) == keeps_smaller ? other : own;
}

// Sorts kPerThread * kThreads keys of shared memory upwards. Called by all threads after a barrier; the result is
// complete after the next one.
//
// A thread holds neighbouring keys, so that most exchanges are within a thread, in registers, or within a warp, by
// shuffles; only those with other warps take shared memory: 6 of the 55 steps for 1024 keys.
template <int kPerThread>
__device__ inline void sort_keys(Word* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  Word key[kPerThread];
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) key[k] = shared[k * kThreads + thread];  // any order: they are not sorted yet
  if (kPerThread > 2) {
    exchange(&key[0], &key[1], true);
    exchange(&key[kPerThread - 2], &key[kPerThread - 1], false);
  }
  // Runs of so many threads' keys, each pair of them sorted in opposite directions, are merged.
#pragma unroll 1
  for (int run = 1; run <= kThreads; run <<= 1) {
    const bool upwards = (thread & run) == 0;
#pragma unroll 1
    for (int apart = run >> 1; apart >= kWarp; apart >>= 1) {
      const bool keeps_smaller = ((thread & apart) == 0) == upwards;
      __syncthreads();  // the keys of the last exchange have been read
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) shared[k * kThreads + thread] = key[k];
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kPerThread; ++k)
        key[k] = keep_of_pair(key[k], shared[k * kThreads + (thread ^ apart)], keeps_smaller);
    }
#pragma unroll 1
    for (int apart = smaller(run, kWarp) >> 1; apart > 0; apart >>= 1) {
      const bool keeps_smaller = ((thread & apart) == 0) == upwards;
#pragma unroll
      for (int k = 0; k < kPerThread; ++k)
        key[k] = keep_of_pair(key[k], __shfl_xor_sync(kAllLanes, key[k], apart), keeps_smaller);
    }
#pragma unroll
    for (int apart = kPerThread / 2; apart > 0; apart /= 2)
#pragma unroll
      for (int k = 0; k < kPerThread; ++k)
        if ((k & apart) == 0) exchange(&key[k], &key[k + apart], upwards);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) shared[thread * kPerThread + k] = key[k];
}
static_assert(kSortCapacity == 4 * kThreads, "sort_keys takes 1, 2 or 4 keys per thread");

// Sorts `count` keys; what is behind them up to the next size of the network is overwritten.
__device__ inline void sort_some(Word* shared, int count) {
  const int thread = static_cast<int>(threadIdx.x);
  const int padded = count <= kThreads ? kThreads : count <= 2 * kThreads ? 2 * kThreads : kSortCapacity;
  for (int i = count + thread; i < padded; i += kThreads) shared[i] = kNoKey;
  __syncthreads();
  if (padded == kThreads)
    sort_keys<1>(shared);
  else if (padded == 2 * kThreads)
    sort_keys<2>(shared);
  else
    sort_keys<4>(shared);
  __syncthreads();
}

// Where the keys of a tile are: in its slots, or, where those did not suffice, among all projected Gaussians, of which
// those count whose box touches the tile.
struct KeySource {
  const Word* slots;        // null: all Gaussians
  const CudaSplat* splats;  // of this time stamp
  const int32_t* rows;      // those that were projected; null: all from 0 on
  int count;                // entries of `slots`, else rows
  int x0, y0;               // first pixel of the tile

  SS_HD Word key(int i) const {
    if (slots != nullptr) return slots[i];
    const int row = rows != nullptr ? rows[i] : i;
    const CudaSplat& s = splats[row];
    const bool touches =
        s.box_x0 < s.box_x1 && s.box_x0 < x0 + kTile && s.box_x1 > x0 && s.box_y0 < y0 + kTile && s.box_y1 > y0;
    return touches ? sort_key(s.depth, static_cast<uint32_t>(row)) : kNoKey;
  }
};

struct SelectShared {
  Word keys[kSortCapacity];
  Word low, high;
  Word bin_begin;
  uint32_t below, filled;
};

// Needed by choose_bound only, from its first barrier on.
struct SelectBins {
  uint32_t count[2][kThreads];
};

// Of all keys from `from` on, finds a bound such that at least kSortCapacity / 2 and at most kSortCapacity keys lie
// before it; there must be more than kSortCapacity. Keys are unique, so that a bound exists. Called by all threads;
// returns the same to all.
__device__ inline Word choose_bound(const KeySource& source, Word from, SelectShared* shared, SelectBins* bins,
                                    int* chosen) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    shared->low = kNoKey;
    shared->high = 0;
  }
  __syncthreads();
  Word low = kNoKey, high = 0;
#pragma unroll 1  // rare: spare the registers
  for (int i = thread; i < source.count; i += kThreads) {
    const Word key = source.key(i);
    if (key < from || key == kNoKey) continue;
    low = smaller_key(low, key);
    high = larger_key(high, key);
  }
  atomicMin(&shared->low, low);
  atomicMax(&shared->high, high);
  __syncthreads();
  low = shared->low;
  high = shared->high;
  int width = 0;  // bits from the highest in which keys differ down
  for (Word differing = low ^ high; differing != 0; differing >>= 1) ++width;
  Word base = low >> width << width;  // first key that is not below a bound yet; the top bit of a key is always 0
  uint32_t below = 0;
  while (true) {
    const int bits = smaller(kDigitBits, width), shift = width - bits;
    bins->count[0][thread] = 0;
    __syncthreads();
#pragma unroll 1  // rare: spare the registers
    for (int i = thread; i < source.count; i += kThreads) {
      const Word key = source.key(i);
      if (key < from || key == kNoKey || (key ^ base) >> width != 0) continue;
      atomicAdd(&bins->count[0][(key >> shift) & ((1u << bits) - 1u)], 1u);
    }
    __syncthreads();
    int now = 0;  // running sums, by doubling
    for (int apart = 1; apart < kThreads; apart *= 2) {
      const uint32_t own = bins->count[now][thread];
      bins->count[1 - now][thread] = own + (thread >= apart ? bins->count[now][thread - apart] : 0u);
      now = 1 - now;
      __syncthreads();
    }
    // The bin in which the capacity would be exceeded.
    const uint32_t before = below + (thread > 0 ? bins->count[now][thread - 1] : 0u);
    if (before <= kSortCapacity && below + bins->count[now][thread] > kSortCapacity) {
      shared->below = before;
      shared->bin_begin = base + (static_cast<Word>(thread) << shift);
    }
    __syncthreads();
    below = shared->below;
    base = shared->bin_begin;
    width = shift;
    if (below >= kSortCapacity / 2) break;
    __syncthreads();  // everyone has read the bins and the bound
  }
  *chosen = static_cast<int>(below);
  return base;
}

// Copies the keys in [from, bound) to shared memory, in any order; `whole` = they are all there are in the slots.
__device__ inline void collect(const KeySource& source, Word from, Word bound, bool whole, SelectShared* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (whole) {
    for (int i = thread; i < source.count; i += kThreads) shared->keys[i] = source.slots[i];
    return;
  }
  __syncthreads();  // the keys of the last round have been used
  if (thread == 0) shared->filled = 0;
  __syncthreads();
#pragma unroll 1  // rare: spare the registers
  for (int i = thread; i < source.count; i += kThreads) {
    const Word key = source.key(i);
    if (key >= from && key < bound) shared->keys[atomicAdd(&shared->filled, 1u)] = key;
  }
  __syncthreads();
}

}  // namespace streamsplat

#endif  // STREAMSPLAT_RASTER_CUDA_SORT_CUH_
