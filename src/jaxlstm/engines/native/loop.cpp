// The loop over time of a recurrent step, for the CPU.
//
// A step is a program of two kinds of operations on rows of the batch:
//
//     products       y = init + x W       x [K] of a row, W [K, N] the same at all steps
//     instructions   y = op(a, b, c)      element by element along the units of a row
//
// `program.py` writes the program from the jaxpr of a step: of an LSTM, a GRU, a cell with
// wrappers, or of the transposed tangent of one, which is a step of the backward pass.
// This file only runs it. The order of the operations in a step is given by segments: the
// products of a segment come first, then its instructions, tile by tile, so that their
// intermediate values stay in the first-level cache.
//
// Products of the input of a step do not depend on the state; they are computed for
// several steps at once. The weights are packed once into panels of vectors.
//
// Parallelism. A population of P parameter sets is split into teams, one member of the
// population at a time for each team. The threads of a team form a grid: rows of the batch
// by slices of the units. Threads that share rows need each other's values as operands of
// products, and synchronize at a barrier before each of these; others never do. Each
// number is the same sum in the same order for any number of threads.
//
// Freedom from deadlock. Helpers are scheduled on XLA's own pool, which may be busy,
// perhaps with other callers of this function, so they may never run. The caller waits for
// them for 200 microseconds and then closes the crew. All threads that have joined by then
// are running, and only they synchronize at barriers.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// ---- vectors ---------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 6;  // 24 sums, 4 weights, 1 row in 32 registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kRows = 3;  // 12 sums, 1 weight, 3 rows in 16 registers
#elif defined(__aarch64__)
constexpr int kBytes = 16, kRows = 6;
#else
constexpr int kBytes = 16, kRows = 2;
#endif

#define INLINE inline __attribute__((always_inline))

using Ints = int32_t __attribute__((vector_size(kBytes)));
using Floats = float __attribute__((vector_size(kBytes)));
using Doubles = double __attribute__((vector_size(kBytes)));

template <class F>
struct Vector;
template <>
struct Vector<float> {
  using Lanes = Floats;
  static constexpr int kLanes = kBytes / 4;
};
template <>
struct Vector<double> {
  using Lanes = Doubles;
  static constexpr int kLanes = kBytes / 8;
};

template <class F>
INLINE auto load(const F* from) {
  typename Vector<F>::Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <class F>
INLINE auto load(const F* from, int64_t count) {
  if (count >= Vector<F>::kLanes) return load(from);
  typename Vector<F>::Lanes lanes{};
  for (int i = 0; i < count; ++i) lanes[i] = from[i];
  return lanes;
}

template <class F, class L>
INLINE void store(F* to, L lanes, int64_t count) {
  if (count >= Vector<F>::kLanes) {
    std::memcpy(to, &lanes, sizeof lanes);
  } else {
    for (int i = 0; i < count; ++i) to[i] = lanes[i];
  }
}

template <class L, class Function>
INLINE L map(L x, const Function& function) {
  for (size_t i = 0; i < sizeof(L) / sizeof(x[0]); ++i) x[i] = function(x[i]);
  return x;
}

// exp(x) = scale (1 + part), with |x - n log 2| <= log(2) / 2 and scale = 2^n; NaN stays.
struct Exponential {
  Floats scale, part;
};

INLINE Exponential exponential(Floats x, float bound) {
  x = x < -bound ? Floats{} - bound : x;
  x = x > bound ? Floats{} + bound : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  Floats shifted = x * 1.44269504f + magic;
  Floats n = shifted - magic;
  Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
  Floats tail = r * 1.38825155e-3f + 8.36654752e-3f;
  tail = tail * r + 4.16672006e-2f;
  tail = tail * r + 1.66665435e-1f;
  tail = tail * r + 4.99999970e-1f;
  Ints power = ((Ints)shifted << 23) + 0x3f800000;
  return {(Floats)power, tail * r * r + r};
}

INLINE Floats sigmoid(Floats x) {
  Exponential e = exponential(Floats{} - x, 88.0f);
  Floats result = 1.0f / (e.scale * e.part + e.scale + 1.0f);
  return x < -88.0f ? Floats{} : result;  // below the least normal number
}

INLINE Floats tanh(Floats x) {
  Exponential e = exponential(x + x, 20.0f);
  Floats minus_one = e.scale * e.part + (e.scale - 1.0f);  // exp(2x) - 1
  return minus_one / (minus_one + 2.0f);
}

INLINE Doubles sigmoid(Doubles x) {
  return map(x, [](double v) { return 1.0 / (1.0 + std::exp(-v)); });
}

INLINE Doubles tanh(Doubles x) {
  return map(x, [](double v) { return std::tanh(v); });
}

// Rounds to bfloat16, to the nearest and to even; NaN stays.
INLINE Floats round_to_half(Floats x) {
  Ints bits = (Ints)x;
  Ints last = bits >> 16 & 1;
  Ints rounded = (bits + 0x7fff + last) & ~0xffff;
  return x == x ? (Floats)rounded : x;
}

INLINE Doubles round_to_half(Doubles x) { return x; }  // no program has this

// ---- instructions ------------------------------------------------------------------

// The position of an operand: the first number of a tile, and the distance of its rows.
// A constant is one vector, which all positions read.
struct Place {
  char* at;
  int64_t row;     // in numbers
  int64_t varies;  // -1 if the units differ, 0 for a constant
};

struct Tile {
  int64_t rows, units;
};

template <class F>
using Instruction = void (*)(Tile, Place, Place, Place, Place);

// Returns whether the rows of a place follow each other without a gap.
INLINE bool is_dense(const Place& place, int64_t units) {
  return place.row == units || !place.varies;
}

template <class F, int Operands, class Op>
void elementwise(Tile tile, Place y, Place a, Place b, Place c) {
  constexpr int L = Vector<F>::kLanes;
  auto [rows, units] = tile;
  if (rows > 1 && is_dense(y, units) && is_dense(a, units) &&
      (Operands < 2 || is_dense(b, units)) && (Operands < 3 || is_dense(c, units))) {
    units *= rows;
    rows = 1;
  }
  Op op;
  for (int64_t r = 0; r < rows; ++r) {
    F* to = (F*)y.at + r * y.row;
    const F* from_a = (const F*)a.at + (r * a.row & a.varies);
    const F* from_b = (const F*)b.at + (r * b.row & b.varies);
    const F* from_c = (const F*)c.at + (r * c.row & c.varies);
    auto apply = [&](int64_t u, auto read) {
      if constexpr (Operands == 1) return op(read(from_a, u & a.varies));
      else if constexpr (Operands == 2)
        return op(read(from_a, u & a.varies), read(from_b, u & b.varies));
      else
        return op(read(from_a, u & a.varies), read(from_b, u & b.varies),
                  read(from_c, u & c.varies));
    };
    int64_t u = 0;
    for (; u + L <= units; u += L) {
      auto result = apply(u, [](const F* from, int64_t at) { return load(from + at); });
      std::memcpy(to + u, &result, sizeof result);
    }
    if (int64_t rest = units - u)
      store(to + u, apply(u, [&](const F* from, int64_t at) {
              return load(from + at, rest);
            }), rest);
  }
}

#define UNARY(name, expression)      \
  struct name {                      \
    template <class L>               \
    INLINE L operator()(L a) const { \
      return expression;             \
    }                                \
  };
#define BINARY(name, expression)          \
  struct name {                           \
    template <class L>                    \
    INLINE L operator()(L a, L b) const { \
      return expression;                  \
    }                                     \
  };
#define TRUTH(condition) ((condition) ? L{} + 1 : L{})

UNARY(Copy, a)
UNARY(Negate, -a)
UNARY(Absolute, map(a, [](auto v) { return std::fabs(v); }))
UNARY(Sign, a > 0 ? L{} + 1 : (a < 0 ? L{} - 1 : a))
UNARY(Sqrt, map(a, [](auto v) { return std::sqrt(v); }))
UNARY(Rsqrt, map(a, [](auto v) { return 1 / std::sqrt(v); }))
UNARY(Exp, map(a, [](auto v) { return std::exp(v); }))
UNARY(Log, map(a, [](auto v) { return std::log(v); }))
UNARY(Log1p, map(a, [](auto v) { return std::log1p(v); }))
UNARY(Expm1, map(a, [](auto v) { return std::expm1(v); }))
UNARY(Tanh, tanh(a))
UNARY(Logistic, sigmoid(a))
UNARY(Not, 1 - a)
UNARY(Round, round_to_half(a))
BINARY(Add, a + b)
BINARY(Subtract, a - b)
BINARY(Multiply, a* b)
BINARY(Divide, a / b)
BINARY(Maximum, a != a ? a : (a > b ? a : b))
BINARY(Minimum, a != a ? a : (a < b ? a : b))
BINARY(Equal, TRUTH(a == b))
BINARY(NotEqual, TRUTH(a != b))
BINARY(Less, TRUTH(a < b))
BINARY(LessEqual, TRUTH(a <= b))
BINARY(Greater, TRUTH(a > b))
BINARY(GreaterEqual, TRUTH(a >= b))
BINARY(Or, TRUTH(a + b != 0))

struct Select {  // c where a is true, else b, as lax.select_n
  template <class L>
  INLINE L operator()(L a, L b, L c) const {
    return a != 0 ? c : b;
  }
};

// Sums each row of a into all units of the row of y.
template <class F>
void sum_row(Tile tile, Place y, Place a, Place, Place) {
  constexpr int L = Vector<F>::kLanes;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const F* from = (const F*)a.at + (r * a.row & a.varies);
    typename Vector<F>::Lanes lanes{};
    for (int64_t u = 0; u < tile.units; u += L)
      lanes += load(from + (u & a.varies), tile.units - u);
    F sum = 0;
    for (int i = 0; i < L; ++i) sum += lanes[i];
    std::fill_n((F*)y.at + r * y.row, tile.units, sum);
  }
}

// Reads one number of each row into all of its units.
template <class F, class Stored>
void spread_row(Tile tile, Place y, Place a, Place, Place) {
  for (int64_t r = 0; r < tile.rows; ++r)
    std::fill_n((F*)y.at + r * y.row, tile.units, (F)((const Stored*)a.at)[r * a.row]);
}

template <class F>
void store_row(Tile tile, Place y, Place a, Place, Place) {
  for (int64_t r = 0; r < tile.rows; ++r)
    ((F*)y.at)[r * y.row] = ((const F*)a.at)[r * a.row & a.varies];
}

template <class F>
void read_bytes(Tile tile, Place y, Place a, Place, Place) {
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t u = 0; u < tile.units; ++u)
      ((F*)y.at)[r * y.row + u] = ((const uint8_t*)a.at)[r * a.row + u];
}

// In the order of `OPERATIONS` of program.py.
template <class F>
constexpr Instruction<F> kInstructions[] = {
    elementwise<F, 1, Copy>,     elementwise<F, 2, Add>,
    elementwise<F, 2, Subtract>, elementwise<F, 2, Multiply>,
    elementwise<F, 2, Divide>,   elementwise<F, 2, Maximum>,
    elementwise<F, 2, Minimum>,  elementwise<F, 1, Negate>,
    elementwise<F, 1, Absolute>, elementwise<F, 1, Sign>,
    elementwise<F, 1, Sqrt>,     elementwise<F, 1, Rsqrt>,
    elementwise<F, 1, Exp>,      elementwise<F, 1, Log>,
    elementwise<F, 1, Log1p>,    elementwise<F, 1, Expm1>,
    elementwise<F, 1, Tanh>,     elementwise<F, 1, Logistic>,
    elementwise<F, 2, Equal>,    elementwise<F, 2, NotEqual>,
    elementwise<F, 2, Less>,     elementwise<F, 2, LessEqual>,
    elementwise<F, 2, Greater>,  elementwise<F, 2, GreaterEqual>,
    elementwise<F, 3, Select>,   elementwise<F, 2, Multiply>,  // and
    elementwise<F, 2, Or>,       elementwise<F, 1, Not>,
    elementwise<F, 1, Round>,
    sum_row<F>,                  spread_row<F, F>,
    spread_row<F, uint8_t>,      store_row<F>,
    read_bytes<F>,
};

// ---- the product -------------------------------------------------------------------

// sums[r][n] += rows[r] [K] times panels [M, K, N, lanes].
template <int R, int M, int N, class F>
INLINE void multiply(typename Vector<F>::Lanes (&sums)[R][M * N], const F* const* rows,
                     const F* panels, int64_t K) {
  constexpr int L = Vector<F>::kLanes;
  const F *row[R], *panel[M];
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  for (int m = 0; m < M; ++m) panel[m] = panels + m * K * N * L;
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int n = 0; n < M * N; ++n) {
      auto weights = load(panel[n / N] + (k * N + n % N) * L);
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
INLINE void for_row_tiles(int64_t count, const Body& body) {
  int64_t number = (count + kRows - 1) / kRows;
  for (int64_t n = 0; n < number; ++n) {
    int64_t first = count * n / number;
    dispatch_rows(count * (n + 1) / number - first, body, first);
  }
}

// ---- the crew ----------------------------------------------------------------------

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

constexpr int kMaxThreads = 64;  // most threads of a crew
std::atomic<int> active_threads{0};  // threads of all crews of the process

// Work for a crew: `work(thread, threads)`, called once by each thread.
template <class Work>
struct Crew {
  const Work* work;
  std::atomic<int> joined{1};
  std::atomic<int> threads{0};  // 0 until the crew is closed
  std::atomic<int> finished{0};

  bool join(int& thread) {
    thread = joined.load();
    do {
      if (thread < 0) return false;
    } while (!joined.compare_exchange_weak(thread, thread + 1));
    return true;
  }

  void help() {
    int thread;
    if (!join(thread)) return;
    wait_until([&] { return threads.load() > 0; });
    (*work)(thread, threads.load());
    finished.fetch_add(1);
  }

  void lead(int wanted) {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
    wait_until([&] {
      return joined.load() >= wanted || std::chrono::steady_clock::now() > deadline;
    });
    int present = joined.exchange(INT32_MIN);
    threads.store(present);
    (*work)(0, present);
    wait_until([&] { return finished.load() == present - 1; });
  }
};

template <class Work>
void run_crew(ffi::ThreadPool& pool, int wanted, const Work& work) {
  int cores = pool.num_threads();  // available to the process
  int busy = active_threads.fetch_add(1);
  wanted = std::max(1, std::min({wanted, kMaxThreads, cores - busy}));
  if (wanted == 1) {
    work(0, 1);
    active_threads.fetch_sub(1);
    return;
  }
  auto crew = std::make_shared<Crew<Work>>();
  crew->work = &work;
  active_threads.fetch_add(wanted - 1);
  for (int n = 1; n < wanted; ++n) pool.Schedule([crew] { crew->help(); });
  crew->lead(wanted);
  active_threads.fetch_sub(wanted);
}

// ---- the program -------------------------------------------------------------------

// A place to read from or write to, as program.py describes it. Distances are in numbers.
struct Slot {
  enum Kind : int64_t {
    kArgument, kBytes, kResult, kCarryIn, kCarryOut, kShared, kLocal, kRegister, kConstant
  };
  int64_t kind, index, population, time, row;
  int64_t width;  // of local slots and registers: units
};

struct Operand {
  int64_t slot, offset;
};

struct Step {
  int64_t operation;
  Operand y, a, b, c;
};

// y[n] = init[n] + x W[:, n], for n vectors of `width` units; slots y, y + 1, ...
struct Product {
  Operand x;
  int64_t K, weight, population, inner, outer;  // argument of W, and its distances
  int64_t first, vector;  // the first vector in W, and the distance between vectors
  int64_t count, width, y;
  Operand init;         // slot -1 for none
  int64_t init_vector;  // distance between the vectors of init: in slots or in offset
  int64_t ahead;        // 1 if x is an input of the step, which is known in advance
};

struct Segment {
  int64_t waits;  // 1 if a product reads what other threads computed
  int64_t width, products[2], steps[2];
};

struct Carry {
  int64_t argument, population, result, width;
  int64_t slot;  // result slot that holds each state, or -1
};

struct Program {
  struct Header {
    int64_t T, P, B, reverse, whole_rows, registers;
    int64_t slots, carries, products, segments, steps;
    // The argument that is 0 where a row has no step, or -1, and its distances in bytes.
    // Products of such rows are taken as 0: the step does not use them, or they are 0.
    int64_t active, active_population, active_time, active_row;
  } header;
  const Slot* slots;
  const Carry* carries;
  const Product* products;
  const Segment* segments;
  const Step* steps;

  explicit Program(const int64_t* from) {
    std::memcpy(&header, from, sizeof header);
    from += sizeof header / sizeof *from;
    auto take = [&](auto*& table, int64_t count) {
      table = reinterpret_cast<std::remove_reference_t<decltype(table)>>(from);
      from += count * sizeof *table / sizeof *from;
    };
    take(slots, header.slots);
    take(carries, header.carries);
    take(products, header.products);
    take(segments, header.segments);
    take(steps, header.steps);
  }
};

constexpr int64_t kCache = 1 << 20;        // bytes of weights that stay in a thread's cache
constexpr int64_t kBarrierCost = 1 << 19;  // of a barrier, in bytes read in that time
constexpr int64_t kTile = 1024;            // numbers of a tile
constexpr int64_t kAheadRows = 48;         // rows of an input product
constexpr int64_t kAheadBytes = 1 << 20;   // of the results of input products
constexpr int kMaxBlocks = 256;            // calls for a product that are ordered
constexpr int kJoined = 2;                 // blocks of a product of one row at a time

template <class F>
struct Loop {
  static constexpr int L = Vector<F>::kLanes;
  using Lanes = typename Vector<F>::Lanes;

  const Program g;
  const std::vector<char*>& arguments;
  const std::vector<char*>& results;
  const double* constants;

  static int64_t chunks(int64_t width) { return (width + L - 1) / L; }
  static int64_t panel_size(const Product& product) {
    return product.K * product.count * chunks(product.width) * L;
  }

  // What the threads of a team share.
  struct Team {
    std::unique_ptr<F[]> memory;  // panels, carries [2, B, width], shared slots likewise
    Counter barrier, group_barriers[kMaxThreads];
  };
  std::vector<int64_t> panel_at, carry_at, shared_at;
  int64_t team_size = 0;
  std::unique_ptr<Team[]> teams;

  Loop(const int64_t* program, const std::vector<char*>& arguments,
       const std::vector<char*>& results, const double* constants)
      : g(program), arguments(arguments), results(results), constants(constants) {
    auto reserve = [&](int64_t size) {
      int64_t at = team_size;
      team_size += (size + 15) / 16 * 16;
      return at;
    };
    for (int64_t n = 0; n < g.header.products; ++n)
      panel_at.push_back(reserve(panel_size(g.products[n])));
    for (int64_t n = 0; n < g.header.carries; ++n)
      carry_at.push_back(
          g.carries[n].slot < 0 ? reserve(2 * g.header.B * g.carries[n].width) : 0);
    for (int64_t n = 0; n < g.header.slots; ++n)
      shared_at.push_back(
          g.slots[n].kind == Slot::kShared ? reserve(2 * g.header.B * g.slots[n].row) : 0);
  }

  // Returns the multiplications and additions of a step for one row.
  int64_t work() const {
    int64_t sum = 0;
    for (int64_t n = 0; n < g.header.products; ++n) sum += panel_size(g.products[n]);
    for (int64_t n = 0; n < g.header.segments; ++n)
      sum += 8 * (g.segments[n].steps[1] - g.segments[n].steps[0]) * g.segments[n].width;
    return sum;
  }

  int wanted_threads() const {
    int64_t rows = g.header.P * g.header.B;
    int64_t most = g.header.whole_rows ? rows : kMaxThreads;
    return std::max<int64_t>(
        1, std::min({int64_t(kMaxThreads), most, rows * work() / 32768}));
  }

  void prepare(int threads) {
    teams.reset(new Team[std::min<int64_t>(g.header.P, threads)]);
  }

  // -- a thread's part of the work --------------------------------------------------

  struct Thread {
    Loop& loop;
    const Program& g;
    Team& team;
    const int64_t index, size;  // in the team
    int64_t slices = 1, groups = 1, slice = 0, group = 0;
    int64_t rows[2];
    int64_t ahead = 1;
    int64_t waits = 0, group_waits = 0;  // barriers passed
    std::unique_ptr<F[]> memory;
    std::vector<int64_t> local_at;  // by slot
    std::vector<Place> places;      // by slot, for row 0 and unit 0
    std::vector<int64_t> moving;    // slots whose place changes from step to step
    F* registers;

    Thread(Loop& loop, Team& team, int64_t index, int64_t size)
        : loop(loop), g(loop.g), team(team), index(index), size(size) {
      const auto& h = g.header;
      int64_t bytes = 0;
      for (int64_t n = 0; n < h.products; ++n)
        bytes += panel_size(g.products[n]) * sizeof(F) / (g.products[n].ahead ? 4 : 1);
      auto cost = [&](int64_t slices) {
        int64_t share = bytes / slices;
        int64_t rows = (h.B * slices + size - 1) / size;
        int64_t times = (rows + kRows - 1) / kRows * (share > kCache ? 4 : 1);
        return share * times + (slices > 1 ? kBarrierCost : 0);
      };
      if (!h.whole_rows)
        for (int64_t n = 2; n <= size; ++n)
          if (size % n == 0 && cost(n) < cost(slices)) slices = n;
      groups = size / slices;
      group = index / slices;
      slice = index % slices;
      for (int end : {0, 1}) rows[end] = h.B * (group + end) / groups;
      reserve();
    }

    int64_t unit(int64_t width, int end) const {
      return std::min(width, chunks(width) * (slice + end) / slices * L);
    }

    int64_t units(int64_t width) const { return unit(width, 1) - unit(width, 0); }

    void reserve() {
      const auto& h = g.header;
      int64_t count = std::max<int64_t>(rows[1] - rows[0], 1), bytes = 0;
      for (int64_t n = 0; n < h.products; ++n)
        if (g.products[n].ahead)
          bytes += count * g.products[n].count * units(g.products[n].width) * sizeof(F);
      if (bytes)
        ahead = std::max<int64_t>(
            1, std::min({h.T, (kAheadRows + count - 1) / count, kAheadBytes / bytes}));
      std::vector<int64_t> steps(h.slots, 1);
      for (int64_t n = 0; n < h.products; ++n)
        if (g.products[n].ahead)
          for (int64_t k = 0; k < g.products[n].count; ++k)
            steps[g.products[n].y + k] = ahead;
      int64_t size = 0, tile = kTile;
      for (int64_t n = 0; n < h.slots; ++n) {
        local_at.push_back(size);
        if (g.slots[n].kind == Slot::kLocal)
          size += (steps[n] * count * units(g.slots[n].width) + L) / L * L;
      }
      for (int64_t n = 0; n < h.segments; ++n)
        tile = std::max(tile, g.segments[n].width);
      memory.reset(new F[size + (h.registers + 1) * (tile + L)]);
      registers = memory.get() + size;
      register_size = tile + L;
    }
    int64_t register_size;

    // Waits until `count` threads have come to a barrier as often as this one.
    static void barrier(Counter& counter, int64_t count, int64_t& waits) {
      if (count == 1) return;
      counter.value.fetch_add(1, std::memory_order_acq_rel);
      ++waits;
      wait_until([&] {
        return counter.value.load(std::memory_order_acquire) >= waits * count;
      });
    }

    // -- panels ---------------------------------------------------------------------

    // Returns the number of chunks of a block, if so many are left.
    static int64_t block_size(const Product& product, int64_t left) {
      if (product.count == 1) return left >= 4 ? 4 : left >= 2 ? 2 : 1;
      return product.count == 2 && left >= 2 ? 2 : 1;
    }

    // Calls body(vectors, first chunk, chunks, blocks) for the blocks of a slice of a
    // product, at most `joined` of the same size in one call. Backward, the blocks that
    // the cache still holds come first.
    template <class Body>
    static void for_blocks(const Product& product, int64_t begin, int64_t end,
                           bool backward, int64_t joined, const Body& body) {
      struct {
        int64_t chunk, number, blocks;
      } calls[kMaxBlocks];
      int64_t count = 0;
      auto flush = [&] {
        for (int64_t n = 0; n < count; ++n) {
          auto [chunk, number, blocks] = calls[backward ? count - 1 - n : n];
          body(number * product.count, chunk, number, blocks);
        }
        count = 0;
      };
      for (int64_t chunk = begin, number; chunk < end; chunk += number) {
        number = block_size(product, end - chunk);
        bool joins = count && calls[count - 1].number == number &&
                     calls[count - 1].blocks < joined;
        if (joins) {
          ++calls[count - 1].blocks;
          continue;
        }
        if (count == kMaxBlocks) flush();
        calls[count++] = {chunk, number, 1};
      }
      flush();
    }

    F* panel(int64_t n, int64_t chunk) const {
      const Product& product = g.products[n];
      return team.memory.get() + loop.panel_at[n] + chunk * L * product.K * product.count;
    }

    void pack(int64_t p) {
      int64_t number = 0;
      for (int64_t n = 0; n < g.header.products; ++n) {
        const Product& product = g.products[n];
        const F* from = (const F*)loop.arguments[product.weight] + p * product.population +
                        product.first;
        int64_t all = chunks(product.width);
        for_blocks(product, all * slice / slices, all * (slice + 1) / slices, false, 1,
                   [&](int64_t, int64_t chunk, int64_t count, int64_t) {
                     if (number++ % groups == group) pack(product, from, n, chunk, count);
                   });
      }
    }

    // Writes [K, chunk, vector, lane] of a block.
    void pack(const Product& product, const F* from, int64_t n, int64_t chunk,
              int64_t count) {
      F* to = panel(n, chunk);
      int64_t vectors = product.count * count, stride = vectors * L;
      constexpr int64_t kBlock = 16;
      for (int64_t v = 0; v < vectors; ++v) {
        int64_t first = (chunk + v / product.count) * L;
        int64_t lanes = std::max<int64_t>(0, std::min<int64_t>(L, product.width - first));
        const F* at = from + v % product.count * product.vector + first * product.outer;
        if (product.outer == 1) {
          for (int64_t k = 0; k < product.K; ++k) {
            Lanes values = load(at + k * product.inner, lanes);
            std::memcpy(to + k * stride + v * L, &values, sizeof values);
          }
          continue;
        }
        for (int64_t k0 = 0; k0 < product.K; k0 += kBlock)
          for (int64_t lane = 0; lane < L; ++lane)
            for (int64_t k = k0; k < std::min(k0 + kBlock, product.K); ++k)
              to[k * stride + v * L + lane] =
                  lane < lanes ? at[k * product.inner + lane * product.outer] : F(0);
      }
    }

    // -- places ---------------------------------------------------------------------

    // The step executed as number i.
    int64_t time(int64_t i) const { return g.header.reverse ? g.header.T - 1 - i : i; }

    F* carry(int64_t n, int64_t i, int64_t p) const {  // state after step i
      const Carry& carry = g.carries[n];
      int64_t size = g.header.B * carry.width;
      if (i < 0) return (F*)loop.arguments[carry.argument] + p * carry.population;
      if (carry.slot >= 0) {
        const Slot& slot = g.slots[carry.slot];
        return (F*)loop.results[slot.index] + p * slot.population + time(i) * slot.time;
      }
      if (i == g.header.T - 1) return (F*)loop.results[carry.result] + p * size;
      return team.memory.get() + loop.carry_at[n] + i % 2 * size;
    }

    void place(int64_t n, int64_t i, int64_t p) {
      const Slot& slot = g.slots[n];
      F* at = nullptr;
      int64_t row = slot.row;
      switch (slot.kind) {
        case Slot::kArgument:
          at = (F*)loop.arguments[slot.index] + p * slot.population + time(i) * slot.time;
          break;
        case Slot::kBytes:
          places[n] = {loop.arguments[slot.index] + p * slot.population +
                           time(i) * slot.time, row, -1};
          return;
        case Slot::kResult:
          at = (F*)loop.results[slot.index] + p * slot.population + time(i) * slot.time;
          break;
        case Slot::kCarryIn: at = carry(slot.index, i - 1, p); break;
        case Slot::kCarryOut: at = carry(slot.index, i, p); break;
        case Slot::kShared:
          at = team.memory.get() + loop.shared_at[n] + i % 2 * g.header.B * row;
          break;
        case Slot::kLocal: {
          row = units(slot.width);
          int64_t step = slot.time ? i % ahead * (rows[1] - rows[0]) * row : 0;
          at = memory.get() + local_at[n] + step - rows[0] * row - unit(slot.width, 0);
          break;
        }
        case Slot::kConstant:
          places[n] = {(char*)(constant_lanes.data() + slot.index * L), 0, 0};
          return;
      }
      places[n] = {(char*)at, row, -1};
    }
    std::vector<F> constant_lanes;

    void start(int64_t p) {
      places.assign(g.header.slots, Place{nullptr, 0, -1});
      moving.clear();
      constant_lanes.clear();
      for (int64_t n = 0; n < g.header.slots; ++n)
        if (g.slots[n].kind == Slot::kConstant) {
          constant_lanes.resize((g.slots[n].index + 1) * L);
          std::fill_n(&constant_lanes[g.slots[n].index * L], L,
                      F(loop.constants[g.slots[n].index]));
        }
      for (int64_t n = 0; n < g.header.slots; ++n) {
        if (g.slots[n].kind == Slot::kRegister) continue;
        place(n, 0, p);
        bool is_carry = g.slots[n].kind == Slot::kCarryIn || g.slots[n].kind == Slot::kCarryOut;
        if (g.slots[n].time || is_carry || g.slots[n].kind == Slot::kShared)
          moving.push_back(n);
      }
    }

    Place at(const Operand& operand, int64_t row, int64_t unit) const {
      if (operand.slot < 0) return {nullptr, 0, 0};
      Place place = places[operand.slot];
      int64_t kind = g.slots[operand.slot].kind;
      if (kind == Slot::kConstant) return place;
      int64_t number = operand.offset + row * place.row + unit;
      place.at += number * (kind == Slot::kBytes ? 1 : sizeof(F));
      return place;
    }

    // -- one step -------------------------------------------------------------------

    // Computes a product for the steps i, ..., i + number - 1.
    void run_product(int64_t n, int64_t i, int64_t p, int64_t number) {
      const Product& product = g.products[n];
      int64_t count = rows[1] - rows[0], all = chunks(product.width);
      int64_t begin = all * slice / slices, end = all * (slice + 1) / slices;
      const int64_t* chosen = choose_rows(i, p, number);
      int64_t most = chosen ? chosen_rows.size() : count * number;
      auto block = [&](int64_t vectors, int64_t chunk, int64_t, int64_t blocks) {
        const F* weights = panel(n, chunk);
        auto with = [&](auto N) {
          auto tile = [&](auto R, auto M, const F* weights, const int64_t* chosen,
                          int64_t first) {
            multiply_tile<R, M, N>(product, weights, chunk, first, chosen, count, i);
          };
          std::integral_constant<int, 1> one;
          std::integral_constant<int, kJoined> several;
          if (blocks == kJoined) {
            tile(one, several, weights, chosen, 0);
            for (size_t k = 0; chosen && k < skipped_rows.size(); ++k)
              tile(one, several, nullptr, skipped_rows.data(), k);
            return;
          }
          for_row_tiles(most, [&](auto R, int64_t first) {
            tile(R, one, weights, chosen, first);
          });
          for (size_t k = 0; chosen && k < skipped_rows.size(); ++k)
            tile(one, one, nullptr, skipped_rows.data(), k);
        };
        if (vectors == 4) with(std::integral_constant<int, 4>{});
        else if (vectors == 3) with(std::integral_constant<int, 3>{});
        else if (vectors == 2) with(std::integral_constant<int, 2>{});
        else with(std::integral_constant<int, 1>{});
      };
      // The sums of one row and one block are too few to hide the latency of an addition.
      for_blocks(product, begin, end, i / number % 2, most == 1 ? kJoined : 1, block);
    }

    // Returns the rows of the steps i, ..., i + number - 1 that have a step, numbered one
    // step after another, or null for all.
    const int64_t* choose_rows(int64_t i, int64_t p, int64_t number) {
      const auto& h = g.header;
      if (h.active < 0) return nullptr;
      int64_t count = rows[1] - rows[0];
      const char* active = loop.arguments[h.active] + p * h.active_population;
      chosen_rows.clear();
      skipped_rows.clear();
      for (int64_t step = 0; step < number; ++step) {
        const char* at = active + time(i + step) * h.active_time;
        for (int64_t row = 0; row < count; ++row)
          (at[(rows[0] + row) * h.active_row] ? chosen_rows : skipped_rows)
              .push_back(step * count + row);
      }
      return chosen_rows.data();
    }
    std::vector<int64_t> chosen_rows, skipped_rows;

    template <int R, int M, int N>
    INLINE void multiply_tile(const Product& product, const F* weights, int64_t chunk,
                              int64_t first, const int64_t* chosen, int64_t count,
                              int64_t i) {
      const F* x[R];
      int64_t row[R], number[R];
      const Place& from = places[product.x.slot];
      const Slot& slot = g.slots[product.x.slot];
      int64_t width = units(product.width), left = unit(product.width, 0);
      for (int r = 0; r < R; ++r) {
        number[r] = chosen ? chosen[first + r] : first + r;
        int64_t step = product.ahead ? number[r] / count : 0;
        row[r] = rows[0] + number[r] - step * count;
        const F* base = (const F*)from.at;
        if (product.ahead)
          base += (time(i + step) - time(i)) * slot.time;
        x[r] = base + product.x.offset + row[r] * from.row;
      }
      Lanes sums[R][M * N];
      for (int v = 0; v < M * N; ++v) {
        int64_t vector = v % product.count;
        int64_t unit = (chunk + v / product.count) * L;
        int64_t lanes = product.width - unit;
        if (product.init.slot < 0) {
          for (int r = 0; r < R; ++r) sums[r][v] = Lanes{};
          continue;
        }
        Operand init = product.init;
        if (g.slots[init.slot].kind == Slot::kLocal) init.slot += vector;
        else init.offset += vector * product.init_vector;
        const Place& place = places[init.slot];
        const F* base = (const F*)place.at + (init.offset + unit & place.varies);
        for (int r = 0; r < R; ++r)
          sums[r][v] = load(base + (row[r] * place.row & place.varies), lanes);
      }
      if (weights) multiply<R, M, N>(sums, x, weights, product.K);
      for (int v = 0; v < M * N; ++v) {
        int64_t unit = (chunk + v / product.count) * L;
        F* to = memory.get() + local_at[product.y + v % product.count];
        for (int r = 0; r < R; ++r)
          store(to + number[r] * width + unit - left, sums[r][v], product.width - unit);
      }
    }

    void run_instructions(const Segment& segment) {
      int64_t begin = unit(segment.width, 0), end = unit(segment.width, 1);
      if (begin == end || segment.steps[0] == segment.steps[1]) return;
      int64_t most = g.header.whole_rows ? end - begin : std::min(end - begin, kTile);
      int64_t height = std::max<int64_t>(1, kTile / most);
      for (int64_t row = rows[0]; row < rows[1]; row += height)
        for (int64_t unit = begin; unit < end; unit += most) {
          Tile tile{std::min(height, rows[1] - row), std::min(most, end - unit)};
          for (int64_t n = segment.steps[0]; n < segment.steps[1]; ++n) {
            const Step& step = g.steps[n];
            auto find = [&](const Operand& operand, int64_t unit) {
              if (operand.slot >= 0 && g.slots[operand.slot].kind == Slot::kRegister)
                return Place{(char*)(registers + g.slots[operand.slot].index * register_size),
                             tile.units, -1};
              return at(operand, row, unit);
            };
            // These have one number for each row, which is the same for all units.
            Instruction<F> run = kInstructions<F>[step.operation];
            bool spreads = run == &spread_row<F, F> || run == &spread_row<F, uint8_t>;
            if (run == &store_row<F> && unit) continue;
            run(tile, find(step.y, unit), find(step.a, spreads ? 0 : unit),
                find(step.b, unit), find(step.c, unit));
          }
        }
    }

    void run(int64_t p) {
      start(p);
      pack(p);
      barrier(team.barrier, size, waits);
      for (int64_t i = 0; i < g.header.T; ++i) {
        for (int64_t n : moving) place(n, i, p);
        run_step(i, p);
      }
      copy_carries(p);
      barrier(team.barrier, size, waits);  // before the panels are packed for another member
    }

    void run_step(int64_t i, int64_t p) {
      const auto& h = g.header;
      if (i % ahead == 0)
        for (int64_t n = 0; n < h.products; ++n)
          if (g.products[n].ahead) run_product(n, i, p, std::min(ahead, h.T - i));
      for (int64_t s = 0; s < h.segments; ++s) {
        const Segment& segment = g.segments[s];
        if (segment.waits) barrier(team.group_barriers[group], slices, group_waits);
        for (int64_t n = segment.products[0]; n < segment.products[1]; ++n)
          if (!g.products[n].ahead) run_product(n, i, p, 1);
        run_instructions(segment);
      }
    }

    void copy_carries(int64_t p) {
      for (int64_t n = 0; n < g.header.carries; ++n)
        if (g.carries[n].slot >= 0) copy_carry(n, p);
    }

    void copy_carry(int64_t n, int64_t p) {
      const Carry& carry = g.carries[n];
      const F* from = this->carry(n, g.header.T - 1, p);
      F* to = (F*)loop.results[carry.result] + p * g.header.B * carry.width;
      int64_t begin = unit(carry.width, 0), size = unit(carry.width, 1) - begin;
      for (int64_t row = rows[0]; row < rows[1]; ++row)
        std::memcpy(to + row * carry.width + begin, from + row * carry.width + begin,
                    size * sizeof(F));
    }
  };

  void operator()(int thread, int threads) {
    int64_t number = std::min<int64_t>(g.header.P, threads);
    int64_t own = thread % number;
    int64_t size = (threads - own + number - 1) / number;
    Team& team = teams[own];
    Thread part(*this, team, thread / number, size);
    for (int64_t p = own; p < g.header.P; p += number) part.run(p);
  }
};

// Asks for huge pages for the memory of a large result. Memory of this size is new in each
// call, and with pages of 4 KiB their allocation takes longer than the writing.
void use_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1 << 21;
  uintptr_t begin = ((uintptr_t)data + kPage - 1) / kPage * kPage;
  uintptr_t end = ((uintptr_t)data + bytes) / kPage * kPage;
  if (end > begin) madvise((void*)begin, end - begin, MADV_HUGEPAGE);  // may be refused
#endif
}

template <class F>
ffi::Error run(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
               ffi::Span<const int64_t> program, ffi::Span<const double> constants) {
  std::vector<char*> arguments, results;
  for (size_t n = 0; n < args.size(); ++n) {
    auto buffer = args.get<ffi::AnyBuffer>(n);
    if (!buffer.has_value()) return buffer.error();
    arguments.push_back((char*)buffer->untyped_data());
  }
  for (size_t n = 0; n < rets.size(); ++n) {
    auto buffer = rets.get<ffi::AnyBuffer>(n);
    if (!buffer.has_value()) return buffer.error();
    results.push_back((char*)(*buffer)->untyped_data());
    use_huge_pages(results.back(), (*buffer)->size_bytes());
  }
  Loop<F> loop(program.begin(), arguments, results, constants.begin());
  int wanted = loop.wanted_threads();
  loop.prepare(std::min(wanted, kMaxThreads));
  for (int n = 0; n < std::min<int64_t>(loop.g.header.P, wanted); ++n)
    loop.teams[n].memory.reset(new F[loop.team_size]);
  run_crew(pool, wanted, [&](int thread, int threads) { loop(thread, threads); });
  return ffi::Error::Success();
}

// ---- sessions ----------------------------------------------------------------------

// A loop of one step that is run many times, by one thread, on the same memory: the
// weights are packed once, and no place changes.
struct Session {
  virtual ~Session() = default;
  virtual void step() = 0;
};

template <class F>
struct SessionOf : Session {
  std::vector<char*> arguments, results;
  Loop<F> loop;
  typename Loop<F>::Thread thread;

  SessionOf(const int64_t* program, const double* constants, std::vector<char*> given,
            std::vector<char*> computed)
      : arguments(std::move(given)),
        results(std::move(computed)),
        loop(program, arguments, results, constants),
        thread(loop, make_team(), 0, 1) {
    thread.start(0);
    thread.pack(0);
  }

  typename Loop<F>::Team& make_team() {
    loop.prepare(1);
    loop.teams[0].memory.reset(new F[loop.team_size]);
    return loop.teams[0];
  }

  void step() override {
    thread.run_step(0, 0);
    thread.copy_carries(0);
  }
};

template <class F>
void* open_session(const int64_t* program, const double* constants, char** arguments,
                   int64_t argument_count, char** results, int64_t result_count) try {
  return static_cast<Session*>(new SessionOf<F>(
      program, constants, {arguments, arguments + argument_count},
      {results, results + result_count}));
} catch (const std::bad_alloc&) {
  return nullptr;
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .RemainingArgs()
      .RemainingRets()
      .Attr<ffi::Span<const int64_t>>("program")
      .Attr<ffi::Span<const double>>("constants");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxlstm_loop_f32, run<float>, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxlstm_loop_f64, run<double>, Binding());

// The memory of the program, of the arguments and of the results belongs to the caller and
// stays where it is until the session is closed. Null if there is no memory.
extern "C" {
void* jaxlstm_open_f32(const int64_t* program, const double* constants, char** arguments,
                       int64_t argument_count, char** results, int64_t result_count) {
  return open_session<float>(program, constants, arguments, argument_count, results,
                             result_count);
}
void* jaxlstm_open_f64(const int64_t* program, const double* constants, char** arguments,
                       int64_t argument_count, char** results, int64_t result_count) {
  return open_session<double>(program, constants, arguments, argument_count, results,
                              result_count);
}
void jaxlstm_step(void* session) { static_cast<Session*>(session)->step(); }
void jaxlstm_close(void* session) { delete static_cast<Session*>(session); }
}
