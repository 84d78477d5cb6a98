// One kernel for every elementwise function: an interpreter of small programs, block by block in the L1 cache.
//
// A program is a list of instructions over slots. A slot is a block of an input or an output (in the arrays
// themselves, without a copy), a temporary block, or a scalar. Each instruction runs over a whole block, so that its
// loop is vectorised and what it costs to interpret it is spread over a thousand elements. The kernel knows nothing
// of optimizers; programs come from _program.py, which asks this library (gradtx_native_ops) what the instructions are.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"  // jaxlib's headers are not free of them
#include "xla/ffi/api/ffi.h"
#pragma GCC diagnostic pop

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// One clone of the interpreter for each generation of vector units, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define GRADTX_HAS_CLONES 1
#define GRADTX_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GRADTX_HAS_CLONES 0
#define GRADTX_CLONES
#endif
#define GRADTX_INLINE inline __attribute__((always_inline))

namespace {

namespace ffi = xla::ffi;

// ---- Numbers -------------------------------------------------------------------------------------------------------

template <class To, class From>
GRADTX_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

template <class T>
using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

GRADTX_INLINE float from_bf16(uint16_t x) { return bits<float>(uint32_t{x} << 16); }

// To nearest, ties to even; a NaN stays one.
GRADTX_INLINE uint16_t to_bf16(float x) {
  const uint32_t u = bits<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(x != x ? (u >> 16) | 0x40 : rounded);
}

GRADTX_INLINE float from_f16(uint16_t x) {
  const uint32_t sign = uint32_t{x & 0x8000u} << 16, rest = x & 0x7fffu;
  const uint32_t normal = (rest << 13) + ((127 - 15) << 23);
  const uint32_t special = (rest << 13) | 0x7f800000u;  // inf and NaN
  const uint32_t subnormal = bits<uint32_t>(static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f);
  return bits<float>(sign | (rest >= 0x7c00u ? special : rest < 0x400u ? subnormal : normal));
}

GRADTX_INLINE uint16_t to_f16(float x) {
  const uint32_t u = bits<uint32_t>(x), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
  const uint32_t normal = (rest - ((127 - 15) << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  // Adding 1/2 leaves the multiple of 2⁻²⁴ nearest to x in the last bits.
  const uint32_t subnormal = bits<uint32_t>(bits<float>(rest) + 0.5f) - 0x3f000000u;
  const uint32_t finite = rest < 0x38800000u ? subnormal : std::min(normal, uint32_t{0x7c00});
  return static_cast<uint16_t>(sign | (rest > 0x7f800000u ? 0x7e00u : finite));
}

// XLA's: a NaN in either operand is the result, and −0 < +0. Choices one after another, not nested: those become vectors.
template <class T>
GRADTX_INLINE T maximum(T a, T b) {
  const T not_less = a == b ? bits<T>(bits<Word<T>>(a) & bits<Word<T>>(b)) : b;
  const T greater = a > b ? a : not_less;
  return a != a ? a : greater;
}

template <class T>
GRADTX_INLINE T minimum(T a, T b) {
  const T not_greater = a == b ? bits<T>(bits<Word<T>>(a) | bits<Word<T>>(b)) : b;
  const T less = a < b ? a : not_greater;
  return a != a ? a : less;
}

template <class T>
GRADTX_INLINE T sign_of(T a) {
  return a > 0 ? T{1} : a < 0 ? T{-1} : a;
}

template <class T>
GRADTX_INLINE T divide_or_zero(T x, T y) {
  return y == 0 ? T{0} : x / y;
}

// ---- Instructions --------------------------------------------------------------------------------------------------

// Each: name, number of operands, the expression over operands a, b, c, e; then for which operands there is a variant
// that takes a scalar: the sums of 1 for a, 2 for b, 4 for c, 8 for e.
#define GRADTX_MATHS(X)                                                        \
  X(copy, 1, a, 0, 1)                                                          \
  X(neg, 1, -a, 0)                                                             \
  X(abs, 1, std::abs(a), 0)                                                    \
  X(sqrt, 1, std::sqrt(a), 0)                                                  \
  X(rsqrt, 1, 1 / std::sqrt(a), 0)                                             \
  X(sign, 1, sign_of(a), 0)                                                    \
  X(floor, 1, std::floor(a), 0)                                                \
  X(ceil, 1, std::ceil(a), 0)                                                  \
  X(round, 1, std::nearbyint(a), 0)                                            \
  X(add, 2, a + b, 0, 1)                                                       \
  X(sub, 2, a - b, 0, 1)                                                       \
  X(mul, 2, a * b, 0, 1)                                                       \
  X(div, 2, a / b, 0, 1)                                                    \
  X(max, 2, maximum(a, b), 0, 1)                                               \
  X(min, 2, minimum(a, b), 0, 1)                                               \
  X(muladd, 3, a * b + c, 0, 1, 4, 5)                                          \
  X(mulsub, 3, a * b - c, 0)                                                   \
  X(submul, 3, c - a * b, 0)                                                   \
  X(mulmuladd, 4, a * b + c * e, 0, 1, 5)                                      \
  X(mulsqadd, 4, a * b + c * (e * e), 0, 1, 4, 5)                              \
  X(sqrtadd, 2, std::sqrt(a) + b, 0, 2)                                        \
  X(muladdsqrtadd, 4, std::sqrt(a * b + c) + e, 13)                            \
  X(safediv, 2, divide_or_zero(a, b), 0)                                         \
  X(mulsafediv, 3, divide_or_zero(a * b, c), 0, 1)                             \
  X(muldiv, 3, a * b / c, 0, 1)
// From numbers to truth.
#define GRADTX_TESTS(X)                                                        \
  X(eq, 2, a == b, 0, 1)                                                       \
  X(ne, 2, a != b, 0, 1)                                                       \
  X(lt, 2, a < b, 0, 1, 2)                                                     \
  X(le, 2, a <= b, 0, 1, 2)                                                    \
  X(is_finite, 1, std::abs(a) <= std::numeric_limits<T>::max(), 0)
// From truth to truth, and the choice between numbers.
#define GRADTX_LOGIC(X)                                                        \
  X(logical_not, 1, a ^ 1, 0)                                                  \
  X(logical_and, 2, a & b, 0, 1)                                               \
  X(logical_or, 2, a | b, 0, 1)                                                \
  X(logical_xor, 2, a ^ b, 0, 1)                                               \
  X(logical_copy, 1, a, 0, 1)
// From one type to another: name, from, to, expression.
#define GRADTX_CONVERSIONS(X)                                                  \
  X(load_bf16, uint16_t, float, from_bf16(a))                                  \
  X(load_f16, uint16_t, float, from_f16(a))                                    \
  X(store_bf16, float, uint16_t, to_bf16(a))                                   \
  X(store_f16, float, uint16_t, to_f16(a))                                     \
  X(round_bf16, float, float, from_bf16(to_bf16(a)))                           \
  X(round_f16, float, float, from_f16(to_f16(a)))                              \
  X(copy_16, uint16_t, uint16_t, a)                                            \
  X(widen, float, double, static_cast<double>(a))                              \
  X(narrow, double, float, static_cast<float>(a))                              \
  X(bool_to_f32, uint8_t, float, static_cast<float>(a))                        \
  X(bool_to_f64, uint8_t, double, static_cast<double>(a))

#define GRADTX_ENUM(name, ...) name##_,
enum Op : int32_t {
  GRADTX_MATHS(GRADTX_ENUM) GRADTX_TESTS(GRADTX_ENUM) GRADTX_LOGIC(GRADTX_ENUM) select_,
  GRADTX_CONVERSIONS(GRADTX_ENUM) kOps
};

#define GRADTX_TEXT(name, arity, expression, ...) #name " " #arity " " #__VA_ARGS__ "\n"
#define GRADTX_TEXT_1(name, from, to, expression) #name " 1 0\n"
constexpr char kOpsText[] = GRADTX_MATHS(GRADTX_TEXT) GRADTX_TESTS(GRADTX_TEXT) GRADTX_LOGIC(GRADTX_TEXT)
    "select 3 0, 2, 4, 6\n" GRADTX_CONVERSIONS(GRADTX_TEXT_1);

struct Instruction {
  int32_t op;
  int32_t is_f64;   // whether the numbers are double
  int32_t scalars;  // which operands are scalars, as above
  int32_t to, a, b, c, e;  // slots
};
constexpr size_t kWords = sizeof(Instruction) / sizeof(int32_t);

// A scalar in each type that an instruction may want it in.
struct Scalar {
  double f64;
  float f32;
  uint8_t truth;
};
template <class T>
GRADTX_INLINE T get(const void* p) {
  const Scalar& s = *static_cast<const Scalar*>(p);
  if constexpr (std::is_same_v<T, double>) return s.f64;
  else if constexpr (std::is_same_v<T, float>) return s.f32;
  else return s.truth;
}

// An operand: a block, or a scalar that is read once before the loop.
template <class T, bool kScalar>
struct Operand {
  GRADTX_INLINE explicit Operand(const void* p) : x(static_cast<const T*>(p)) {}
  GRADTX_INLINE T operator[](int i) const { return x[i]; }
  const T* x;
};
template <class T>
struct Operand<T, true> {
  GRADTX_INLINE explicit Operand(const void* p) : x(get<T>(p)) {}
  GRADTX_INLINE T operator[](int) const { return x; }
  const T x;
};
#define GRADTX_FUNCTION(name, arity, expression, ...)                                                    \
  struct name##_f {                                                                                      \
    template <class T> \
    static GRADTX_INLINE auto of([[maybe_unused]] T a, [[maybe_unused]] T b, [[maybe_unused]] T c,        \
                                 [[maybe_unused]] T e) {                                                 \
      return expression;                                                                                 \
    }                                                                                                    \
  };
GRADTX_MATHS(GRADTX_FUNCTION)
GRADTX_TESTS(GRADTX_FUNCTION)
GRADTX_LOGIC(GRADTX_FUNCTION)

template <class F, class T, class To, int kArity, int kScalars>
GRADTX_INLINE void loop(void* const* slots, const Instruction& in, int n) {
  // The place written may be the place read, but then at the same index: no iteration depends on another.
  To* to = static_cast<To*>(slots[in.to]);
  const Operand<T, (kScalars & 1) != 0> a(slots[in.a]);
  const Operand<T, (kScalars & 2) != 0> b(slots[in.b]);
  const Operand<T, (kScalars & 4) != 0> c(slots[in.c]);
  const Operand<T, (kScalars & 8) != 0> e(slots[in.e]);
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    if constexpr (kArity == 1) to[i] = static_cast<To>(F::of(a[i], T{}, T{}, T{}));
    if constexpr (kArity == 2) to[i] = static_cast<To>(F::of(a[i], b[i], T{}, T{}));
    if constexpr (kArity == 3) to[i] = static_cast<To>(F::of(a[i], b[i], c[i], T{}));
    if constexpr (kArity == 4) to[i] = static_cast<To>(F::of(a[i], b[i], c[i], e[i]));
  }
}

template <class F, class T, class To, int kArity, int... kScalars>
GRADTX_INLINE void variants(void* const* slots, const Instruction& in, int n) {
  (void)((in.scalars == kScalars && (loop<F, T, To, kArity, kScalars>(slots, in, n), true)) || ...);
}

template <class T, int kScalars>
GRADTX_INLINE void choose(void* const* slots, const Instruction& in, int n) {
  T* to = static_cast<T*>(slots[in.to]);
  const uint8_t* mask = static_cast<const uint8_t*>(slots[in.a]);
  const Operand<T, (kScalars & 2) != 0> b(slots[in.b]);
  const Operand<T, (kScalars & 4) != 0> c(slots[in.c]);
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) to[i] = mask[i] ? b[i] : c[i];
}

template <class T>
GRADTX_INLINE void choices(void* const* slots, const Instruction& in, int n) {
  switch (in.scalars) {
    case 0: return choose<T, 0>(slots, in, n);
    case 2: return choose<T, 2>(slots, in, n);
    case 4: return choose<T, 4>(slots, in, n);
    case 6: return choose<T, 6>(slots, in, n);
  }
}

// What to bring into the cache while a block is computed: the same inputs, one block on.
struct Ahead {
  const char* data;
  int64_t bytes;
};

// Runs the program over one block of n elements.
GRADTX_CLONES void run_block(const Instruction* program, int64_t size, void* const* slots, int n, const Ahead* ahead,
                             int64_t inputs) {
  for (int64_t k = 0; k < size; ++k) {
    for (int64_t i = 0; i < inputs; ++i) {  // memory works while the arithmetic does, a share with each instruction
      const int64_t end = ahead[i].bytes * (k + 1) / size;
      for (int64_t at = (ahead[i].bytes * k / size + 63) & ~int64_t{63}; at < end; at += 64)
        __builtin_prefetch(ahead[i].data + at, 0, 2);  // into L2: L1 is full of this block
    }
    const Instruction& in = program[k];
    switch (in.op) {
#define GRADTX_MATHS_CASE(name, arity, expression, ...)                                   \
  case name##_:                                                                           \
    if (in.is_f64) variants<name##_f, double, double, arity, __VA_ARGS__>(slots, in, n);  \
    else variants<name##_f, float, float, arity, __VA_ARGS__>(slots, in, n);              \
    break;
#define GRADTX_TESTS_CASE(name, arity, expression, ...)                                   \
  case name##_:                                                                           \
    if (in.is_f64) variants<name##_f, double, uint8_t, arity, __VA_ARGS__>(slots, in, n); \
    else variants<name##_f, float, uint8_t, arity, __VA_ARGS__>(slots, in, n);            \
    break;
#define GRADTX_LOGIC_CASE(name, arity, expression, ...)                 \
  case name##_:                                                         \
    variants<name##_f, uint8_t, uint8_t, arity, __VA_ARGS__>(slots, in, n); \
    break;
#define GRADTX_CONVERSION_CASE(name, from, to_type, expression)  \
  case name##_: {                                                \
    to_type* to = static_cast<to_type*>(slots[in.to]);           \
    const from* x = static_cast<const from*>(slots[in.a]);       \
    _Pragma("GCC ivdep") for (int i = 0; i < n; ++i) {           \
      const from a = x[i];                                       \
      to[i] = expression;                                        \
    }                                                            \
    break;                                                       \
  }
      GRADTX_MATHS(GRADTX_MATHS_CASE)
      GRADTX_TESTS(GRADTX_TESTS_CASE)
      GRADTX_LOGIC(GRADTX_LOGIC_CASE)
      case select_:
        if (in.is_f64) choices<double>(slots, in, n);
        else choices<float>(slots, in, n);
        break;
      GRADTX_CONVERSIONS(GRADTX_CONVERSION_CASE)
    }
  }
}

// The sum of a block in double, in an order that depends on n alone: many sums side by side, which become vectors.
template <class T>
GRADTX_INLINE double sum(const T* x, int n) {
  constexpr int kSums = 32;
  double sums[kSums] = {};
  for (; n >= kSums; n -= kSums, x += kSums)
    for (int j = 0; j < kSums; ++j) sums[j] += static_cast<double>(x[j]);
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  for (int i = 0; i < n; ++i) sums[0] += static_cast<double>(x[i]);
  return sums[0];
}
GRADTX_CLONES double sum_f32(const void* x, int n) { return sum(static_cast<const float*>(x), n); }
GRADTX_CLONES double sum_f64(const void* x, int n) { return sum(static_cast<const double*>(x), n); }

// ---- Threads -------------------------------------------------------------------------------------------------------

// XLA computes with subnormal numbers flushed to zero; so does this, on every thread.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | (uint64_t{1} << 24)));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#else
  FlushSubnormals() {}
#endif
};

// f(0), ..., f(tasks − 1), on the pool's threads and this one. This thread takes tasks like any other and then waits
// only for those that others have begun, so a pool whose threads are all busy (or are this one) delays nothing.
template <class F>
void parallel(ffi::ThreadPool& pool, int64_t tasks, const F& f) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  const auto shared = std::make_shared<Shared>();
  const auto work = [shared, tasks, &f] {  // f is gone once all tasks are done, but then it is not called
    FlushSubnormals flush;
    for (int64_t task; (task = shared->next.fetch_add(1)) < tasks;) {
      f(task);
      if (shared->done.fetch_add(1) + 1 == tasks) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->all_done.notify_all();
      }
    }
  };
  const int64_t helpers = std::min(tasks, pool.num_threads()) - 1;
  for (int64_t i = 0; i < helpers; ++i) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  if (shared->done.load() < tasks) {
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->all_done.wait(lock, [&] { return shared->done.load() == tasks; });
  }
}

// ---- Calls ---------------------------------------------------------------------------------------------------------

constexpr int64_t kBlockBytes = 2048;  // of one temporary: a few of them, the arrays' blocks and the next fit into 32 KiB
constexpr int64_t kFewestBlocks = 64, kMostBlocks = 1024;  // of a task
constexpr int64_t kTasks = 64;                             // in between

struct Array {
  char* data;
  int64_t width;  // bytes of an element
};

// A call, ready to run: leaves of `inputs` + `outputs` arrays each, their blocks numbered through.
struct Call {
  const Instruction* program;
  int64_t program_size;
  int64_t inputs, arrays;  // of a leaf; the outputs are arrays too
  int64_t temporaries;
  int64_t block;                   // elements
  int64_t blocks_per_task;         // by the number of blocks alone, since sums depend on it
  std::vector<Array> leaf_arrays;  // of all leaves
  std::vector<int64_t> sizes;      // elements of each leaf
  std::vector<int64_t> first;      // number of each leaf's first block, and the number of all blocks
  std::vector<Scalar> scalars;     // of all leaves, or once if they are the same for all
  int64_t scalars_of_leaf;
  bool same_scalars;

  int64_t blocks() const { return first.back(); }
  int64_t tasks() const { return (blocks() + blocks_per_task - 1) / blocks_per_task; }

  // Runs the blocks of a task; `after` sees the slots and the size of each.
  template <class F>
  void run(int64_t task, const F& after) const {
    thread_local std::vector<char> memory;
    memory.resize(std::max<size_t>(memory.size(), temporaries * kBlockBytes + 64));
    char* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
    std::vector<Ahead> ahead(inputs);
    std::vector<void*> slots(arrays + temporaries + scalars_of_leaf);
    for (int64_t i = 0; i < temporaries; ++i) slots[arrays + i] = aligned + i * kBlockBytes;

    const int64_t begin = task * blocks_per_task, end = std::min(begin + blocks_per_task, blocks());
    int64_t leaf = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (int64_t number = begin; number < end; ++leaf) {
      const Scalar* own = scalars.data() + (same_scalars ? 0 : leaf * scalars_of_leaf);
      for (int64_t i = 0; i < scalars_of_leaf; ++i) slots[arrays + temporaries + i] = const_cast<Scalar*>(own + i);
      for (; number < std::min(end, first[leaf + 1]); ++number) {
        const int64_t offset = (number - first[leaf]) * block;
        const int n = static_cast<int>(std::min(block, sizes[leaf] - offset));
        for (int64_t i = 0; i < arrays; ++i) {
          const Array& array = leaf_arrays[leaf * arrays + i];
          slots[i] = array.data + offset * array.width;
        }
        int64_t next_leaf = leaf;  // of the next block of this task
        while (first[next_leaf + 1] <= number + 1 && number + 1 < end) ++next_leaf;
        const int64_t next = (number + 1 - first[next_leaf]) * block;
        const int64_t rest = number + 1 < end ? std::min(block, sizes[next_leaf] - next) : 0;
        for (int64_t i = 0; i < inputs; ++i) {
          const Array& array = leaf_arrays[next_leaf * arrays + i];
          ahead[i] = {array.data + next * array.width, rest * array.width};
        }
        run_block(program, program_size, slots.data(), n, ahead.data(), inputs);
        after(slots.data(), n);
      }
    }
  }
};

// Operands are the coefficients, the arrays of each leaf, and flat arrays, in which the leaves' arrays at the positions
// `flat_inputs` stand one after another; results are the outputs of each leaf, then flat ones likewise.
ffi::Error prepare(Call& call, ffi::RemainingArgs& args, ffi::RemainingRets& rets, int64_t inputs,
                   ffi::Span<const int64_t> flat_inputs, int64_t outputs, ffi::Span<const int64_t> flat_outputs,
                   ffi::Span<const int32_t> code, ffi::Span<const double> constants, int64_t temporaries, bool wide) {
  call.program = reinterpret_cast<const Instruction*>(code.begin());
  call.program_size = static_cast<int64_t>(code.size() / kWords);
  call.inputs = inputs;
  call.arrays = inputs + outputs;
  call.temporaries = temporaries;
  call.block = kBlockBytes / (wide ? 8 : 4);

  const auto packed = args.get<ffi::AnyBuffer>(0);
  const int64_t of_leaf = inputs - static_cast<int64_t>(flat_inputs.size());
  const int64_t of_leaves = static_cast<int64_t>(args.size()) - 1 - static_cast<int64_t>(flat_inputs.size());
  if (!packed.has_value() || of_leaf < 1 || of_leaves % of_leaf != 0)
    return ffi::Error::InvalidArgument("gradtx: the operands are not coefficients and whole leaves");
  const int64_t leaves = of_leaves / of_leaf;
  const int64_t coefficients = packed->dimensions()[1];
  call.same_scalars = packed->dimensions()[0] == 1;
  call.scalars_of_leaf = coefficients + constants.size();

  const int64_t slots = call.arrays + temporaries + call.scalars_of_leaf;
  for (int64_t i = 0; i < call.program_size; ++i) {
    const Instruction& in = call.program[i];
    if (in.op < 0 || in.op >= kOps || std::min({in.to, in.a, in.b, in.c, in.e}) < 0 ||
        std::max({in.to, in.a, in.b, in.c, in.e}) >= std::max<int64_t>(slots, 1))
      return ffi::Error::InvalidArgument("gradtx: not a program");
  }

  const auto scalar = [](double x) { return Scalar{x, static_cast<float>(x), x != 0}; };
  for (int64_t row = 0; row < (call.same_scalars ? 1 : leaves); ++row) {
    for (int64_t i = 0; i < coefficients; ++i) {
      const int64_t at = row * coefficients + i;
      call.scalars.push_back(scalar(packed->element_type() == ffi::F64
                                        ? static_cast<const double*>(packed->untyped_data())[at]
                                        : static_cast<const float*>(packed->untyped_data())[at]));
    }
    for (const double x : constants) call.scalars.push_back(scalar(x));
  }

  const auto array = [](const ffi::AnyBuffer& buffer) {
    return Array{static_cast<char*>(buffer.untyped_data()),
                 static_cast<int64_t>(ffi::ByteWidth(buffer.element_type()))};
  };
  std::vector<Array> flat(call.arrays, Array{nullptr, 0});  // by position, of width 0 where there is none; where the next leaf begins
  for (size_t i = 0; i < flat_inputs.size(); ++i)
    flat[flat_inputs[i]] = array(*args.get<ffi::AnyBuffer>(1 + of_leaves + i));
  const int64_t results = leaves * (outputs - static_cast<int64_t>(flat_outputs.size()));
  for (size_t i = 0; i < flat_outputs.size(); ++i)
    flat[inputs + flat_outputs[i]] = array(**rets.get<ffi::AnyBuffer>(results + i));

  call.first.push_back(0);
  call.leaf_arrays.reserve(leaves * call.arrays);
  int64_t operand = 1, result = 0;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    const int64_t size = static_cast<int64_t>(args.get<ffi::AnyBuffer>(operand)->element_count());
    for (int64_t i = 0; i < call.arrays; ++i) {
      if (flat[i].width != 0) {
        call.leaf_arrays.push_back(flat[i]);
        flat[i].data += size * flat[i].width;
      } else if (i < inputs) {
        call.leaf_arrays.push_back(array(*args.get<ffi::AnyBuffer>(operand++)));
      } else {
        call.leaf_arrays.push_back(array(**rets.get<ffi::AnyBuffer>(result++)));
      }
    }
    call.sizes.push_back(size);
    call.first.push_back(call.first.back() + (size + call.block - 1) / call.block);
  }
  call.blocks_per_task = std::clamp(call.blocks() / kTasks, kFewestBlocks, kMostBlocks);
  return ffi::Error::Success();
}

ffi::Error map_leaves(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t inputs,
                      ffi::Span<const int64_t> flat_inputs, int64_t outputs, ffi::Span<const int64_t> flat_outputs,
                      ffi::Span<const int32_t> code, ffi::Span<const double> constants, int64_t temporaries,
                      bool wide) {
  Call call;
  ffi::Error error =
      prepare(call, args, rets, inputs, flat_inputs, outputs, flat_outputs, code, constants, temporaries, wide);
  if (error.failure()) return error;
  parallel(pool, call.tasks(), [&call](int64_t task) { call.run(task, [](void* const*, int) {}); });
  return error;
}

// The program leaves what is to be summed in slot `summed`.
ffi::Error sum_leaves(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t inputs,
                      ffi::Span<const int64_t> flat_inputs, ffi::Span<const int32_t> code,
                      ffi::Span<const double> constants, int64_t temporaries, bool wide, int64_t summed) {
  Call call;
  ffi::Error error = prepare(call, args, rets, inputs, flat_inputs, 0, {}, code, constants, temporaries, wide);
  if (error.failure()) return error;
  auto result = *rets.get<ffi::AnyBuffer>(0);
  const bool is_f64 = result->element_type() == ffi::F64;
  std::vector<double> sums(call.tasks());
  parallel(pool, call.tasks(), [&](int64_t task) {
    double sum = 0;
    call.run(task, [&](void* const* slots, int n) {
      sum += is_f64 ? sum_f64(slots[summed], n) : sum_f32(slots[summed], n);
    });
    sums[task] = sum;
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  if (is_f64) *static_cast<double*>(result->untyped_data()) = total;
  else *static_cast<float*>(result->untyped_data()) = static_cast<float>(total);
  return error;
}

}  // namespace

#define GRADTX_EXPORT __attribute__((visibility("default")))
extern "C" GRADTX_EXPORT XLA_FFI_Error* gradtx_native_map(XLA_FFI_CallFrame*);
extern "C" GRADTX_EXPORT XLA_FFI_Error* gradtx_native_sum(XLA_FFI_CallFrame*);

// The instructions in the order of their numbers: a line each of name, number of operands, scalar variants.
extern "C" GRADTX_EXPORT const char* gradtx_native_ops() { return kOpsText; }

// The version of XLA's interface that this was compiled for.
extern "C" GRADTX_EXPORT int32_t gradtx_native_api_major() { return XLA_FFI_API_MAJOR; }
extern "C" GRADTX_EXPORT int32_t gradtx_native_api_minor() { return XLA_FFI_API_MINOR; }

// Which clone of the interpreter this processor runs.
extern "C" GRADTX_EXPORT const char* gradtx_native_target() {
#if GRADTX_HAS_CLONES
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "the baseline of its architecture";
}

#define GRADTX_CALL           \
  ffi::Ffi::Bind()            \
      .Ctx<ffi::ThreadPool>() \
      .RemainingArgs()        \
      .RemainingRets()        \
      .Attr<int64_t>("inputs") \
      .Attr<ffi::Span<const int64_t>>("flat_inputs")
XLA_FFI_DEFINE_HANDLER_SYMBOL(gradtx_native_map, map_leaves,
                              GRADTX_CALL.Attr<int64_t>("outputs")
                                  .Attr<ffi::Span<const int64_t>>("flat_outputs")
                                  .Attr<ffi::Span<const int32_t>>("code")
                                  .Attr<ffi::Span<const double>>("constants")
                                  .Attr<int64_t>("temporaries")
                                  .Attr<bool>("wide"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(gradtx_native_sum, sum_leaves,
                              GRADTX_CALL.Attr<ffi::Span<const int32_t>>("code")
                                  .Attr<ffi::Span<const double>>("constants")
                                  .Attr<int64_t>("temporaries")
                                  .Attr<bool>("wide")
                                  .Attr<int64_t>("summed"));
