// One kernel for every elementwise function: an interpreter of small programs, block by block in the L1 cache.
//
// A program is a list of instructions over slots. A slot is a block of an input or an output (in the arrays
// themselves, without a copy), a temporary block, or a scalar. Each instruction runs over a whole block, so that its
// loop is vectorised and what it costs to interpret it is spread over a thousand elements. The kernel knows nothing
// of optimizers; programs come from _program.py, which asks this library (gradtx_native_ops) what the instructions are.
//
// A program may be anyone's: before anything runs, each call is checked against the arrays that it is given.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"  // jaxlib's headers are not free of them
#include "xla/ffi/api/ffi.h"
#pragma GCC diagnostic pop

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

// One clone of the interpreter for each generation of vector units, chosen when the library is loaded.
// Not under a sanitizer, which the choice at that time would come before.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define GRADTX_HAS_CLONES 1
#define GRADTX_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GRADTX_HAS_CLONES 0
#define GRADTX_CLONES
#endif
#define GRADTX_INLINE inline __attribute__((always_inline))

namespace {

namespace ffi = xla::ffi;

// Changes with the meaning of programs and calls; _library.py writes the same.
constexpr int32_t kFormat = 9;

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

// Random bits: a hash of the place of an element in its leaf and a seed, as gradtx/_core/rounding.py has it.
GRADTX_INLINE uint32_t noise(uint32_t place, uint32_t seed) {
  uint32_t x = place * 0x9e3779b9u;
  x = (x ^ (x >> 15)) + seed;
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

// Codes of 8 bits for kBlocked elements in a row, and one scale, as gradtx/_core/codecs.py has them: of a share r of the
// scale its root, for numbers of either sign, or its fourth root.
constexpr int kBlocked = 256;
template <class Code>
constexpr bool kIsSigned = std::is_same_v<Code, int8_t>;

template <class Code>
GRADTX_INLINE float share_of(int code) {
  const float root = static_cast<float>(code) / (kIsSigned<Code> ? 127.0f : 255.0f);
  return kIsSigned<Code> ? root * std::abs(root) : (root * root) * (root * root);
}

template <class Code>
GRADTX_INLINE int32_t code_of(float x, float scale, uint32_t random) {
  constexpr float kClose = 5e-5f, kMost = kIsSigned<Code> ? 126.0f : 254.0f;
  const float of_scale = x / scale, share = std::abs(of_scale);
  const float root = std::sqrt(share);
  const float place = kIsSigned<Code> ? 127.0f * root : 255.0f * std::sqrt(root);
  const float lower = std::floor(place > 0 ? place < kMost ? place : kMost : 0.0f);
  const int code = static_cast<int>(lower);
  float part = place - lower;
  if constexpr (kIsSigned<Code>) part = (127.0f * 127.0f * share - lower * lower) / (2 * lower + 1);  // between squares
  part = part < kClose ? 0.0f : part > 1 - kClose ? 1.0f : part;
  const int next = code + (static_cast<float>(random >> 8) * 0x1p-24f < part ? 1 : 0);
  if constexpr (kIsSigned<Code>) return of_scale < 0 ? -next : next;
  else return x > 0 ? std::max(next, 1) : next;
}

// The largest modulus, or NaN if one is not finite.
GRADTX_INLINE float scale_of(const float* x, int n) {
  uint32_t most = 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t u = bits<uint32_t>(x[i]) & 0x7fffffffu;
    most = u > most ? u : most;
  }
  return most < 0x7f800000u ? bits<float>(most) + 0.0f : std::numeric_limits<float>::quiet_NaN();
}

// A seed that came as a number; 0 for what is none.
GRADTX_INLINE uint32_t whole(float x) { return x >= 0 && x < 0x1p32f ? static_cast<uint32_t>(x) : 0; }

// One of the two numbers next to x that end with so many zero bits, so that the mean is x.
template <int kDropped>
GRADTX_INLINE float dithered(float x, uint32_t random) {
  const float cut = bits<float>((bits<uint32_t>(x) + (random >> (32 - kDropped))) & (~0u << kDropped));
  return std::abs(x) <= std::numeric_limits<float>::max() ? cut : x;
}

// A number as one of bfloat16, next to it, and as what its bits are more or less than those, as
// gradtx/_core/weights.py has them.
GRADTX_INLINE uint32_t bits_or_nan(float x) { return x != x ? 0x7fc00000u : bits<uint32_t>(x); }
GRADTX_INLINE uint32_t upper_half(float x) { return (bits_or_nan(x) + 0x8000u) >> 16; }
GRADTX_INLINE int32_t lower_half(float x) { return static_cast<int32_t>(bits_or_nan(x) - (upper_half(x) << 16)); }
GRADTX_INLINE float whole_of(uint16_t upper, int32_t lower) {
  return bits<float>((uint32_t{upper} << 16) + static_cast<uint32_t>(lower));
}

// A subnormal number chosen by a comparison is flushed to zero, as every result of arithmetic is: by adding a zero of
// its own sign, which leaves all other numbers as they are.
template <class T>
GRADTX_INLINE T flushed(T x) {
  return x + bits<T>(bits<Word<T>>(x) & bits<Word<T>>(T{-0.0}));
}

// XLA's: a NaN in either operand is the result, and −0 < +0. Choices one after another, not nested: those become
// vectors.
template <class T>
GRADTX_INLINE T maximum(T a, T b) {
  const T not_less = a == b ? bits<T>(bits<Word<T>>(a) & bits<Word<T>>(b)) : b;
  const T greater = a > b ? a : not_less;
  return flushed(a != a ? a : greater);
}

template <class T>
GRADTX_INLINE T minimum(T a, T b) {
  const T not_greater = a == b ? bits<T>(bits<Word<T>>(a) | bits<Word<T>>(b)) : b;
  const T less = a < b ? a : not_greater;
  return flushed(a != a ? a : less);
}

template <class T>
GRADTX_INLINE T sign_of(T a) {
  return a > 0 ? T{1} : a < 0 ? T{-1} : flushed(a);
}

template <class T>
GRADTX_INLINE T divide_or_zero(T x, T y) {
  return y == 0 ? T{0} : x / y;
}

// ---- Instructions --------------------------------------------------------------------------------------------------

// clang-format off
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
  X(div, 2, a / b, 0, 1)                                                       \
  X(max, 2, maximum(a, b), 0, 1)                                               \
  X(min, 2, minimum(a, b), 0, 1)                                               \
  X(lesser, 2, flushed(a < b ? a : b), 0, 1, 2)                                \
  X(greater, 2, flushed(a > b ? a : b), 0, 1, 2)                               \
  X(muladd, 3, a * b + c, 0, 1, 4, 5)                                          \
  X(mulsub, 3, a * b - c, 0)                                                   \
  X(submul, 3, c - a * b, 0)                                                   \
  X(mulmuladd, 4, a * b + c * e, 0, 1, 5)                                      \
  X(mulsqadd, 4, a * b + c * (e * e), 0, 1, 4, 5)                              \
  X(sqrtadd, 2, std::sqrt(a) + b, 0, 2)                                        \
  X(muladdsqrtadd, 4, std::sqrt(a * b + c) + e, 13)                            \
  X(safediv, 2, divide_or_zero(a, b), 0)                                       \
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
// From numbers to one number for each leaf, which has a place of its own, no slot: what is added up over the elements
// in double, or, for `largest`, what no element exceeds. Of `norm` it is the root that is taken at the end. `nought` is
// the sum of 0·a, which is NaN if an element is not finite: as what no element exceeds, times 0.
#define GRADTX_REDUCTIONS(X)                                                   \
  X(sum, 1, a, 0)                                                              \
  X(sumprod, 2, a * b, 0)                                                      \
  X(norm, 1, static_cast<double>(a) * static_cast<double>(a), 0)               \
  X(nought, 1, bits<Word<T>>(a) & (~Word<T>{0} >> 1), 0)                       \
  X(largest, 1, bits<Word<T>>(a) & (~Word<T>{0} >> 1), 0)
// From numbers to numbers, by random bits that follow from the place of an element in its leaf and from a seed, a
// scalar: name, expression over the number a, its place i and the seed.
#define GRADTX_ROUNDINGS(X)                                                    \
  X(dither_bf16, dithered<16>(a, noise(i, seed)))                              \
  X(dither_f24, dithered<8>(a, noise(i, seed)))
// From codes and scales to numbers, and back: name, type of codes. The scales of a block are in a slot of their own.
#define GRADTX_DECODERS(X) X(decode_i8, kI8) X(decode_u8, kU8)
#define GRADTX_ENCODERS(X) X(encode_i8, kI8) X(encode_u8, kU8)
// From a number of bfloat16 and what there is beside it to one of float32: name, type of what is beside it, expression.
#define GRADTX_JOINS(X) X(join_i16, kI16, whole_of(a, b)) X(join_i8, kI8, whole_of(a, b * 256))
// From one type to another: name, from, to, expression.
#define GRADTX_CONVERSIONS(X)                                                  \
  X(load_bf16, kBf16, kF32, from_bf16(a))                                      \
  X(load_f16, kF16, kF32, from_f16(a))                                         \
  X(store_bf16, kF32, kBf16, to_bf16(a))                                       \
  X(store_f16, kF32, kF16, to_f16(a))                                          \
  X(round_bf16, kF32, kF32, from_bf16(to_bf16(a)))                             \
  X(round_f16, kF32, kF32, from_f16(to_f16(a)))                                \
  X(upper, kF32, kBf16, upper_half(a))                                         \
  X(lower_i16, kF32, kI16, lower_half(a))                                      \
  X(lower_i8, kF32, kI8, lower_half(a) >> 8)                                   \
  X(copy_bf16, kBf16, kBf16, a)                                                \
  X(copy_f16, kF16, kF16, a)                                                   \
  X(widen, kF32, kF64, static_cast<double>(a))                                 \
  X(narrow, kF64, kF32, static_cast<float>(a))                                 \
  X(bool_to_f32, kTruth, kF32, static_cast<float>(a))                          \
  X(bool_to_f64, kTruth, kF64, static_cast<double>(a))
// clang-format on

#define GRADTX_ENUM(name, ...) name##_,
enum Op : int32_t {
  GRADTX_MATHS(GRADTX_ENUM) GRADTX_TESTS(GRADTX_ENUM) GRADTX_LOGIC(GRADTX_ENUM) GRADTX_REDUCTIONS(GRADTX_ENUM) select_,
  GRADTX_ROUNDINGS(GRADTX_ENUM) GRADTX_DECODERS(GRADTX_ENUM) scales_, GRADTX_ENCODERS(GRADTX_ENUM)
  GRADTX_JOINS(GRADTX_ENUM) GRADTX_CONVERSIONS(GRADTX_ENUM) kOps
};

#define GRADTX_TEXT(name, arity, expression, ...) #name " " #arity " " #__VA_ARGS__ "\n"
#define GRADTX_TEXT_1(name, from, to, expression) #name " 1 0\n"
#define GRADTX_TEXT_2(name, expression) #name " 2 2\n"
#define GRADTX_TEXT_DECODER(name, codes) #name " 2 0\n"
#define GRADTX_TEXT_ENCODER(name, codes) #name " 3 4\n"
#define GRADTX_TEXT_JOIN(name, codes, expression) #name " 2 0\n"
constexpr char kOpsText[] = GRADTX_MATHS(GRADTX_TEXT) GRADTX_TESTS(GRADTX_TEXT) GRADTX_LOGIC(GRADTX_TEXT)
    GRADTX_REDUCTIONS(GRADTX_TEXT) "select 3 0, 2, 4, 6\n" GRADTX_ROUNDINGS(GRADTX_TEXT_2)
        GRADTX_DECODERS(GRADTX_TEXT_DECODER) "scales 1 0\n" GRADTX_ENCODERS(GRADTX_TEXT_ENCODER)
            GRADTX_JOINS(GRADTX_TEXT_JOIN) GRADTX_CONVERSIONS(GRADTX_TEXT_1);

// Of a block's elements. kNumber stands for the one of the two that an instruction says, kReduced for no block at all.
// kScale is one float for each kBlocked elements.
enum Type : uint8_t { kNothing, kTruth, kI8, kU8, kI16, kBf16, kF16, kF32, kF64, kScale, kNumber, kReduced };
// clang-format off
template <Type>
struct Storage;
template <> struct Storage<kTruth> { using T = uint8_t; };
template <> struct Storage<kI8> { using T = int8_t; };
template <> struct Storage<kU8> { using T = uint8_t; };
template <> struct Storage<kI16> { using T = int16_t; };
template <> struct Storage<kBf16> { using T = uint16_t; };
template <> struct Storage<kF16> { using T = uint16_t; };
template <> struct Storage<kF32> { using T = float; };
template <> struct Storage<kF64> { using T = double; };
// clang-format on
constexpr int64_t width_of(Type type) {
  switch (type) {
    case kF64: return 8;
    case kF32:
    case kScale: return 4;
    case kI16:
    case kBf16:
    case kF16: return 2;
    case kTruth:
    case kI8:
    case kU8: return 1;
    default: return 0;
  }
}

// What an instruction takes, in each operand, what it makes, and for which sets of scalars (bits) there is a variant.
struct Signature {
  int arity;
  std::array<Type, 4> from;
  Type to;
  uint32_t variants;
};
template <class... Int>
constexpr uint32_t set_of(Int... members) {
  return ((1u << members) | ...);
}
#define GRADTX_SIGNATURE(arity, from, to, ...) {arity, {from, from, from, from}, to, set_of(__VA_ARGS__)},
#define GRADTX_MATHS_SIGNATURE(name, arity, expression, ...) GRADTX_SIGNATURE(arity, kNumber, kNumber, __VA_ARGS__)
#define GRADTX_TESTS_SIGNATURE(name, arity, expression, ...) GRADTX_SIGNATURE(arity, kNumber, kTruth, __VA_ARGS__)
#define GRADTX_LOGIC_SIGNATURE(name, arity, expression, ...) GRADTX_SIGNATURE(arity, kTruth, kTruth, __VA_ARGS__)
#define GRADTX_REDUCTIONS_SIGNATURE(name, arity, expression, ...) \
  GRADTX_SIGNATURE(arity, kNumber, kReduced, __VA_ARGS__)
#define GRADTX_ROUNDING_SIGNATURE(name, expression) GRADTX_SIGNATURE(2, kF32, kF32, 2)
#define GRADTX_DECODER_SIGNATURE(name, codes) {2, {codes, kScale, kNothing, kNothing}, kF32, set_of(0)},
#define GRADTX_ENCODER_SIGNATURE(name, codes) {3, {kF32, kScale, kF32, kNothing}, codes, set_of(4)},
#define GRADTX_JOIN_SIGNATURE(name, codes, expression) {2, {kBf16, codes, kNothing, kNothing}, kF32, set_of(0)},
#define GRADTX_CONVERSION_SIGNATURE(name, from, to, expression) GRADTX_SIGNATURE(1, from, to, 0)
constexpr Signature kSignatures[] = {GRADTX_MATHS(GRADTX_MATHS_SIGNATURE) GRADTX_TESTS(GRADTX_TESTS_SIGNATURE)
                                         GRADTX_LOGIC(GRADTX_LOGIC_SIGNATURE)
                                             GRADTX_REDUCTIONS(GRADTX_REDUCTIONS_SIGNATURE){
                                                 3, {kTruth, kNumber, kNumber, kNumber}, kNumber, set_of(0, 2, 4, 6)},
                                     GRADTX_ROUNDINGS(GRADTX_ROUNDING_SIGNATURE)
                                     GRADTX_DECODERS(GRADTX_DECODER_SIGNATURE)
                                     GRADTX_SIGNATURE(1, kF32, kScale, 0)
                                     GRADTX_ENCODERS(GRADTX_ENCODER_SIGNATURE)
                                     GRADTX_JOINS(GRADTX_JOIN_SIGNATURE)
                                     GRADTX_CONVERSIONS(GRADTX_CONVERSION_SIGNATURE)};
static_assert(sizeof kSignatures / sizeof *kSignatures == kOps);

struct Instruction {
  int32_t op;
  int32_t is_f64;          // whether the numbers are double
  int32_t scalars;         // which operands are scalars, as above
  int32_t to, a, b, c, e;  // slots; of a reduction `to` is its number
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
#define GRADTX_FUNCTION(name, arity, expression, ...)                                              \
  struct name##_f {                                                                                \
    template <class T>                                                                             \
    static GRADTX_INLINE auto of([[maybe_unused]] T a, [[maybe_unused]] T b, [[maybe_unused]] T c, \
                                 [[maybe_unused]] T e) {                                           \
      return expression;                                                                           \
    }                                                                                              \
  };
GRADTX_MATHS(GRADTX_FUNCTION)
GRADTX_TESTS(GRADTX_FUNCTION)
GRADTX_LOGIC(GRADTX_FUNCTION)
GRADTX_REDUCTIONS(GRADTX_FUNCTION)

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

template <class Code>
GRADTX_INLINE void decode(void* const* slots, const Instruction& in, int n) {
  auto* to = static_cast<float*>(slots[in.to]);
  const Code* codes = static_cast<const Code*>(slots[in.a]);
  const float* scales = static_cast<const float*>(slots[in.b]);
  for (int first = 0; first < n; first += kBlocked) {
    const float scale = scales[first / kBlocked];
    const int end = std::min(n, first + kBlocked);
#pragma GCC ivdep
    for (int k = first; k < end; ++k) to[k] = share_of<Code>(codes[k]) * scale;
  }
}

template <class Code>
GRADTX_INLINE void encode(void* const* slots, const Instruction& in, int n, uint32_t place) {
  auto* codes = static_cast<Code*>(slots[in.to]);
  const float* x = static_cast<const float*>(slots[in.a]);
  const float* scales = static_cast<const float*>(slots[in.b]);
  const uint32_t seed = whole(get<float>(slots[in.c]));
  for (int first = 0; first < n; first += kBlocked) {
    const float all = scales[first / kBlocked];
    const float scale = all == 0 ? std::numeric_limits<float>::infinity() : all;  // every share of 0 is 0
    const int count = std::min(n - first, kBlocked);
    const float* const numbers = x + first;  // with the places apart, so that vectors are loaded and not gathered
    const uint32_t begin = place + static_cast<uint32_t>(first);
    int32_t wide[kBlocked];  // narrowed in a loop of its own: one over elements of two sizes becomes no vectors
    for (int k = 0; k < count; ++k)
      wide[k] = code_of<Code>(numbers[k], scale, noise(begin + static_cast<uint32_t>(k), seed));
    for (int k = 0; k < count; ++k) codes[first + k] = static_cast<Code>(wide[k]);
  }
}

struct Add {
  template <class T>
  using Lane = double;
  template <class T>
  static GRADTX_INLINE T of(T x, T y) {
    return x + y;
  }
  template <class T>
  static GRADTX_INLINE double number(double x) {
    return x;
  }
};
struct Largest {  // of bits without a sign, as integers: a NaN is above all numbers
  template <class T>
  using Lane = Word<T>;
  template <class T>
  static GRADTX_INLINE T of(T x, T y) {
    return x > y ? x : y;
  }
  template <class T>
  static GRADTX_INLINE double number(Word<T> x) {
    return flushed(bits<T>(x));
  }
};
struct Nought : Largest {
  template <class T>
  static GRADTX_INLINE double number(Word<T> x) {
    return 0 * bits<T>(x);
  }
};
template <Op op>
using Joined = std::conditional_t<op == largest_, Largest, std::conditional_t<op == nought_, Nought, Add>>;

// Unrolled, so that lanes stay in registers.
template <class Join, int kHalf, class Lane>
GRADTX_INLINE void fold(Lane* lanes) {
  for (int j = 0; j < kHalf; ++j) lanes[j] = Join::of(lanes[j], lanes[j + kHalf]);
  if constexpr (kHalf > 1) fold<Join, kHalf / 2>(lanes);
}

// A block as one number, in an order that depends on n alone: many side by side, which become vectors.
template <class F, class T, int kArity, class Join>
GRADTX_INLINE double reduced(void* const* slots, const Instruction& in, int n) {
  using Lane = typename Join::template Lane<T>;
  constexpr int kLanes = 32;
  const T* a = static_cast<const T*>(slots[in.a]);
  const T* b = static_cast<const T*>(slots[kArity == 1 ? in.a : in.b]);
  Lane lanes[kLanes] = {};
  for (; n >= kLanes; n -= kLanes, a += kLanes, b += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] = Join::of(lanes[j], static_cast<Lane>(F::of(a[j], b[j], T{}, T{})));
  fold<Join, kLanes / 2>(lanes);
  for (int i = 0; i < n; ++i) lanes[0] = Join::of(lanes[0], static_cast<Lane>(F::of(a[i], b[i], T{}, T{})));
  return Join::template number<T>(lanes[0]);
}

// Each is a function of its own: in a large one the compiler makes no vectors of these loops.
#define GRADTX_REDUCTIONS_BLOCK(name, arity, expression, ...)                              \
  GRADTX_CLONES double name##_of_block(void* const* slots, const Instruction& in, int n) { \
    return in.is_f64 ? reduced<name##_f, double, arity, Joined<name##_>>(slots, in, n)     \
                     : reduced<name##_f, float, arity, Joined<name##_>>(slots, in, n);     \
  }
GRADTX_REDUCTIONS(GRADTX_REDUCTIONS_BLOCK)

#define GRADTX_DECODER_BLOCK(name, type)                                             \
  GRADTX_CLONES void name##_block(void* const* slots, const Instruction& in, int n) { \
    decode<Storage<type>::T>(slots, in, n);                                           \
  }
GRADTX_DECODERS(GRADTX_DECODER_BLOCK)
#define GRADTX_ENCODER_BLOCK(name, type)                                                             \
  GRADTX_CLONES void name##_block(void* const* slots, const Instruction& in, int n, uint32_t place) { \
    encode<Storage<type>::T>(slots, in, n, place);                                                    \
  }
GRADTX_ENCODERS(GRADTX_ENCODER_BLOCK)
GRADTX_CLONES void scales_block(void* const* slots, const Instruction& in, int n) {
  auto* to = static_cast<float*>(slots[in.to]);
  const float* x = static_cast<const float*>(slots[in.a]);
  for (int first = 0; first < n; first += kBlocked)
    to[first / kBlocked] = scale_of(x + first, std::min(n - first, kBlocked));
}

// The numbers of two blocks as one.
GRADTX_INLINE double joined(Op op, double x, double y) { return op != largest_ ? x + y : x > y || x != x ? x : y; }

// What to bring into the cache while a block is computed: the same inputs, some blocks on, a share with each instruction.
struct Ahead {
  const char* next;
  const char* end;
  int64_t share;
};

// Runs the program over one block of n elements of a leaf, and joins to `numbers` what it reduces. `place` is that of
// the first of them.
GRADTX_CLONES void run_block(const Instruction* program, int64_t size, void* const* slots, double* numbers, int n,
                             uint32_t place, Ahead* ahead, int64_t inputs) {
  for (int64_t k = 0; k < size; ++k) {
    for (int64_t i = 0; i < inputs; ++i) {  // memory works while the arithmetic does
      const char* const end = std::min(ahead[i].end, ahead[i].next + ahead[i].share);
      for (; ahead[i].next < end; ahead[i].next += 64)
        __builtin_prefetch(ahead[i].next, 0, 2);  // into L2: L1 is full of this block
    }
    const Instruction& in = program[k];
    switch (in.op) {
#define GRADTX_MATHS_CASE(name, arity, expression, ...)                                  \
  case name##_:                                                                          \
    if (in.is_f64) variants<name##_f, double, double, arity, __VA_ARGS__>(slots, in, n); \
    else variants<name##_f, float, float, arity, __VA_ARGS__>(slots, in, n);             \
    break;
#define GRADTX_TESTS_CASE(name, arity, expression, ...)                                   \
  case name##_:                                                                           \
    if (in.is_f64) variants<name##_f, double, uint8_t, arity, __VA_ARGS__>(slots, in, n); \
    else variants<name##_f, float, uint8_t, arity, __VA_ARGS__>(slots, in, n);            \
    break;
#define GRADTX_LOGIC_CASE(name, arity, expression, ...) \
  case name##_: variants<name##_f, uint8_t, uint8_t, arity, __VA_ARGS__>(slots, in, n); break;
#define GRADTX_REDUCTIONS_CASE(name, arity, expression, ...) \
  case name##_: numbers[in.to] = joined(name##_, numbers[in.to], name##_of_block(slots, in, n)); break;
#define GRADTX_CONVERSION_CASE(name, from, to_type, expression) \
  case name##_: {                                               \
    using From = Storage<from>::T;                              \
    auto* to = static_cast<Storage<to_type>::T*>(slots[in.to]); \
    const From* x = static_cast<const From*>(slots[in.a]);      \
    _Pragma("GCC ivdep") for (int i = 0; i < n; ++i) {          \
      const From a = x[i];                                      \
      to[i] = static_cast<Storage<to_type>::T>(expression);     \
    }                                                           \
    break;                                                      \
  }
#define GRADTX_ROUNDING_CASE(name, expression)                               \
  case name##_: {                                                            \
    auto* to = static_cast<float*>(slots[in.to]);                            \
    const float* x = static_cast<const float*>(slots[in.a]);                 \
    const uint32_t seed = whole(get<float>(slots[in.b]));                    \
    _Pragma("GCC ivdep") for (int k = 0; k < n; ++k) {                       \
      const float a = x[k];                                                  \
      const uint32_t i = place + static_cast<uint32_t>(k);                   \
      to[k] = expression;                                                    \
    }                                                                        \
    break;                                                                   \
  }
#define GRADTX_JOIN_CASE(name, type, expression)                  \
  case name##_: {                                                 \
    auto* to = static_cast<float*>(slots[in.to]);                 \
    const auto* x = static_cast<const uint16_t*>(slots[in.a]);    \
    const auto* y = static_cast<const Storage<type>::T*>(slots[in.b]); \
    _Pragma("GCC ivdep") for (int i = 0; i < n; ++i) {            \
      const uint16_t a = x[i];                                    \
      const int32_t b = y[i];                                     \
      to[i] = expression;                                         \
    }                                                             \
    break;                                                        \
  }
#define GRADTX_DECODER_CASE(name, type) \
  case name##_: name##_block(slots, in, n); break;
#define GRADTX_ENCODER_CASE(name, type) \
  case name##_: name##_block(slots, in, n, place); break;
      GRADTX_MATHS(GRADTX_MATHS_CASE)
      GRADTX_TESTS(GRADTX_TESTS_CASE)
      GRADTX_LOGIC(GRADTX_LOGIC_CASE)
      GRADTX_REDUCTIONS(GRADTX_REDUCTIONS_CASE)
      case select_:
        if (in.is_f64) choices<double>(slots, in, n);
        else choices<float>(slots, in, n);
        break;
        GRADTX_ROUNDINGS(GRADTX_ROUNDING_CASE)
        GRADTX_DECODERS(GRADTX_DECODER_CASE)
      case scales_: scales_block(slots, in, n); break;
        GRADTX_ENCODERS(GRADTX_ENCODER_CASE)
        GRADTX_JOINS(GRADTX_JOIN_CASE)
        GRADTX_CONVERSIONS(GRADTX_CONVERSION_CASE)
    }
  }
}

// ---- Threads -------------------------------------------------------------------------------------------------------

// XLA computes with subnormal numbers flushed to zero; so does this, on every thread.
enum class Subnormals { kFlush, kKeep };
class FloatMode {
 public:
#if defined(__x86_64__)
  explicit FloatMode(Subnormals mode) : before_(_mm_getcsr()) {
    _mm_setcsr(mode == Subnormals::kFlush ? before_ | kBits : before_ & ~kBits);
  }
  ~FloatMode() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kBits = 0x8040;
  unsigned before_;
#elif defined(__aarch64__)
  explicit FloatMode(Subnormals mode) {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(mode == Subnormals::kFlush ? before_ | kBits : before_ & ~kBits));
  }
  ~FloatMode() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  static constexpr uint64_t kBits = uint64_t{1} << 24;
  uint64_t before_;
#else
  explicit FloatMode(Subnormals) {}
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
    const FloatMode flush(Subnormals::kFlush);
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

constexpr int64_t kBlockBytes =
    2048;  // of one temporary: a few of them, the arrays' blocks and the next fit into 32 KiB
constexpr int64_t kFewestBlocks = 64, kMostBlocks = 1024;  // of a task
constexpr int64_t kTasks = 64;                             // in between
constexpr int64_t kAheadBytes = 8192;                      // on their way from memory while a block is computed

constexpr int64_t scales_of(int64_t elements) { return (elements + kBlocked - 1) / kBlocked; }

struct Array {
  char* data;
  Type type;
  int64_t size;  // elements

  int64_t width() const { return width_of(type); }
  // That of an element of the leaf, and the bytes of so many from there on.
  char* at(int64_t element) const { return data + (type == kScale ? element / kBlocked : element) * width(); }
  int64_t bytes(int64_t elements) const { return (type == kScale ? scales_of(elements) : elements) * width(); }
  uintptr_t begin() const { return reinterpret_cast<uintptr_t>(data); }
  uintptr_t end() const { return begin() + size * width(); }
};

// A call, ready to run: leaves of `inputs` + `outputs` arrays each, their blocks numbered through.
struct Call {
  const Instruction* program;
  int64_t program_size;
  int64_t inputs, arrays;      // of a leaf; the outputs are arrays too
  std::vector<Op> reductions;  // of a leaf, as the instructions say; kOps for one that none is for
  int64_t temporaries;
  int64_t block;                   // elements
  int64_t blocks_ahead;            // from the block that is computed to the one that is brought into the cache
  int64_t blocks_per_task;         // by the number of blocks alone, since rounding depends on it
  std::vector<Array> leaf_arrays;  // of all leaves
  std::vector<int64_t> sizes;      // elements of each leaf
  std::vector<int64_t> first;      // number of each leaf's first block, and the number of all blocks
  std::vector<Scalar> scalars;     // of all leaves, or once if they are the same for all
  int64_t scalars_of_leaf;
  bool same_scalars;
  bool happens;              // else results stay as they are in the memory of an input, and are 0 elsewhere
  std::vector<Array> fresh;  // results that are elsewhere
  std::vector<double> numbers;  // those of a task in a leaf, at the place `task + leaf`, which no other two have
  std::vector<Array> vectors;   // results: each reduction of all leaves

  int64_t leaves() const { return static_cast<int64_t>(sizes.size()); }
  int64_t blocks() const { return first.back(); }
  int64_t tasks() const { return (blocks() + blocks_per_task - 1) / blocks_per_task; }

  // Calls f(leaf, begin, end) for the blocks of each leaf that are a task's.
  template <class F>
  void in_leaves(int64_t task, const F& f) const {
    int64_t begin = task * blocks_per_task;
    const int64_t end = std::min(begin + blocks_per_task, blocks());
    for (int64_t leaf = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1; begin < end; ++leaf) {
      const int64_t next = std::min(end, first[leaf + 1]);
      if (begin < next) f(leaf, begin, next);
      begin = next;
    }
  }

  // Writes zeros where nothing stays.
  void clear(ffi::ThreadPool& pool) const {
    constexpr int64_t kPiece = 1 << 20;
    std::vector<std::pair<char*, int64_t>> pieces;
    for (const Array& array : fresh) {
      const int64_t bytes = array.size * array.width();
      for (int64_t at = 0; at < bytes; at += kPiece)
        pieces.emplace_back(array.data + at, std::min(kPiece, bytes - at));
    }
    parallel(pool, pieces.size(), [&](int64_t i) { std::memset(pieces[i].first, 0, pieces[i].second); });
  }

  // Runs the blocks of a task.
  void run(int64_t task) {
    thread_local std::vector<char> memory;
    memory.resize(std::max<size_t>(memory.size(), temporaries * kBlockBytes + 64));
    char* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
    std::vector<Ahead> ahead(inputs);
    const int64_t shares = 64 * std::max<int64_t>(program_size, 1);
    std::vector<void*> slots(arrays + temporaries + scalars_of_leaf);
    for (int64_t i = 0; i < temporaries; ++i) slots[arrays + i] = aligned + i * kBlockBytes;

    const int64_t last = std::min((task + 1) * blocks_per_task, blocks()) - 1;
    in_leaves(task, [&](int64_t leaf, int64_t begin, int64_t end) {
      const Scalar* own = scalars.data() + (same_scalars ? 0 : leaf * scalars_of_leaf);
      for (int64_t i = 0; i < scalars_of_leaf; ++i) slots[arrays + temporaries + i] = const_cast<Scalar*>(own + i);
      for (int64_t number = begin; number < end; ++number) {
        const int64_t offset = (number - first[leaf]) * block;
        const int n = static_cast<int>(std::min(block, sizes[leaf] - offset));
        for (int64_t i = 0; i < arrays; ++i) {
          const Array& array = leaf_arrays[leaf * arrays + i];
          slots[i] = array.at(offset);
        }
        const int64_t later = std::min(number + blocks_ahead, last);
        int64_t next_leaf = leaf;
        while (first[next_leaf + 1] <= later) ++next_leaf;
        const int64_t next = (later - first[next_leaf]) * block;
        const int64_t rest = later == number + blocks_ahead ? std::min(block, sizes[next_leaf] - next) : 0;
        for (int64_t i = 0; i < inputs; ++i) {
          const Array& array = leaf_arrays[next_leaf * arrays + i];
          const int64_t bytes = array.bytes(rest);
          ahead[i] = {array.at(next), array.at(next) + bytes, (bytes / shares + 1) * 64};
        }
        double* const own_numbers = numbers.data() + (task + leaf) * reductions.size();
        run_block(program, program_size, slots.data(), own_numbers, n, static_cast<uint32_t>(offset), ahead.data(),
                  inputs);
      }
    });
  }

  // The number of a leaf, of those of the tasks that had a share in it.
  double number_of(int64_t leaf, size_t reduction) const {
    double all = 0;
    if (sizes[leaf] == 0) return all;
    for (int64_t task = first[leaf] / blocks_per_task; task <= (first[leaf + 1] - 1) / blocks_per_task; ++task) {
      const double one = numbers[(task + leaf) * reductions.size() + reduction];
      all = joined(reductions[reduction], all, one);
    }
    return reductions[reduction] == norm_ ? std::sqrt(all) : all;
  }

  void execute(ffi::ThreadPool& pool) {
    numbers.assign((tasks() + leaves()) * reductions.size(), 0.0);
    if (happens) parallel(pool, tasks(), [this](int64_t task) { run(task); });
    else clear(pool);
    for (size_t i = 0; i < reductions.size(); ++i) {
      for (int64_t leaf = 0; leaf < leaves(); ++leaf) {
        const double x = number_of(leaf, i);
        if (vectors[i].type == kF64) reinterpret_cast<double*>(vectors[i].data)[leaf] = x;
        else reinterpret_cast<float*>(vectors[i].data)[leaf] = static_cast<float>(x);
      }
    }
  }
};

// ---- Checks --------------------------------------------------------------------------------------------------------

// Each says what is wrong, and nothing if all is well.
using Words = std::string;
template <class... Part>
Words words(const Part&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  return text.str();
}

#define GRADTX_NAME(name, ...) #name,
constexpr const char* kNames[] = {GRADTX_MATHS(GRADTX_NAME) GRADTX_TESTS(GRADTX_NAME) GRADTX_LOGIC(GRADTX_NAME)
                                      GRADTX_REDUCTIONS(GRADTX_NAME) "select",
                                  GRADTX_ROUNDINGS(GRADTX_NAME) GRADTX_DECODERS(GRADTX_NAME) "scales",
                                  GRADTX_ENCODERS(GRADTX_NAME) GRADTX_JOINS(GRADTX_NAME)
                                      GRADTX_CONVERSIONS(GRADTX_NAME)};

Type type_of(ffi::DataType type) {
  switch (type) {
    case ffi::S8: return kI8;
    case ffi::S16: return kI16;
    case ffi::U8: return kU8;
    case ffi::BF16: return kBf16;
    case ffi::F16: return kF16;
    case ffi::F32: return kF32;
    case ffi::F64: return kF64;
    default: return kNothing;
  }
}

Words read(const ffi::AnyBuffer& buffer, Array& array) {
  constexpr int64_t kMost = int64_t{1} << 48;  // elements: more than there is memory for
  array = {static_cast<char*>(buffer.untyped_data()), type_of(buffer.element_type()), 1};
  if (array.type == kNothing) return "an array of another type than float16, bfloat16, float32, float64, and integers of 8 or 16 bits";
  for (const int64_t dim : buffer.dimensions()) {
    if (dim < 0) return "an array of no size";
    if (dim == 0) array.size = 0;
  }
  for (const int64_t dim : buffer.dimensions())
    if (array.size != 0 && (__builtin_mul_overflow(array.size, dim, &array.size) || array.size > kMost))
      return "an array of no size";
  if (array.size != 0 && array.data == nullptr) return "an array that is nowhere";
  if (array.size != 0 && array.begin() % array.width() != 0) return "an array that is not aligned";
  return {};
}

// When a program reads and writes each array: the number of an instruction.
struct Uses {
  std::vector<int64_t> last_read;    // −1 if never
  std::vector<int64_t> first_write;  // the number of all instructions if never
};

// Whether every slot is there, holds what is read from it, and is for the program to write. `types` are those of the
// arrays; afterwards those of the temporaries stand behind them. Notes what is reduced how.
Words check_program(Call& call, std::vector<Type>& types, Uses& uses, bool& wide) {
  const int64_t memory = call.arrays + call.temporaries, all = memory + call.scalars_of_leaf;
  const std::vector<Type> stored = types;
  types.resize(memory, kNothing);
  std::fill(types.begin() + call.inputs, types.end(), kNothing);  // until it is written
  uses.last_read.assign(call.arrays, -1);
  uses.first_write.assign(call.arrays, call.program_size);
  uses.first_write.resize(call.arrays + call.reductions.size(), -1);  // always written, when all is read
  wide = std::count(stored.begin(), stored.end(), kF64) > 0;
  for (int64_t k = 0; k < call.program_size; ++k) {
    const Instruction& in = call.program[k];
    if (in.op < 0 || in.op >= kOps) return words("instruction ", k, " is none that there is: ", in.op);
    const Signature& signature = kSignatures[in.op];
    const auto wrong = [&](const auto&... parts) {
      return words("instruction ", k, ", ", kNames[in.op], ", ", parts...);
    };
    if (in.is_f64 != 0 && in.is_f64 != 1) return wrong("is of no type");
    const auto actual = [&](Type type) { return type != kNumber ? type : in.is_f64 ? kF64 : kF32; };
    if (in.scalars < 0 || in.scalars > 15 || (signature.variants >> in.scalars & 1) == 0)
      return wrong("takes no such scalars: ", in.scalars);
    const Type made = actual(signature.to);
    if (made == kReduced) {
      const int64_t all = call.reductions.size();
      if (in.to < 0 || in.to >= all) return wrong("is number ", in.to, " of a leaf, and there are ", all);
      Op& reduction = call.reductions[in.to];
      if (reduction != kOps && reduction != in.op) return wrong("is for a number that ", kNames[reduction], " makes");
      reduction = static_cast<Op>(in.op);
    } else {
      if (in.to < call.inputs || in.to >= memory)
        return wrong("writes slot ", in.to, ", which is no result or temporary");
      if (in.to < call.arrays && stored[in.to] != made) return wrong("writes a result of another type");
    }
    wide = wide || made == kF64 || in.is_f64 == 1;
    const std::array<int32_t, 4> operands = {in.a, in.b, in.c, in.e};
    for (int i = 0; i < 4; ++i) {
      const int32_t slot = operands[i];
      if (slot < 0 || slot >= std::max<int64_t>(all, 1)) return wrong("reads slot ", slot, ", and there are ", all);
      if (i >= signature.arity) continue;
      const bool is_scalar = (in.scalars >> i & 1) != 0;
      if (is_scalar != (slot >= memory))
        return wrong("takes slot ", slot, is_scalar ? " for a scalar" : " for a block");
      if (is_scalar) continue;
      const Type wanted = actual(signature.from[i]);
      if (types[slot] != wanted)
        return wrong("reads slot ", slot, ", which holds ", types[slot] ? "another type" : "nothing");
      const bool of_scales = wanted == kScale || made == kScale;  // which are not at the places of elements
      if (made != kReduced && slot == in.to && (of_scales || width_of(wanted) != width_of(made)))
        return wrong("writes over what it reads");
      wide = wide || wanted == kF64;
      if (slot < call.arrays) uses.last_read[slot] = k;
    }
    if (made == kReduced) continue;
    types[in.to] = made;
    if (in.to < call.arrays) uses.first_write[in.to] = std::min(uses.first_write[in.to], k);
  }
  return {};
}

// An array of a call as it was handed over: at which position of which leaf, or of all.
struct Buffer {
  static constexpr int64_t kAllLeaves = -1, kCoefficients = -2, kNumbers = -3, kFlag = -4;
  Array array;
  int64_t position, leaf;
};

// Whether results are apart from each other, and from what is still to be read; and each is written, or there already.
// Notes which are not in the memory of an input.
Words check_memory(Call& call, const std::vector<Buffer>& buffers, const Uses& uses) {
  std::vector<Buffer> inputs, outputs;
  for (const Buffer& buffer : buffers)
    if (buffer.array.size != 0) (buffer.position < call.inputs ? inputs : outputs).push_back(buffer);
  const auto by_begin = [](const Buffer& x, const Buffer& y) { return x.array.begin() < y.array.begin(); };
  std::sort(outputs.begin(), outputs.end(), by_begin);
  for (size_t i = 1; i < outputs.size(); ++i)
    if (outputs[i - 1].array.end() > outputs[i].array.begin()) return "two results are in one memory";
  std::vector<bool> there(outputs.size());
  for (const Buffer& input : inputs) {
    const auto begins_before = [](const Buffer& x, uintptr_t at) { return x.array.end() <= at; };
    const auto it = std::lower_bound(outputs.begin(), outputs.end(), input.array.begin(), begins_before);
    if (it == outputs.end() || it->array.begin() >= input.array.end()) continue;
    if (it->leaf != input.leaf || it->array.begin() != input.array.begin() || it->array.end() != input.array.end() ||
        it->array.type != input.array.type)
      return "a result is in the memory of an array that is not its own";
    if (uses.first_write[it->position] < uses.last_read[input.position])
      return words("array ", input.position, " is overwritten by result ", it->position - call.inputs,
                   " before the program has read it");
    there[it - outputs.begin()] = true;
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (there[i]) continue;
    const int64_t position = outputs[i].position;
    if (uses.first_write[position] == call.program_size)
      return words("the program does not write result ", position - call.inputs);
    if (position < call.arrays) call.fresh.push_back(outputs[i].array);
  }
  return {};
}

// ---- From XLA ------------------------------------------------------------------------------------------------------

// Of positions in a row of so many, which are flat; nothing if one is not there or twice.
std::optional<std::vector<bool>> chosen(ffi::Span<const int64_t> positions, int64_t of) {
  std::vector<bool> flags(of);
  for (const int64_t position : positions) {
    if (position < 0 || position >= of || flags[position]) return std::nullopt;
    flags[position] = true;
  }
  return flags;
}

// Operands are the coefficients, the arrays of each leaf, flat arrays, in which the leaves' arrays at the positions
// `flat_inputs` stand one after another, and a flag, whether anything happens; results are the outputs of each leaf, then flat ones likewise, then vectors of
// one number for each leaf. At the positions `scales` of inputs and outputs are the scales of codes.
struct Attributes {
  int64_t inputs;
  ffi::Span<const int64_t> flat_inputs;
  int64_t outputs;
  ffi::Span<const int64_t> flat_outputs;
  ffi::Span<const int32_t> code;
  ffi::Span<const double> constants;
  int64_t temporaries, reductions;
  ffi::Span<const int64_t> scales;
};

// Makes a call ready to run, or says why it is none.
Words prepare(Call& call, const Attributes& given, const ffi::RemainingArgs& args, const ffi::RemainingRets& rets) {
  if (given.reductions < 0 || given.reductions > static_cast<int64_t>(rets.size()))
    return "there are fewer results than reductions";
  const int64_t operands = args.size(), results = rets.size() - given.reductions;
  if (given.inputs < 1 || given.inputs >= operands) return "there are fewer operands than a leaf has arrays";
  if (given.outputs < 0 || given.outputs > results) return "there are fewer results than a leaf has";
  if (given.outputs == 0 && given.reductions == 0) return "there is nothing to write";
  const auto flat_inputs = chosen(given.flat_inputs, given.inputs),
             flat_outputs = chosen(given.flat_outputs, given.outputs);
  if (!flat_inputs || !flat_outputs) return "a flat array is at no position of a leaf";
  const auto scales = chosen(given.scales, given.inputs + given.outputs);
  if (!scales || (*scales)[0]) return "scales are at no position of a leaf";
  const int64_t flats = given.flat_inputs.size(), flat_results = given.flat_outputs.size();
  const int64_t of_leaf = given.inputs - flats, of_leaves = operands - 2 - flats;
  if (of_leaf < 1 || of_leaves < of_leaf || of_leaves % of_leaf != 0)
    return "the operands are not coefficients, whole leaves, flat arrays and a flag";
  const int64_t leaves = of_leaves / of_leaf;
  if (results != leaves * (given.outputs - flat_results) + flat_results)
    return "the results are not those of whole leaves and flat arrays";

  call.inputs = given.inputs;
  call.arrays = given.inputs + given.outputs;
  call.reductions.assign(given.reductions, kOps);
  std::vector<Buffer> buffers;
  std::vector<Type> types(call.arrays, kNothing);
  const auto take = [&](const ffi::AnyBuffer& buffer, int64_t position, int64_t leaf) -> Words {
    Array array;
    if (Words wrong = read(buffer, array); !wrong.empty()) return wrong;
    if (leaf != Buffer::kCoefficients) {
      if ((*scales)[position]) {
        if (array.type != kF32 || leaf < 0) return "scales that are flat, or not in float32";
        array.type = kScale;
      }
      if (types[position] == kNothing) types[position] = array.type;
      if (types[position] != array.type) return words("arrays at position ", position, " are of several types");
    }
    buffers.push_back({array, position, leaf});
    return {};
  };

  const auto coefficients = *args.get<ffi::AnyBuffer>(0);
  if (coefficients.dimensions().size() != 2) return "the coefficients are no table";
  if (Words wrong = take(coefficients, 0, Buffer::kCoefficients); !wrong.empty()) return wrong;
  const Array table = buffers[0].array;
  const auto flag = *args.get<ffi::AnyBuffer>(operands - 1);
  if (flag.element_type() != ffi::PRED || flag.dimensions().size() != 0 || flag.untyped_data() == nullptr)
    return "the last operand is no flag";
  call.happens = *static_cast<const uint8_t*>(flag.untyped_data()) != 0;
  buffers.push_back({{static_cast<char*>(flag.untyped_data()), kTruth, 1}, 0, Buffer::kFlag});
  const int64_t rows = coefficients.dimensions()[0], columns = coefficients.dimensions()[1];
  if (width_of(table.type) < 4) return "the coefficients are in less than float32";
  if (rows != 1 && rows != leaves) return words("there are coefficients for ", rows, " of ", leaves, " leaves");

  // The arrays of each leaf, in the order of their positions; of flat ones as yet a place in the list of buffers.
  int64_t operand = 1, result = 0, total = 0;
  std::vector<size_t> flat_at(call.arrays);
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    const size_t first = buffers.size();
    for (int64_t i = 0; i < call.arrays; ++i) {
      Words wrong;
      if (i < given.inputs ? (*flat_inputs)[i] : (*flat_outputs)[i - given.inputs]) continue;
      if (i < given.inputs) wrong = take(*args.get<ffi::AnyBuffer>(operand++), i, leaf);
      else wrong = take(**rets.get<ffi::AnyBuffer>(result++), i, leaf);
      if (!wrong.empty()) return wrong;
      const int64_t size = buffers[first].array.size;
      if (buffers.back().array.size != ((*scales)[i] ? scales_of(size) : size))
        return words("leaf ", leaf, " has arrays of ", buffers[first].array.size, " and of ", buffers.back().array.size,
                     " elements");
    }
    total += buffers[first].array.size;
    call.sizes.push_back(buffers[first].array.size);
  }
  for (int64_t i = 0; i < flats + flat_results; ++i) {
    const int64_t position = i < flats ? given.flat_inputs[i] : given.inputs + given.flat_outputs[i - flats];
    Words wrong = i < flats ? take(*args.get<ffi::AnyBuffer>(operand + i), position, Buffer::kAllLeaves)
                            : take(**rets.get<ffi::AnyBuffer>(result + i - flats), position, Buffer::kAllLeaves);
    if (!wrong.empty()) return wrong;
    if (buffers.back().array.size != total)
      return words("a flat array has ", buffers.back().array.size, " elements, and all leaves have ", total);
    flat_at[position] = buffers.size() - 1;
  }
  for (int64_t i = 0; i < given.reductions; ++i) {
    Array array;
    if (Words wrong = read(**rets.get<ffi::AnyBuffer>(results + i), array); !wrong.empty()) return wrong;
    if (array.size != leaves) return words("there are ", array.size, " numbers of ", leaves, " leaves");
    if (width_of(array.type) < 4) return "a number of a leaf in less than float32";
    call.vectors.push_back(array);
    buffers.push_back({array, call.arrays + i, Buffer::kNumbers});
  }

  call.program = reinterpret_cast<const Instruction*>(given.code.begin());
  call.program_size = static_cast<int64_t>(given.code.size() / kWords);
  call.temporaries = given.temporaries;
  call.same_scalars = rows == 1;
  call.scalars_of_leaf = columns + static_cast<int64_t>(given.constants.size());
  if (given.code.size() % kWords != 0) return "the program ends within an instruction";
  if (given.temporaries < 0 || given.temporaries > call.program_size)
    return words("there are ", given.temporaries, " temporaries for ", call.program_size, " instructions");
  Uses uses;
  bool wide;
  if (Words wrong = check_program(call, types, uses, wide); !wrong.empty()) return wrong;
  if (Words wrong = check_memory(call, buffers, uses); !wrong.empty()) return wrong;

  call.block = kBlockBytes / (wide ? 8 : 4);
  call.first.push_back(0);
  auto next = buffers.begin() + 2;
  for (const int64_t size : call.sizes) {
    for (int64_t i = 0; i < call.arrays; ++i) {
      if (flat_at[i] == 0) {
        call.leaf_arrays.push_back((next++)->array);
      } else {
        Array& flat = buffers[flat_at[i]].array;
        call.leaf_arrays.push_back(flat);
        flat.data += size * flat.width();
      }
    }
    call.first.push_back(call.first.back() + (size + call.block - 1) / call.block);
  }
  call.blocks_per_task = std::clamp(call.blocks() / kTasks, kFewestBlocks, kMostBlocks);
  int64_t bytes = 0;
  for (int64_t i = 0; i < call.inputs; ++i) bytes += call.leaf_arrays[i].bytes(call.block);
  call.blocks_ahead = std::max<int64_t>(kAheadBytes / bytes, 1);

  const FloatMode keep(Subnormals::kKeep);  // a subnormal scalar stays one in the other type
  const auto scalar = [](double x) { return Scalar{x, static_cast<float>(x), x != 0}; };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = row * columns; i < (row + 1) * columns; ++i)
      call.scalars.push_back(scalar(table.type == kF64 ? reinterpret_cast<const double*>(table.data)[i]
                                                       : reinterpret_cast<const float*>(table.data)[i]));
    for (const double x : given.constants) call.scalars.push_back(scalar(x));
  }
  return {};
}

ffi::Error refused(const Words& wrong) {
  return ffi::Error::InvalidArgument("gradtx: no call of the kernel: " + wrong);
}

ffi::Error map_leaves(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t inputs,
                      ffi::Span<const int64_t> flat_inputs, int64_t outputs, ffi::Span<const int64_t> flat_outputs,
                      int64_t reductions, ffi::Span<const int32_t> code, ffi::Span<const double> constants,
                      int64_t temporaries, ffi::Span<const int64_t> scales) {
  Call call;
  const Attributes given{inputs, flat_inputs, outputs, flat_outputs, code, constants, temporaries, reductions, scales};
  if (Words wrong = prepare(call, given, args, rets); !wrong.empty()) return refused(wrong);
  call.execute(pool);
  return ffi::Error::Success();
}

}  // namespace

#define GRADTX_EXPORT __attribute__((visibility("default")))
extern "C" GRADTX_EXPORT XLA_FFI_Error* gradtx_native_map(XLA_FFI_CallFrame*);

// The format of programs and calls.
extern "C" GRADTX_EXPORT int32_t gradtx_native_format() { return kFormat; }

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(gradtx_native_map, map_leaves,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("inputs")
                                  .Attr<ffi::Span<const int64_t>>("flat_inputs")
                                  .Attr<int64_t>("outputs")
                                  .Attr<ffi::Span<const int64_t>>("flat_outputs")
                                  .Attr<int64_t>("reductions")
                                  .Attr<ffi::Span<const int32_t>>("code")
                                  .Attr<ffi::Span<const double>>("constants")
                                  .Attr<int64_t>("temporaries")
                                  .Attr<ffi::Span<const int64_t>>("scales"));
