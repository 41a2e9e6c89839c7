// The two loops of the LSTM's training step, for the CPU, float32.
//
// Forward (gates i, f, g, o along an axis of W_x [D, 4, H], W [H, 4, H] and b [4, H]):
//
//     y_t = b + x_t W_x + h_{t-1} W        i, f, o = σ(y)   g = tanh(y)
//     c_t = f c_{t-1} + i g        h_t = o tanh(c_t)
//
// Backward. Let dh, dc be the derivatives of the loss with respect to h_t and c_t. dh is
// the cotangent of the output at t plus the term from step t+1; c_t has no output of its
// own, but acts on h_t:
//
//     dh = dhs_t + δ_{t+1} Wᵀ                dc = f_{t+1} dc_{t+1} + dh o (1 - tanh² c_t)
//
// Through the gates, with σ' = σ (1 - σ) and tanh' = 1 - tanh²:
//
//     δ_i = dc g i (1 - i)           δ_f = dc c_{t-1} f (1 - f)
//     δ_g = dc i (1 - g²)            δ_o = dh tanh(c_t) o (1 - o)
//
// δ_t is the derivative with respect to y_t, so that dW = Σ_t h_{t-1}ᵀ δ_t; dW_x, db and
// dx are products over all steps after the loop. A skipped step passes h, c, dh and dc
// through unchanged and has δ = 0. A reset step reads zeros for h and c, and passes no
// derivative to the step before it.
//
// Parallelism. The members of a team form a grid: rows of the batch by slices of the
// hidden units. Members that share rows need each other's h (δ in the backward pass) and
// synchronize at a barrier once per step; other members never do. The weights are packed
// once into panels, and the share of each member stays in its cache for all steps. With
// few rows, reading the panels of W_x would dominate: x is then projected for several
// steps at once. Each number is the same sum in the same order for any number of members.
//
// Freedom from deadlock. Helpers are scheduled on XLA's own pool, which may be busy,
// perhaps with other callers of this function, so they may never run. The caller waits
// for them for 200 microseconds and then closes the team. All members that have joined by
// then are running, and only they synchronize at barriers.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// ---- vectors ---------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 6;  // 24 sums, 4 weights, 1 row in 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 3;  // 12 sums, 1 weight, 3 rows in 16 registers
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRows = 6;
#else
constexpr int kLanes = 4, kRows = 2;
#endif

#define INLINE inline __attribute__((always_inline))
using Lanes = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));

INLINE Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

INLINE Lanes load(const float* from, int count) {
  if (count >= kLanes) return load(from);
  Lanes lanes{};
  for (int i = 0; i < count; ++i) lanes[i] = from[i];
  return lanes;
}

INLINE void store(float* to, Lanes lanes, int count) {
  if (count >= kLanes) {
    std::memcpy(to, &lanes, sizeof lanes);
  } else {
    for (int i = 0; i < count; ++i) to[i] = lanes[i];
  }
}

// exp(x) = scale (1 + part), with |x - n log 2| <= log(2) / 2 and scale = 2^n; NaN stays.
struct Exponential {
  Lanes scale, part;
};

INLINE Exponential exponential(Lanes x, float bound) {
  x = x < -bound ? Lanes{} - bound : x;
  x = x > bound ? Lanes{} + bound : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  Lanes shifted = x * 1.44269504f + magic;
  Lanes n = shifted - magic;
  Lanes r = x - n * 0.693145752f - n * 1.42860677e-6f;
  Lanes tail = r * 1.38825155e-3f + 8.36654752e-3f;
  tail = tail * r + 4.16672006e-2f;
  tail = tail * r + 1.66665435e-1f;
  tail = tail * r + 4.99999970e-1f;
  Ints power = ((Ints)shifted << 23) + 0x3f800000;
  return {(Lanes)power, tail * r * r + r};
}

INLINE Lanes sigmoid(Lanes x) {
  Exponential e = exponential(Lanes{} - x, 87.0f);
  return 1.0f / (e.scale * e.part + e.scale + 1.0f);
}

INLINE Lanes tanh(Lanes x) {
  Exponential e = exponential(x + x, 20.0f);
  Lanes minus_one = e.scale * e.part + (e.scale - 1.0f);  // exp(2x) - 1
  return minus_one / (minus_one + 2.0f);
}

// ---- the product -------------------------------------------------------------------

// sums[r][n] += rows[r] [K] times panel [K, N, kLanes].
template <int R, int N>
INLINE void multiply(Lanes (&sums)[R][N], const float* const* rows, const float* panel,
                     int64_t K) {
  const float* row[R];
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  for (int64_t k = 0; k < K; ++k, panel += N * kLanes) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Lanes weights = load(panel + n * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][n] += weights * row[r][k];
    }
  }
}

// Calls body(number of rows, first row) for tiles of nearly equal size.
template <int R = kRows, class Body>
INLINE void dispatch_rows(int64_t count, const Body& body, int64_t first) {
  if constexpr (R > 0) {
    if (count == R) return body(std::integral_constant<int, R>{}, first);
    dispatch_rows<R - 1>(count, body, first);
  }
}

template <class Body>
INLINE void for_row_tiles(int64_t begin, int64_t end, const Body& body) {
  int64_t number = (end - begin + kRows - 1) / kRows;
  for (int64_t n = 0; n < number; ++n) {
    int64_t first = begin + (end - begin) * n / number;
    dispatch_rows(begin + (end - begin) * (n + 1) / number - first, body, first);
  }
}

// ---- the team ----------------------------------------------------------------------

INLINE void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void wait_until(const Condition& holds) {
  for (int tries = 0; !holds(); ++tries) tries < 300 ? pause() : std::this_thread::yield();
}

struct alignas(64) Counter {
  std::atomic<int64_t> value{0};
};

constexpr int kMaxMembers = 64;  // most members of a team
std::atomic<int> active_members{0};  // members of all teams of the process

// Work for a team: `work(member, members)`, called once by each member.
template <class Work>
struct Team {
  const Work* work;
  std::atomic<int> joined{1};
  std::atomic<int> members{0};  // 0 until the team is closed
  std::atomic<int> finished{0};

  bool join(int& member) {
    member = joined.load();
    do {
      if (member < 0) return false;
    } while (!joined.compare_exchange_weak(member, member + 1));
    return true;
  }

  void help() {
    int member;
    if (!join(member)) return;
    wait_until([&] { return members.load() > 0; });
    (*work)(member, members.load());
    finished.fetch_add(1);
  }

  void lead(int wanted) {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
    wait_until([&] {
      return joined.load() >= wanted || std::chrono::steady_clock::now() > deadline;
    });
    int present = joined.exchange(INT32_MIN);
    members.store(present);
    (*work)(0, present);
    wait_until([&] { return finished.load() == present - 1; });
  }
};

template <class Work>
void run_team(ffi::ThreadPool& pool, int wanted, const Work& work) {
  int cores = pool.num_threads();  // available to the process
  int busy = active_members.fetch_add(1);
  wanted = std::max(1, std::min({wanted, kMaxMembers, cores - busy}));
  auto team = std::make_shared<Team<Work>>();
  team->work = &work;
  active_members.fetch_add(wanted - 1);
  for (int n = 1; n < wanted; ++n) pool.Schedule([team] { team->help(); });
  team->lead(wanted);
  active_members.fetch_sub(wanted);
}

// ---- the loops ---------------------------------------------------------------------

constexpr int64_t kCache = 1 << 20;        // bytes of W that stay in a member's cache
constexpr int64_t kBarrierCost = 1 << 19;  // of a barrier, in bytes read in that time

enum StepKind : uint8_t { kSkip = 0, kContinue = 1, kReset = 2 };

struct Sizes {
  int64_t T, B, H, depth;  // depth: rows of the matrix of a step
  const uint8_t* kinds;  // [T, B], or null if all are kContinue
  int64_t chunks() const { return (H + kLanes - 1) / kLanes; }
  uint8_t kind(int64_t t, int64_t b) const { return kinds ? kinds[t * B + b] : kContinue; }
};

// A member's part of the grid: rows of the batch, chunks of the hidden units. The cost of a
// step is estimated by the bytes of W that a member reads: its share once per tile of rows,
// times four if the share does not fit its cache, plus a barrier if units are sliced.
struct Part {
  int64_t rows[2], chunks[2];
  int group, groups, slices = 1;

  Part(const Sizes& s, int member, int members) {
    auto cost = [&](int slices) {
      int64_t share = s.chunks() * kLanes * s.depth * 16 / slices;
      int64_t rows = (s.B * slices + members - 1) / members;
      int64_t times = (rows + kRows - 1) / kRows * (share > kCache ? 4 : 1);
      return share * times + (slices > 1 ? kBarrierCost : 0);
    };
    for (int n = 2; n <= members; ++n)
      if (members % n == 0 && cost(n) < cost(slices)) slices = n;
    groups = members / slices;
    group = member / slices;
    int slice = member % slices;
    for (int end : {0, 1}) {
      rows[end] = s.B * (group + end) / groups;
      chunks[end] = s.chunks() * (slice + end) / slices;
    }
  }
};

struct Loop {
  const Sizes s;
  const std::vector<float> zeros;
  const std::unique_ptr<float[]> panels;
  Counter packing_barrier, step_barriers[kMaxMembers];

  Loop(const Sizes& s)
      : s(s), zeros(s.H), panels(new float[s.chunks() * kLanes * 4 * s.depth]) {}

  float* panel(int64_t chunk) { return &panels[chunk * kLanes * 4 * s.depth]; }

  // Returns when `count` members have arrived at the counter n times, n from 1.
  static void barrier(Counter& counter, int64_t count, int64_t n = 1) {
    if (count == 1) return;
    counter.value.fetch_add(1, std::memory_order_acq_rel);
    wait_until([&] { return counter.value.load(std::memory_order_acquire) >= n * count; });
  }
};

// What the forward pass stores for each step; null pointers for nothing.
struct Stored {
  float* gates[4];   // i, f, g, o at the first step and row
  int64_t row;       // stride between rows, in floats
  float* cs;
};

constexpr int64_t kAhead = 16;  // steps projected at once if there are few rows

struct Forward : Loop {
  const int64_t D;
  const float *xs, *W_x, *W, *b, *h0;
  float *hs, *c;  // c: the state of the current step
  const Stored stored;
  const int64_t ahead;  // steps projected at once; 0 to project in each step
  std::vector<float> z;  // projected inputs: [step, row, chunk, gate, lane]

  Forward(const Sizes& s, const float* xs, const float* W_x, const float* W,
          const float* b, const float* h0, float* hs, float* c, const Stored& stored)
      : Loop(s), D(s.depth - s.H), xs(xs), W_x(W_x), W(W), b(b), h0(h0), hs(hs), c(c),
        stored(stored), ahead(s.B < kRows ? std::min(kAhead, s.T) : 0),
        z(ahead * s.B * s.chunks() * 4 * kLanes) {}

  void pack(int64_t chunk) {  // [K, gate, lane] of W_x and W [K, gate, unit]
    int count = lanes(chunk);
    float* to = panel(chunk);
    for (auto [from, depth] : {std::pair(W_x, D), std::pair(W, s.H)})
      for (int64_t n = 0; n < depth * 4; ++n, to += kLanes)
        store(to, load(from + n * s.H + chunk * kLanes, count), kLanes);
  }

  int lanes(int64_t chunk) const {
    return std::min<int64_t>(kLanes, s.H - chunk * kLanes);
  }

  float* projected(int64_t t, int64_t row, int64_t chunk) {
    return &z[(((t % ahead) * s.B + row) * s.chunks() + chunk) * 4 * kLanes];
  }

  // y = b + x W_x for R rows of x.
  template <int R>
  INLINE void project(Lanes (&y)[R][4], const float* const* x, int64_t chunk) {
#pragma GCC unroll 4
    for (int gate = 0; gate < 4; ++gate) {
      Lanes bias = load(b + gate * s.H + chunk * kLanes, lanes(chunk));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) y[r][gate] = bias;
    }
    multiply<R, 4>(y, x, panel(chunk), D);
  }

  void project_ahead(const Part& part, int64_t t, int64_t chunk) {
    int64_t rows = part.rows[1] - part.rows[0];
    for_row_tiles(0, rows * std::min(ahead, s.T - t), [&](auto R, int64_t first) {
      const float* x[R];
      float* to[R];
      for (int r = 0; r < R; ++r) {
        int64_t step = t + (first + r) / rows, row = part.rows[0] + (first + r) % rows;
        x[r] = xs + (step * s.B + row) * D;
        to[r] = projected(step, row, chunk);
      }
      Lanes y[R][4];
      project<R>(y, x, chunk);
      for (int r = 0; r < R; ++r)
        for (int gate = 0; gate < 4; ++gate)
          store(to[r] + gate * kLanes, y[r][gate], kLanes);
    });
  }

  template <int R>
  INLINE void step(int64_t t, int64_t row, int64_t chunk) {
    const float *x[R], *h[R];
    const float* h_before = t ? hs + (t - 1) * s.B * s.H : h0;
    for (int r = 0; r < R; ++r) {
      bool reset = s.kind(t, row + r) == kReset;
      x[r] = xs + (t * s.B + row + r) * D;
      h[r] = reset ? zeros.data() : h_before + (row + r) * s.H;
    }
    Lanes y[R][4];
    if (ahead) {
      for (int r = 0; r < R; ++r)
        for (int gate = 0; gate < 4; ++gate)
          y[r][gate] = load(projected(t, row + r, chunk) + gate * kLanes);
    } else {
      project<R>(y, x, chunk);
    }
    multiply<R, 4>(y, h, panel(chunk) + D * 4 * kLanes, s.H);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) apply_gates(t, row + r, chunk, h[r], y[r]);
  }

  INLINE void apply_gates(int64_t t, int64_t row, int64_t chunk, const float* h,
                     const Lanes (&y)[4]) {
    int64_t unit = chunk * kLanes, at = (t * s.B + row) * s.H + unit;
    int count = lanes(chunk);
    float* c_at = c + row * s.H + unit;
    uint8_t kind = s.kind(t, row);
    Lanes gates[4] = {}, before = kind == kReset ? Lanes{} : load(c_at, count);
    if (kind == kSkip) {
      store(hs + at, load(h + unit, count), count);
    } else {
      auto& [i, f, g, o] = gates;
      i = sigmoid(y[0]);
      f = sigmoid(y[1]);
      g = tanh(y[2]);
      o = sigmoid(y[3]);
      before = f * before + i * g;
      store(c_at, before, count);
      store(hs + at, o * tanh(before), count);
    }
    if (stored.cs) store(stored.cs + at, before, count);
    if (stored.gates[0])
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n)
        store(stored.gates[n] + (t * s.B + row) * stored.row + unit, gates[n], count);
  }

  void operator()(int member, int members) {
    Part part(s, member, members);
    for (int64_t n = member; n < s.chunks(); n += members) pack(n);
    barrier(packing_barrier, members);
    for (int64_t t = 0; t < s.T; ++t) {
      int64_t number = part.chunks[1] - part.chunks[0];
      for (int64_t n = 0; n < number; ++n) {
        int64_t chunk = t % 2 ? part.chunks[1] - 1 - n : part.chunks[0] + n;
        if (ahead && t % ahead == 0) project_ahead(part, t, chunk);
        for_row_tiles(part.rows[0], part.rows[1],
              [&](auto R, int64_t row) { step<R>(t, row, chunk); });
      }
      barrier(step_barriers[part.group], part.slices, t + 1);
    }
  }
};

constexpr int kMaxChunks = 4;  // most chunks that the backward pass multiplies at once

struct Backward : Loop {
  const float *W, *c0, *cs, *dhs;
  float *deltas, *dh, *dc;  // deltas hold the gates at first; dh, dc: of the last state

  Backward(const Sizes& s, const float* W, const float* c0, const float* cs,
           const float* dhs, float* deltas, float* dh, float* dc)
      : Loop(s), W(W), c0(c0), cs(cs), dhs(dhs), deltas(deltas), dh(dh), dc(dc) {}

  void pack(int64_t chunk, int N) {  // [gate and unit, N, lane] of Wᵀ
    int count = std::min<int64_t>(N * kLanes, s.H - chunk * kLanes);
    float* to = panel(chunk);
    constexpr int64_t block = 16;
    for (int64_t k0 = 0; k0 < 4 * s.H; k0 += block)
      for (int u = 0; u < N * kLanes; ++u)
        for (int64_t k = k0; k < std::min(k0 + block, 4 * s.H); ++k)
          to[k * N * kLanes + u] = u < count ? W[(chunk * kLanes + u) * 4 * s.H + k] : 0.0f;
  }

  template <int R, int N>
  INLINE void step(int64_t t, int64_t b, int64_t chunk) {
    Lanes back[R][N] = {};
    if (t + 1 < s.T) {
      const float* delta[R];
      for (int r = 0; r < R; ++r) delta[r] = deltas + ((t + 1) * s.B + b + r) * 4 * s.H;
      multiply<R, N>(back, delta, panel(chunk), 4 * s.H);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      uint8_t next = t + 1 < s.T ? s.kind(t + 1, b + r) : kSkip;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        int64_t unit = (chunk + n) * kLanes;
        apply_backward(t, b + r, unit, next, back[r][n]);
      }
    }
  }

  INLINE void apply_backward(int64_t t, int64_t b, int64_t unit, uint8_t next, Lanes dh_t) {
    int count = std::min<int64_t>(kLanes, s.H - unit);
    float *dh_at = dh + b * s.H + unit, *dc_at = dc + b * s.H + unit;
    if (next == kSkip) dh_t = load(dh_at, count);
    if (next == kReset) dh_t = Lanes{};
    if (t < 0) return store(dh_at, dh_t, count);
    dh_t += load(dhs + (t * s.B + b) * s.H + unit, count);
    float* delta = deltas + (t * s.B + b) * 4 * s.H + unit;
    uint8_t kind = s.kind(t, b);
    if (s.kinds) store(dh_at, dh_t, count);
    if (kind == kSkip) {
      for (int gate = 0; gate < 4; ++gate) store(delta + gate * s.H, Lanes{}, count);
      return;
    }
    const float* c_before = kind == kReset ? zeros.data() + unit
                            : (t ? cs + ((t - 1) * s.B + b) * s.H : c0 + b * s.H) + unit;
    Lanes i = load(delta, count), f = load(delta + s.H, count);
    Lanes g = load(delta + 2 * s.H, count), o = load(delta + 3 * s.H, count);
    Lanes tanh_c = tanh(load(cs + (t * s.B + b) * s.H + unit, count));
    Lanes dc_t = load(dc_at, count) + dh_t * o * (1.0f - tanh_c * tanh_c);
    store(delta, dc_t * g * i * (1.0f - i), count);
    store(delta + s.H, dc_t * load(c_before, count) * f * (1.0f - f), count);
    store(delta + 2 * s.H, dc_t * i * (1.0f - g * g), count);
    store(delta + 3 * s.H, dh_t * tanh_c * o * (1.0f - o), count);
    store(dc_at, kind == kReset ? Lanes{} : dc_t * f, count);
  }

  template <int N>
  void step(const Part& part, int64_t t, int64_t chunk) {
    for_row_tiles(part.rows[0], part.rows[1],
          [&](auto R, int64_t b) { step<R, N>(t, b, chunk); });
  }

  void operator()(int member, int members) {
    Part part(s, member, members);
    std::vector<std::pair<int64_t, int>> blocks;  // (first chunk, how many)
    for (int64_t c = part.chunks[0], N; c < part.chunks[1]; c += N) {
      N = part.chunks[1] - c;
      N = N >= kMaxChunks ? kMaxChunks : N >= 2 ? 2 : 1;
      blocks.emplace_back(c, N);
    }
    for (size_t n = part.group; n < blocks.size(); n += part.groups)
      pack(blocks[n].first, blocks[n].second);
    barrier(packing_barrier, members);
    for (int64_t t = s.T - 1; t >= -1; --t) {
      if (t % 2 == 0) std::reverse(blocks.begin(), blocks.end());
      for (auto [chunk, N] : blocks) {
        if (N == kMaxChunks) step<kMaxChunks>(part, t, chunk);
        else if (N == 2) step<2>(part, t, chunk);
        else step<1>(part, t, chunk);
      }
      if (t % 2 == 0) std::reverse(blocks.begin(), blocks.end());
      barrier(step_barriers[part.group], part.slices, s.T - t);
    }
  }
};

// Returns the number of members that the work of a step justifies.
int team_size(const Sizes& s) {
  return std::max<int64_t>(1, std::min<int64_t>(kMaxMembers, s.B * s.H * s.depth / 8192));
}

// ---- FFI handlers ------------------------------------------------------------------

using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::U8>;
using Result = ffi::Result<Floats>;

// Returns the sizes of a loop from its hs (forward) or dhs (backward).
Sizes sizes(const Floats& hs, int64_t depth, const Bytes& kinds) {
  auto d = hs.dimensions();
  return {d[0], d[1], d[2], depth, kinds.element_count() ? kinds.typed_data() : nullptr};
}

float* data(Result& array) {
  return array->element_count() ? array->typed_data() : nullptr;
}

void copy(Result& to, const Floats& from) {
  if (to->typed_data() != from.typed_data())
    std::memcpy(to->typed_data(), from.typed_data(), from.size_bytes());
}

// i [T, B, 4, H] holds all four gates; or i, f, g, o [T, B, H] one each; or all are empty.
ffi::Error forward(ffi::ThreadPool pool, Floats xs, Floats W_x, Floats W, Floats b,
                   Floats h0, Floats c0, Bytes kinds, Result hs, Result c, Result cs,
                   Result i, Result f, Result g, Result o) {
  int64_t D = xs.dimensions()[2], H = W.dimensions()[0];
  Sizes s = sizes(*hs, D + H, kinds);
  copy(c, c0);
  Stored stored{{data(i), data(f), data(g), data(o)}, H, data(cs)};
  if (i->dimensions().size() == 4) {
    stored.row = 4 * H;
    for (int n = 1; n < 4; ++n) stored.gates[n] = stored.gates[0] + n * H;
  }
  Forward loop(s, xs.typed_data(), W_x.typed_data(), W.typed_data(), b.typed_data(),
               h0.typed_data(), hs->typed_data(), c->typed_data(), stored);
  run_team(pool, team_size(s), [&](int m, int n) { loop(m, n); });
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, Floats gates, Floats W, Floats c0, Floats cs,
                    Floats dhs, Floats dhT, Floats dcT, Bytes kinds, Result deltas,
                    Result dh0, Result dc0) {
  Sizes s = sizes(dhs, W.dimensions()[0], kinds);
  copy(deltas, gates);
  copy(dh0, dhT);
  copy(dc0, dcT);
  Backward loop(s, W.typed_data(), c0.typed_data(), cs.typed_data(), dhs.typed_data(),
                deltas->typed_data(), dh0->typed_data(), dc0->typed_data());
  run_team(pool, team_size(s), [&](int m, int n) { loop(m, n); });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_forward, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
                                  .Arg<Floats>().Arg<Floats>()
                                  .Arg<Bytes>()
                                  .Ret<Floats>().Ret<Floats>().Ret<Floats>()
                                  .Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_backward, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
                                  .Arg<Floats>().Arg<Floats>().Arg<Floats>()
                                  .Arg<Bytes>()
                                  .Ret<Floats>().Ret<Floats>().Ret<Floats>());
