// Random programs and hostile calls for the compiled kernel, through the interface by which XLA calls it.
//
// Each case is made from its number alone. Half of them are valid: the kernel has to take them, and to give to the bit
// what an interpreter gives that goes element by element and shares no code with it; of numbers rounded to codes at
// random, where double and float may round to either side, one of the two codes. The others are valid ones with
// something changed: the kernel has to refuse them in words, or, where they are still valid, to be right. Every array
// is an allocation of its own, exactly as large as it says, so that a sanitizer sees whatever else is touched.
//
//     fuzz_kernel FIRST COUNT

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "xla/ffi/api/c_api.h"

extern "C" XLA_FFI_Error* gradtx_native_map(XLA_FFI_CallFrame*);
extern "C" const char* gradtx_native_ops();

struct XLA_FFI_Error {
  std::string message;
};

namespace {

// ---- Chance --------------------------------------------------------------------------------------------------------

class Chance {
 public:
  explicit Chance(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t n) { return n <= 0 ? 0 : static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }
  template <class T>
  T of(const std::vector<T>& values) {
    return values[below(values.size())];
  }

 private:
  uint64_t state_;
};

// ---- Numbers -------------------------------------------------------------------------------------------------------

// Of a slot's elements; kScale is one float for each kBlocked of them, and kReduced no slot at all.
enum Type { kNothing, kTruth, kI8, kU8, kI16, kBf16, kF16, kF32, kF64, kScale, kReduced };
constexpr int64_t kBlocked = 256;

XLA_FFI_DataType code_of(Type type) {
  switch (type) {
    case kI8: return XLA_FFI_DataType_S8;
    case kU8: return XLA_FFI_DataType_U8;
    case kI16: return XLA_FFI_DataType_S16;
    case kBf16: return XLA_FFI_DataType_BF16;
    case kF16: return XLA_FFI_DataType_F16;
    case kF32:
    case kScale: return XLA_FFI_DataType_F32;
    default: return XLA_FFI_DataType_F64;
  }
}
Type type_of(XLA_FFI_DataType code) {
  switch (code) {
    case XLA_FFI_DataType_S8: return kI8;
    case XLA_FFI_DataType_U8: return kU8;
    case XLA_FFI_DataType_S16: return kI16;
    case XLA_FFI_DataType_BF16: return kBf16;
    case XLA_FFI_DataType_F16: return kF16;
    case XLA_FFI_DataType_F32: return kF32;
    case XLA_FFI_DataType_F64: return kF64;
    default: return kNothing;
  }
}
int64_t bytes_of(XLA_FFI_DataType code) {
  switch (code) {
    case XLA_FFI_DataType_TOKEN: return 0;
    case XLA_FFI_DataType_S16:
    case XLA_FFI_DataType_BF16:
    case XLA_FFI_DataType_F16: return 2;
    case XLA_FFI_DataType_F32:
    case XLA_FFI_DataType_S32: return 4;
    case XLA_FFI_DataType_F64:
    case XLA_FFI_DataType_C64: return 8;
    case XLA_FFI_DataType_C128: return 16;
    default: return 1;
  }
}

// One number in a slot. Halves are kept as their bits, and are computed with as double, which holds all of them.
struct Value {
  Type type = kNothing;
  double f64 = 0;
  float f32 = 0;
  uint16_t half = 0;
  bool truth = false;
  int code = 0, last = 0;  // a code, and the last of those that it may be
  bool vague = false;      // what follows from a code that may be another
};

template <class T>
T flushed(T x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(T{0}, x) : x;
}

// A format of so many bits before and behind the point, whose least exponent is `least`; subnormal numbers are kept.
struct Half {
  int digits, least;
  int mantissa() const { return digits - 1; }
  int exponents() const { return 15 - mantissa(); }
};
constexpr Half kHalf[2] = {{8, -126}, {11, -14}};  // bfloat16, float16
const Half& half_of(Type type) { return kHalf[type == kF16]; }

double from_half(uint16_t bits, const Half& format) {
  const int fraction = bits & ((1 << format.mantissa()) - 1), top = (1 << format.exponents()) - 1;
  const int exponent = (bits >> format.mantissa()) & top;
  double x = std::ldexp(fraction, format.least - format.mantissa());
  if (exponent == top) x = fraction ? std::nan("") : INFINITY;
  else if (exponent)
    x = std::ldexp(fraction + (1 << format.mantissa()), format.least - format.mantissa() + exponent - 1);
  return bits & 0x8000 ? -x : x;
}

uint16_t to_half(double x, const Half& format) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const int top = (1 << format.exponents()) - 1;
  const uint16_t infinite = sign | static_cast<uint16_t>(top << format.mantissa());
  if (std::isnan(x)) return infinite | static_cast<uint16_t>(1 << (format.mantissa() - 1));
  if (std::isinf(x)) return infinite;
  const int exponent = x == 0 ? format.least : std::max(std::ilogb(x), format.least);
  const int unit = exponent - format.mantissa();
  const double units = std::nearbyint(std::ldexp(std::fabs(x), -unit));  // to even
  const auto bits =
      static_cast<uint32_t>(units) + (static_cast<uint32_t>(exponent - format.least) << format.mantissa());
  return bits >= static_cast<uint32_t>(top << format.mantissa()) ? infinite : sign | static_cast<uint16_t>(bits);
}

// ---- Cases ---------------------------------------------------------------------------------------------------------

struct Instruction {
  int32_t op, is_f64, scalars, to, operands[4];
};
constexpr int kWords = 8;

struct Op {
  std::string name;
  int arity;
  std::vector<int> variants;
  bool takes_scalar(int set) const { return std::find(variants.begin(), variants.end(), set) != variants.end(); }
};

const std::vector<Op>& ops() {
  static const std::vector<Op> all = [] {
    std::vector<Op> found;
    std::istringstream lines(gradtx_native_ops());
    for (std::string line; std::getline(lines, line);) {
      std::replace(line.begin(), line.end(), ',', ' ');
      std::istringstream words(line);
      Op op;
      words >> op.name >> op.arity;
      for (int set; words >> set;) op.variants.push_back(set);
      found.push_back(op);
    }
    return found;
  }();
  return all;
}
int op_named(const std::string& name) {
  for (size_t i = 0; i < ops().size(); ++i)
    if (ops()[i].name == name) return static_cast<int>(i);
  std::fprintf(stderr, "no instruction %s\n", name.c_str());
  std::abort();
}

struct Buffer {
  XLA_FFI_DataType code = XLA_FFI_DataType_F32;
  std::vector<int64_t> dims;
  int shares = -1;    // the operand whose memory it is in
  int64_t shift = 0;  // by so many bytes
  bool nowhere = false;

  int64_t size() const {  // 0 also for more than there is memory for
    int64_t product = 1;
    for (int64_t dim : dims)
      if (dim <= 0 || __builtin_mul_overflow(product, dim, &product) || product > (int64_t{1} << 40)) return 0;
    return product;
  }
  int64_t bytes() const { return size() * bytes_of(code); }
};

struct Case {
  int64_t inputs = 1, outputs = 0, reductions = 0, temporaries = 0;
  std::vector<int64_t> flat_inputs, flat_outputs, scales;
  std::vector<int32_t> code;
  std::vector<double> constants;
  std::vector<Buffer> args, rets;

  int64_t instructions() const { return code.size() / kWords; }
  Instruction instruction(int64_t k) const {
    Instruction in;
    std::memcpy(&in, code.data() + k * kWords, sizeof in);
    return in;
  }
  void add(const Instruction& in) {
    const auto* words = reinterpret_cast<const int32_t*>(&in);
    code.insert(code.end(), words, words + kWords);
  }
};

bool contains(const std::vector<int64_t>& values, int64_t x) {
  return std::find(values.begin(), values.end(), x) != values.end();
}

// ---- An interpreter, one element at a time -------------------------------------------------------------------------

struct Invalid : std::runtime_error {
  using std::runtime_error::runtime_error;
};
void require(bool holds, const char* what) {
  if (!holds) throw Invalid(what);
}

bool reduces(const Op& op) {
  for (const char* name : {"sum", "sumprod", "norm", "nought", "largest"})
    if (op.name == name) return true;
  return false;
}

// Types of an instruction by its name: of the operands and of the result.
struct Types {
  std::vector<Type> from;
  Type to;
};
Types types_of(const Op& op, bool is_f64) {
  static const std::map<std::string, Types> conversions = {
      {"load_bf16", {{kBf16}, kF32}},  {"load_f16", {{kF16}, kF32}},      {"store_bf16", {{kF32}, kBf16}},
      {"store_f16", {{kF32}, kF16}},   {"round_bf16", {{kF32}, kF32}},    {"round_f16", {{kF32}, kF32}},
      {"copy_bf16", {{kBf16}, kBf16}}, {"copy_f16", {{kF16}, kF16}},      {"widen", {{kF32}, kF64}},
      {"narrow", {{kF64}, kF32}},      {"bool_to_f32", {{kTruth}, kF32}}, {"bool_to_f64", {{kTruth}, kF64}},
      {"scales", {{kF32}, kScale}},
      {"dither_bf16", {{kF32, kF32}, kF32}},
      {"dither_f24", {{kF32, kF32}, kF32}},
      {"join_i16", {{kBf16, kI16}, kF32}},
      {"join_i8", {{kBf16, kI8}, kF32}},
      {"upper", {{kF32}, kBf16}},
      {"lower_i16", {{kF32}, kI16}},
      {"lower_i8", {{kF32}, kI8}},
      {"decode_i8", {{kI8, kScale}, kF32}},
      {"decode_u8", {{kU8, kScale}, kF32}},
      {"encode_i8", {{kF32, kScale, kF32}, kI8}},
      {"encode_u8", {{kF32, kScale, kF32}, kU8}},
  };
  const Type number = is_f64 ? kF64 : kF32;
  if (const auto found = conversions.find(op.name); found != conversions.end()) return found->second;
  if (reduces(op)) return {std::vector<Type>(op.arity, number), kReduced};
  if (op.name == "select") return {{kTruth, number, number}, number};
  if (op.name.rfind("logical", 0) == 0) return {std::vector<Type>(op.arity, kTruth), kTruth};
  const bool tests = op.name == "eq" || op.name == "ne" || op.name == "lt" || op.name == "le" || op.name == "is_finite";
  return {std::vector<Type>(op.arity, number), tests ? kTruth : number};
}

// By name, what each makes of its operands. Those of the second table see subnormal numbers as zeros.
template <class T>
using Function = T (*)(T a, T b, T c, T e);
template <class T>
T times(T a, T b) {
  return flushed(a * b);
}
template <class T>
T plus(T a, T b) {
  return flushed(a + b);
}
template <class T>
T over(T a, T b) {
  return flushed(a / b);
}
template <class T>
T extreme(T a, T b, bool largest) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<T>::quiet_NaN();
  if (a == b) return std::signbit(a) == largest ? b : a;
  return (a > b) == largest ? a : b;
}
template <class T>
const std::map<std::string, Function<T>>& bitwise() {
  static const std::map<std::string, Function<T>> all = {
      {"copy", [](T a, T, T, T) { return a; }},
      {"neg", [](T a, T, T, T) { return -a; }},
      {"abs", [](T a, T, T, T) { return std::fabs(a); }},
  };
  return all;
}
template <class T>
const std::map<std::string, Function<T>>& arithmetic() {
  static const std::map<std::string, Function<T>> all = {
      {"sqrt", [](T a, T, T, T) { return std::sqrt(a); }},
      {"rsqrt", [](T a, T, T, T) { return over(T{1}, std::sqrt(a)); }},
      {"sign", [](T a, T, T, T) { return std::isnan(a) || a == 0 ? a : std::copysign(T{1}, a); }},
      {"floor", [](T a, T, T, T) { return std::floor(a); }},
      {"ceil", [](T a, T, T, T) { return std::ceil(a); }},
      {"round", [](T a, T, T, T) { return std::nearbyint(a); }},
      {"add", [](T a, T b, T, T) { return plus(a, b); }},
      {"sub", [](T a, T b, T, T) { return plus(a, -b); }},
      {"mul", [](T a, T b, T, T) { return times(a, b); }},
      {"div", [](T a, T b, T, T) { return over(a, b); }},
      {"max", [](T a, T b, T, T) { return extreme(a, b, true); }},
      {"min", [](T a, T b, T, T) { return extreme(a, b, false); }},
      {"lesser", [](T a, T b, T, T) { return a < b ? a : b; }},
      {"greater", [](T a, T b, T, T) { return a > b ? a : b; }},
      {"muladd", [](T a, T b, T c, T) { return plus(times(a, b), c); }},
      {"mulsub", [](T a, T b, T c, T) { return plus(times(a, b), -c); }},
      {"submul", [](T a, T b, T c, T) { return plus(c, -times(a, b)); }},
      {"mulmuladd", [](T a, T b, T c, T e) { return plus(times(a, b), times(c, e)); }},
      {"mulsqadd", [](T a, T b, T c, T e) { return plus(times(a, b), times(c, times(e, e))); }},
      {"sqrtadd", [](T a, T b, T, T) { return plus(std::sqrt(a), b); }},
      {"muladdsqrtadd", [](T a, T b, T c, T e) { return plus(std::sqrt(plus(times(a, b), c)), e); }},
      {"safediv", [](T a, T b, T, T) { return b == 0 ? 0 : over(a, b); }},
      {"mulsafediv", [](T a, T b, T c, T) { return c == 0 ? 0 : over(times(a, b), c); }},
      {"muldiv", [](T a, T b, T c, T) { return over(times(a, b), c); }},
      {"eq", [](T a, T b, T, T) { return T(a == b); }},
      {"ne", [](T a, T b, T, T) { return T(a != b); }},
      {"lt", [](T a, T b, T, T) { return T(a < b); }},
      {"le", [](T a, T b, T, T) { return T(a <= b); }},
      {"is_finite", [](T a, T, T, T) { return T(std::isfinite(a)); }},
      {"sum", [](T a, T, T, T) { return a; }},
      {"sumprod", [](T a, T b, T, T) { return times(a, b); }},
      {"norm", [](T a, T, T, T) { return a; }},
      {"nought", [](T a, T, T, T) { return times(T(0), a); }},
      {"largest", [](T a, T, T, T) { return std::fabs(a); }},
  };
  return all;
}
using OfValues = Value (*)(const Value& a, const Value& b, const Value& c, Type from, Type to);
Value truth_of(bool x) {
  Value value;
  value.truth = x;
  return value;
}
const std::map<std::string, OfValues>& others() {
  static const auto copy = [](const Value& a, const Value&, const Value&, Type, Type) { return a; };
  static const auto load = [](const Value& a, const Value&, const Value&, Type from, Type) {
    Value value;
    value.f32 = static_cast<float>(from_half(a.half, half_of(from)));
    return value;
  };
  static const auto store = [](const Value& a, const Value&, const Value&, Type, Type to) {
    Value value;
    value.half = to_half(a.f32, half_of(to));
    return value;
  };
  static const auto to_number = [](const Value& a, const Value&, const Value&, Type, Type) {
    Value value;
    value.f32 = a.truth;
    value.f64 = a.truth;
    return value;
  };
  static const std::map<std::string, OfValues> all = {
      {"select", [](const Value& a, const Value& b, const Value& c, Type, Type) { return a.truth ? b : c; }},
      {"logical_not", [](const Value& a, const Value&, const Value&, Type, Type) { return truth_of(!a.truth); }},
      {"logical_and",
       [](const Value& a, const Value& b, const Value&, Type, Type) { return truth_of(a.truth && b.truth); }},
      {"logical_or",
       [](const Value& a, const Value& b, const Value&, Type, Type) { return truth_of(a.truth || b.truth); }},
      {"logical_xor",
       [](const Value& a, const Value& b, const Value&, Type, Type) { return truth_of(a.truth != b.truth); }},
      {"logical_copy", copy},
      {"copy_bf16", copy},
      {"copy_f16", copy},
      {"load_bf16", load},
      {"load_f16", load},
      {"store_bf16", store},
      {"store_f16", store},
      {"bool_to_f32", to_number},
      {"bool_to_f64", to_number},
      {"round_bf16", [](const Value& a, const Value& b, const Value& c, Type,
                        Type) { return load(store(a, b, c, kF32, kBf16), b, c, kBf16, kF32); }},
      {"round_f16", [](const Value& a, const Value& b, const Value& c, Type,
                       Type) { return load(store(a, b, c, kF32, kF16), b, c, kF16, kF32); }},
      {"widen",
       [](const Value& a, const Value&, const Value&, Type, Type) {
         Value value;
         value.f64 = flushed(a.f32);
         return value;
       }},
      {"narrow",
       [](const Value& a, const Value&, const Value&, Type, Type) {
         Value value;
         value.f32 = flushed(static_cast<float>(flushed(a.f64)));
         return value;
       }},
  };
  return all;
}

// Codes of 8 bits and rounding at random, as gradtx/_core/codecs.py and rounding.py have them.
uint32_t random_bits(uint32_t place, float seed) {
  constexpr uint64_t kAll = uint64_t{1} << 32;
  const uint64_t whole = seed >= 0 && seed < 4294967296.0 ? static_cast<uint64_t>(seed) : 0;
  uint64_t x = place * uint64_t{0x9e3779b9} % kAll;
  x = ((x ^ (x / 32768)) + whole) % kAll;
  x = (x ^ (x / 65536)) * 0x85ebca6b % kAll;
  x = (x ^ (x / 8192)) * 0xc2b2ae35 % kAll;
  return static_cast<uint32_t>(x ^ (x / 65536));
}

double share_of(double code, bool is_signed) {
  const double root = code / (is_signed ? 127 : 255);
  return std::pow(root, is_signed ? 2 : 4);
}

// The code of a share of the scale, of its modulus, where `level` is a random number between 0 and 1.
int rounded(double share, double level, bool is_signed) {
  const double place = is_signed ? 127 * std::sqrt(share) : 255 * std::sqrt(std::sqrt(share));
  const double lower = std::min(std::floor(place), is_signed ? 126.0 : 254.0);
  const double low = share_of(lower, is_signed), high = share_of(lower + 1, is_signed);
  const double part = is_signed ? (share - low) / (high - low) : place - lower;
  const bool up = part > 1 - 5e-5 || (part >= 5e-5 && level < part);
  return static_cast<int>(lower) + up;
}

Value encoded(const Value& number, const Value& scale, const Value& seed, uint32_t place, bool is_signed) {
  const double x = flushed(number.f32), all = flushed(scale.f32), share = all == 0 ? 0 : x / all;
  const double level = std::ldexp(random_bits(place, seed.f32) / 256, -24);
  Value value;
  value.code = is_signed ? -128 : 0;
  value.last = is_signed ? 127 : 255;
  if (std::isfinite(x) && !std::isnan(share) && !number.vague && !scale.vague) {
    const double size = std::fabs(share), error = 2e-6 * size;  // more than that of float
    value.code = std::max(rounded(size - error, level, is_signed), int{!is_signed && x > 0});
    value.last = std::max(rounded(size + error, level, is_signed), int{!is_signed && x > 0});
    if (is_signed && share < 0) {
      std::swap(value.code, value.last);
      value.code *= -1, value.last *= -1;
    }
  }
  value.vague = value.code != value.last;
  return value;
}

Value decoded(const Value& code, const Value& scale, bool is_signed) {
  const float root = static_cast<float>(code.code) / (is_signed ? 127 : 255), square = root * root;
  Value value;
  value.f32 = times(is_signed ? std::copysign(square, root) : square * square, flushed(scale.f32));
  return value;
}

// To a number whose last bits, of so many values, are zero.
Value dithered(const Value& number, const Value& seed, uint32_t place, uint32_t values) {
  uint32_t bits;
  std::memcpy(&bits, &number.f32, sizeof bits);
  const uint32_t level = static_cast<uint32_t>(uint64_t{random_bits(place, seed.f32)} * values >> 32);
  const bool up = bits % values + level >= values;
  bits = (bits / values + up) * values;
  Value value = number;
  if (std::isfinite(number.f32)) std::memcpy(&value.f32, &bits, sizeof bits);
  return value;
}

// Weights in two parts, as gradtx/_core/weights.py has them: the nearest of bfloat16, of two as near the larger, and the
// bits, as an integer, less those of it.
Value upper(const Value& number) {
  const double x = number.f32;
  Value value;
  value.half = to_half(x, kHalf[0]);
  if (x == 0 || !std::isfinite(x)) return value;
  const int unit = std::max(std::ilogb(x), -126) - 7;
  value.half = to_half(std::ldexp(std::round(std::ldexp(x, -unit)), unit), kHalf[0]);
  return value;
}

Value lower(const Value& number, int divisor) {
  uint32_t bits;
  std::memcpy(&bits, &number.f32, sizeof bits);
  const int rest = std::isnan(number.f32) ? 0 : static_cast<int>(bits % 65536);
  Value value;
  value.code = static_cast<int>(std::floor((rest < 32768 ? rest : rest - 65536) / static_cast<double>(divisor)));
  value.last = value.code;
  if (number.vague) value.code = -32768, value.last = 32767;
  return value;
}

Value joined(const Value& upper, const Value& lower, int factor) {
  const int64_t all = int64_t{1} << 32, sum = int64_t{upper.half} * 65536 + int64_t{lower.code} * factor;
  const auto bits = static_cast<uint32_t>((sum + all) % all);
  Value value;
  std::memcpy(&value.f32, &bits, sizeof bits);
  return value;
}

using OfPlace = Value (*)(const Value& a, const Value& b, const Value& c, uint32_t place);
const std::map<std::string, OfPlace>& of_places() {
  static const std::map<std::string, OfPlace> all = {
      {"dither_bf16", [](const Value& a, const Value& b, const Value&, uint32_t at) { return dithered(a, b, at, 65536); }},
      {"dither_f24", [](const Value& a, const Value& b, const Value&, uint32_t at) { return dithered(a, b, at, 256); }},
      {"join_i16", [](const Value& a, const Value& b, const Value&, uint32_t) { return joined(a, b, 1); }},
      {"join_i8", [](const Value& a, const Value& b, const Value&, uint32_t) { return joined(a, b, 256); }},
      {"upper", [](const Value& a, const Value&, const Value&, uint32_t) { return upper(a); }},
      {"lower_i16", [](const Value& a, const Value&, const Value&, uint32_t) { return lower(a, 1); }},
      {"lower_i8", [](const Value& a, const Value&, const Value&, uint32_t) { return lower(a, 256); }},
      {"decode_i8", [](const Value& a, const Value& b, const Value&, uint32_t) { return decoded(a, b, true); }},
      {"decode_u8", [](const Value& a, const Value& b, const Value&, uint32_t) { return decoded(a, b, false); }},
      {"encode_i8",
       [](const Value& a, const Value& b, const Value& c, uint32_t at) { return encoded(a, b, c, at, true); }},
      {"encode_u8",
       [](const Value& a, const Value& b, const Value& c, uint32_t at) { return encoded(a, b, c, at, false); }},
  };
  return all;
}

using Block = std::vector<Value>;  // of a slot: kBlocked elements or fewer; or one scale, or a scalar

Value scale_of(const Block& block) {
  Value scale;
  for (const Value& x : block) {
    scale.vague = scale.vague || x.vague;
    scale.f32 = std::isfinite(x.f32) ? extreme(scale.f32, flushed(std::fabs(x.f32)), true) : NAN;
    if (std::isnan(scale.f32)) break;
  }
  return scale;
}

// An instruction with its types and its function, looked up once.
struct Ready {
  Instruction in;
  const Op* op;
  Types types;
  Function<float> f32 = nullptr;
  Function<double> f64 = nullptr;
  OfValues other = nullptr;
  OfPlace of_place = nullptr;
  bool flushes = false;

  explicit Ready(const Instruction& instruction) : in(instruction) {
    require(in.op >= 0 && in.op < static_cast<int64_t>(ops().size()), "no instruction");
    op = &ops()[in.op];
    types = types_of(*op, in.is_f64);
    require(in.is_f64 == 0 || in.is_f64 == 1, "of no type");
    require(op->takes_scalar(in.scalars), "no such variant");
    if (others().count(op->name)) {
      other = others().at(op->name);
    } else if (of_places().count(op->name)) {
      of_place = of_places().at(op->name);
    } else if (op->name != "scales") {
      flushes = bitwise<float>().count(op->name) == 0;
      f32 = flushes ? arithmetic<float>().at(op->name) : bitwise<float>().at(op->name);
      f64 = flushes ? arithmetic<double>().at(op->name) : bitwise<double>().at(op->name);
    }
  }

  // Of a block whose first element has a place in its leaf, and of an element.
  Block operator()(const Block* const x[4], int64_t size, int64_t first) const {
    if (types.to == kScale) return {scale_of(*x[0])};
    Block out;
    for (int64_t at = 0; at < size; ++at) {
      Value own[4];
      for (int i = 0; i < op->arity; ++i) own[i] = (*x[i])[one(i) ? 0 : at];
      out.push_back((*this)(own, static_cast<uint32_t>(first + at)));
      for (const Value& value : own) out.back().vague = out.back().vague || value.vague;
    }
    return out;
  }
  bool one(int i) const { return (in.scalars >> i & 1) != 0 || types.from[i] == kScale; }

  Value operator()(const Value x[4], uint32_t place) const {
    if (other) return other(x[0], x[1], x[2], types.from[0], types.to);
    if (of_place) return of_place(x[0], x[1], x[2], place);
    Value out;
    double d[4] = {x[0].f64, x[1].f64, x[2].f64, x[3].f64};
    float f[4] = {x[0].f32, x[1].f32, x[2].f32, x[3].f32};
    for (double& y : d) y = flushes ? flushed(y) : y;
    for (float& y : f) y = flushes ? flushed(y) : y;
    out.type = types.from[0];
    if (types.from[0] == kF64) out.f64 = f64(d[0], d[1], d[2], d[3]);
    else out.f32 = f32(f[0], f[1], f[2], f[3]);
    out.truth = types.to == kTruth && (out.f32 != 0 || out.f64 != 0);
    return out;
  }
};

using Memory = std::vector<std::vector<char>>;  // of each operand

Value load(const std::vector<char>& memory, Type type, int64_t at) {
  Value value;
  value.type = type;
  if (type == kF64) std::memcpy(&value.f64, memory.data() + 8 * at, 8);
  else if (type == kF32 || type == kScale) std::memcpy(&value.f32, memory.data() + 4 * at, 4);
  else if (type == kI8) value.code = value.last = static_cast<int8_t>(memory[at]);
  else if (type == kI16) {
    int16_t code;
    std::memcpy(&code, memory.data() + 2 * at, 2);
    value.code = value.last = code;
  } else if (type == kU8) value.code = value.last = static_cast<uint8_t>(memory[at]);
  else std::memcpy(&value.half, memory.data() + 2 * at, 2);
  return value;
}

// A number that a leaf is reduced to: of all terms the sum, that of their absolute values, that of their squares, and
// the largest.
struct Number {
  std::string op;
  double sum = 0, absolute = 0, squares = 0, largest = 0;
  bool vague = false;

  void join(const std::string& by, double x, bool of_vague) {
    require(op.empty() || op == by, "a number of two kinds");
    op = by;
    vague = vague || of_vague;
    sum += x;
    absolute += std::fabs(x);
    squares += flushed(x * x);
    largest = std::isnan(x) || x > largest ? x : largest;
  }
  double value() const { return op == "norm" ? std::sqrt(squares) : op == "largest" ? largest : sum; }
  double size() const { return op == "norm" ? squares : absolute; }  // of what is rounded on the way

  bool is(double found, Type type) const {
    const double most = type == kF64 ? DBL_MAX : FLT_MAX, eps = type == kF64 ? 1e-13 : 1e-6;
    if (vague) return true;
    if (op == "largest") {
      const double rounded = type == kF64 ? largest : static_cast<double>(static_cast<float>(largest));
      return found == rounded || (std::isnan(found) && std::isnan(largest)) ||
             (std::fabs(largest) < 1e-37 && found == 0);
    }
    if (!(size() < most / 2)) return op != "norm" || std::isnan(size()) == std::isnan(found);
    return std::fabs(found - value()) <= eps * (op == "norm" ? value() : size()) + 1e-37;
  }
};

// What each result should be: per result its elements; per leaf its numbers.
struct Expected {
  std::vector<std::vector<Value>> results;
  std::vector<std::vector<Number>> numbers;
};

// Where the flag is false, results are what was in their memory, if that is an operand's, and 0 elsewhere.
void leave(const Case& c, const Memory& memory, Expected& expected) {
  for (size_t r = 0; r + c.reductions < c.rets.size(); ++r) {
    const Buffer& ret = c.rets[r];
    const bool stays = ret.shares >= 0 && c.args[ret.shares].bytes() == ret.bytes();
    const std::vector<char> zeros(ret.bytes());
    for (int64_t at = 0; at < ret.size(); ++at) {
      Value& value = expected.results[r][at];
      value = load(stays ? memory[ret.shares] : zeros, value.type, at);
    }
  }
  for (std::vector<Number>& numbers : expected.numbers)
    for (Number& number : numbers) number = Number{number.op};
}

Expected interpret(const Case& c, const Memory& memory) {
  const int64_t flats = c.flat_inputs.size(), flat_results = c.flat_outputs.size(), own = c.inputs - flats;
  require(own > 0 && (static_cast<int64_t>(c.args.size()) - 2 - flats) % own == 0, "operands are no whole leaves");
  const int64_t leaves = (c.args.size() - 2 - flats) / own;
  require(leaves > 0 && c.code.size() % kWords == 0 && c.temporaries >= 0, "no leaves, no program");
  require(c.args[0].dims.size() == 2, "the coefficients are no table");
  require(c.args.back().code == XLA_FFI_DataType_PRED && c.args.back().dims.empty(), "no flag");
  const int64_t rows = c.args[0].dims[0], columns = c.args[0].dims[1];
  require(rows == 1 || rows == leaves, "coefficients for other leaves");
  const int64_t arrays = c.inputs + c.outputs, scalars = columns + c.constants.size();

  std::vector<bool> has_scales(arrays);
  for (const int64_t i : c.scales) {
    require(i > 0 && i < arrays && !has_scales[i], "scales that are nowhere, or twice");
    require(!contains(i < c.inputs ? c.flat_inputs : c.flat_outputs, i < c.inputs ? i : i - c.inputs), "flat scales");
    has_scales[i] = true;
  }

  std::vector<Ready> program;
  for (int64_t k = 0; k < c.instructions(); ++k) program.emplace_back(c.instruction(k));
  std::vector<Block> slots(arrays + c.temporaries + scalars);
  std::vector<Type> holds(arrays + c.temporaries);
  Expected expected;
  for (const Buffer& ret : c.rets) expected.results.emplace_back(ret.size());
  std::vector<int64_t> flat_from(arrays, 0);
  const int64_t own_results = c.outputs - flat_results;
  require(
      c.reductions >= 0 && static_cast<int64_t>(c.rets.size()) == leaves * own_results + flat_results + c.reductions,
      "other results");
  int64_t arg = 1;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    std::vector<std::pair<int64_t, int64_t>> place(arrays);  // operand or result, and its first element
    int64_t size = c.args[arg].size(), ret = leaf * own_results;
    for (int64_t i = 0; i < arrays; ++i) {
      const bool in = i < c.inputs;
      const auto& flat = in ? c.flat_inputs : c.flat_outputs;
      const auto it = std::find(flat.begin(), flat.end(), in ? i : i - c.inputs);
      if (it != flat.end()) {
        place[i] = {(in ? 1 + leaves * own : leaves * own_results) + (it - flat.begin()), flat_from[i]};
        flat_from[i] += size;
      } else {
        place[i] = {in ? arg++ : ret++, 0};
        const Buffer& buffer = in ? c.args[place[i].first] : c.rets[place[i].first];
        const int64_t needed = has_scales[i] ? (size + kBlocked - 1) / kBlocked : size;
        require(buffer.size() == needed, "arrays of a leaf that have several sizes");
        require(!has_scales[i] || buffer.code == XLA_FFI_DataType_F32, "scales of another type");
      }
    }
    std::vector<Number> numbers(c.reductions);
    for (int64_t i = 0; i < scalars; ++i) {
      Value value;
      if (i >= columns) value.f64 = c.constants[i - columns];
      else if (c.args[0].code == XLA_FFI_DataType_F64)
        value.f64 = load(memory[0], kF64, (rows == 1 ? 0 : leaf) * columns + i).f64;
      else value.f64 = load(memory[0], kF32, (rows == 1 ? 0 : leaf) * columns + i).f32;
      value.f32 = static_cast<float>(value.f64);
      value.truth = value.f64 != 0;
      slots[arrays + c.temporaries + i] = {value};
    }
    for (int64_t first = 0; first < size; first += kBlocked) {
      const int64_t count = std::min(kBlocked, size - first);
      const auto elements = [&](int64_t i) {  // of an array: the first, and their number
        return has_scales[i] ? std::pair{first / kBlocked, int64_t{1}} : std::pair{place[i].second + first, count};
      };
      std::fill(holds.begin(), holds.end(), kNothing);
      for (int64_t i = 0; i < arrays; ++i) {
        const auto [buffer, from] = place[i];
        const int source = i < c.inputs ? static_cast<int>(buffer) : c.rets[buffer].shares;
        if (source < 0) continue;
        const Buffer& array = (i < c.inputs ? c.args : c.rets)[buffer];
        require(from + size <= array.size() || has_scales[i], "a flat array that is too small");
        holds[i] = has_scales[i] ? kScale : type_of(array.code);
        slots[i].clear();
        const auto [begin, number] = elements(i);
        for (int64_t at = begin; at < begin + number; ++at) slots[i].push_back(load(memory[source], holds[i], at));
      }
      for (const Ready& ready : program) {
        const Block* x[4];
        for (int i = 0; i < ready.op->arity; ++i) {
          const int64_t slot = ready.in.operands[i];
          require(slot >= 0 && slot < static_cast<int64_t>(slots.size()), "no slot");
          const bool scalar = slot >= arrays + c.temporaries;
          require(scalar == ((ready.in.scalars >> i & 1) != 0), "a scalar for a block");
          require(scalar || holds[slot] == ready.types.from[i], "another type");
          x[i] = &slots[slot];
        }
        Block made = ready(x, count, first);
        if (ready.types.to == kReduced) {
          require(ready.in.to >= 0 && ready.in.to < c.reductions, "no such number");
          for (const Value& value : made)
            numbers[ready.in.to].join(ready.op->name, value.type == kF64 ? value.f64 : value.f32, value.vague);
          continue;
        }
        require(ready.in.to >= c.inputs && ready.in.to < arrays + c.temporaries, "nothing to write");
        for (Value& value : made) value.type = ready.types.to;
        slots[ready.in.to] = std::move(made);
        holds[ready.in.to] = ready.types.to;
      }
      for (int64_t i = c.inputs; i < arrays; ++i) {
        const int64_t ret = place[i].first;
        require(holds[i] == (has_scales[i] ? kScale : type_of(c.rets[ret].code)),
                "a result that is not written, or of another type");
        std::copy(slots[i].begin(), slots[i].end(), expected.results[ret].begin() + elements(i).first);
      }
    }
    expected.numbers.push_back(numbers);
  }
  if (memory.back()[0] == 0) leave(c, memory, expected);
  return expected;
}

// ---- Valid cases ---------------------------------------------------------------------------------------------------

const std::vector<Type> kTypes = {kF32, kF32, kF32, kBf16, kBf16, kF16, kI16, kF64};
const std::vector<int64_t> kSizes = {0, 1, 1, 2, 3, 5, 8, 31, 33, 100, 255, 256, 257, 511, 512, 513, 700, 1030};

// Of elements, where a slot may be written over by what is made of it; 0 where never.
int64_t width_of(Type type) { return type == kScale ? 0 : type == kTruth ? 1 : bytes_of(code_of(type)); }

// A careless one may once write over elements of another size that it reads.
std::optional<Case> valid(Chance& chance, bool careless) {
  Case c;
  std::vector<Type> stored;
  const bool narrow = chance.one_in(2);  // without double, blocks are larger
  for (int64_t i = chance.between(1, 4); i > 0; --i) stored.push_back(kTypes[chance.below(kTypes.size() - narrow)]);
  std::vector<Type> codes;  // and the scales of them
  for (int64_t i = chance.one_in(2) ? chance.between(1, 2) : 0; i > 0; --i) {
    codes.insert(codes.end(), {chance.one_in(2) ? kI8 : kU8, kScale});
    stored.insert(stored.begin() + chance.below(stored.size() + 1), codes.end()[-2]);
    stored.insert(stored.begin() + chance.between(1, stored.size()), kScale);
  }
  c.inputs = stored.size();
  c.reductions = chance.one_in(3) ? chance.between(1, 3) : 0;
  for (int64_t i = chance.between(c.reductions == 0 || chance.one_in(2), 3); i > 0; --i)
    stored.push_back(stored[chance.below(c.inputs)]);
  if (!codes.empty() && chance.one_in(2)) stored.insert(stored.end(), codes.begin(), codes.end());
  c.outputs = stored.size() - c.inputs;
  c.temporaries = chance.between(0, 4);
  const int64_t leaves = chance.one_in(40) ? 70 : chance.between(1, 4), arrays = c.inputs + c.outputs;
  for (int64_t i = 0; i < arrays; ++i)
    if (stored[i] == kScale) c.scales.push_back(i);
  for (int64_t i = 0; i + 1 < c.inputs; ++i)
    if (chance.one_in(4)) c.flat_inputs.push_back(i + chance.below(2));  // never all
  c.flat_inputs.erase(std::unique(c.flat_inputs.begin(), c.flat_inputs.end()), c.flat_inputs.end());
  int64_t whole = 0;  // the first that is not flat: it says how large a leaf is
  while (contains(c.flat_inputs, whole)) ++whole;
  for (const int64_t i : c.scales)
    if (i == whole || contains(c.flat_inputs, i)) c.flat_inputs.clear();
  for (int64_t i = c.outputs; i-- > 0;)
    if (chance.one_in(4) && stored[c.inputs + i] != kScale) c.flat_outputs.push_back(i);
  std::vector<int32_t> op_of(c.reductions, -1);
  for (int64_t i = chance.between(!codes.empty(), 2); i > 0; --i)
    c.constants.push_back(chance.of<double>(
        {0, -0.0, 1, -1, 2, 0.5, 1e-39, 3, INFINITY, NAN, 1e300, -7.25, 12345678, 16777215, 4294967040, 4294967296}));
  const int64_t columns = chance.below(4), rows = chance.one_in(2) ? 1 : leaves, memory = arrays + c.temporaries;
  const int64_t scalars = columns + static_cast<int64_t>(c.constants.size());

  std::vector<Type> holds = stored;
  std::fill(holds.begin() + c.inputs, holds.end(), kNothing);
  holds.resize(memory, kNothing);
  std::vector<int64_t> last_read(arrays, -1), first_write(arrays, 1 << 30);
  std::vector<bool> waits(memory + scalars);  // to be read since it was written
  const auto emit = [&](const Instruction& in) {
    const int64_t k = c.instructions();
    for (int i = 0; i < ops()[in.op].arity; ++i) {
      waits[in.operands[i]] = false;
      if (in.operands[i] < arrays) last_read[in.operands[i]] = k;
    }
    c.add(in);
    if (reduces(ops()[in.op])) {
      op_of[in.to] = in.op;
      return;
    }
    if (in.to < arrays) first_write[in.to] = std::min(first_write[in.to], k);
    holds[in.to] = types_of(ops()[in.op], in.is_f64).to;
    waits[in.to] = true;
  };
  // One of some slots, mostly one that waits, or one that does not: most of what is computed has to reach a result.
  const auto one_of = [&](const std::vector<int32_t>& slots, bool waiting) {
    std::vector<int32_t> liked;
    for (const int32_t slot : slots)
      if (waits[slot] == waiting) liked.push_back(slot);
    return chance.of(liked.empty() || chance.one_in(5) ? slots : liked);
  };
  static const std::vector<int32_t> of_codes = {op_named("decode_i8"),   op_named("decode_u8"), op_named("scales"),
                                                op_named("dither_bf16"), op_named("encode_i8"), op_named("encode_u8")};
  static const std::vector<int32_t> of_weights = {op_named("join_i16"), op_named("join_i8"),   op_named("dither_f24"),
                                                  op_named("upper"),    op_named("lower_i16"), op_named("lower_i8")};
  for (int64_t tries = chance.between(c.temporaries, 40); tries > 0; --tries) {
    Instruction in{};
    in.op = static_cast<int32_t>(chance.below(ops().size()));
    if (!codes.empty() && chance.one_in(2)) in.op = chance.of(of_codes);
    else if (chance.one_in(6)) in.op = chance.of(of_weights);
    while (c.reductions > 0 && chance.one_in(4) && !reduces(ops()[in.op]))
      in.op = static_cast<int32_t>(chance.below(ops().size()));
    in.is_f64 = !narrow && chance.one_in(4);
    const Op& op = ops()[in.op];
    const Types types = types_of(op, in.is_f64);
    if (narrow && types.to == kF64) continue;
    in.scalars = chance.of(op.variants);
    bool found = true;
    for (int i = 0; i < op.arity && found; ++i) {
      std::vector<int32_t> slots;
      for (int64_t slot = 0; slot < memory + scalars; ++slot)
        if ((in.scalars >> i & 1) ? slot >= memory : slot < memory && holds[slot] == types.from[i])
          slots.push_back(static_cast<int32_t>(slot));
      found = !slots.empty();
      if (found) in.operands[i] = one_of(slots, true);
    }
    std::vector<int32_t> targets, over;
    for (int32_t i = 0; reduces(op) && i < c.reductions; ++i)
      if (op_of[i] < 0 || op_of[i] == in.op) targets.push_back(i);
    for (int64_t slot = c.inputs; !reduces(op) && slot < memory; ++slot) {
      if (slot < arrays && stored[slot] != types.to) continue;
      const int64_t width = width_of(types.to);
      bool fits = true;
      for (int i = 0; i < op.arity; ++i)
        fits = fits && (in.operands[i] != slot || (width > 0 && width_of(types.from[i]) == width));
      (fits ? targets : over).push_back(static_cast<int32_t>(slot));
    }
    if (found && careless && !over.empty()) targets = over, careless = false;
    if (!found || targets.empty()) continue;
    in.to = reduces(op) ? chance.of(targets) : one_of(targets, false);
    emit(in);
  }
  if (c.instructions() < c.temporaries) return std::nullopt;

  // Results, some in the memory of an array; those that are not written have to be, or are copies, or made anew: scales
  // of numbers that there are, and then codes with any scales.
  std::vector<int64_t> in_place(arrays, -1), results;
  for (int64_t o = c.inputs; o < arrays; ++o) results.insert(stored[o] == kScale ? results.begin() : results.end(), o);
  const auto any = [&](Type type) {
    std::vector<int32_t> slots;
    for (int64_t slot = 0; slot < memory; ++slot) {
      bool there = holds[slot] == type;
      for (int64_t o = c.inputs; o < arrays; ++o)
        there = there && (in_place[o] != slot || first_write[o] == (1 << 30));
      if (there) slots.push_back(static_cast<int32_t>(slot));
    }
    return slots.empty() ? -1 : one_of(slots, true);
  };
  for (const int64_t o : results) {
    for (int64_t i = 0; i < c.inputs; ++i)
      if (stored[i] == stored[o] && contains(c.flat_inputs, i) == contains(c.flat_outputs, o - c.inputs) &&
          last_read[i] <= first_write[o] && std::find(in_place.begin(), in_place.end(), i) == in_place.end() &&
          chance.one_in(2))
        in_place[o] = i;
    if (first_write[o] < (1 << 30) || in_place[o] >= 0) continue;
    if (stored[o] == kI16) {
      const int32_t from = any(kF32);
      if (from < 0) return std::nullopt;
      emit({op_named("lower_i16"), 0, 0, static_cast<int32_t>(o), {from, 0, 0, 0}});
      continue;
    }
    if (stored[o] == kScale || stored[o] == kI8 || stored[o] == kU8) {
      const char* const name = stored[o] == kScale ? "scales" : stored[o] == kI8 ? "encode_i8" : "encode_u8";
      Instruction in{op_named(name), 0, stored[o] == kScale ? 0 : 4, static_cast<int32_t>(o), {any(kF32), 0, 0, 0}};
      if (stored[o] != kScale) {
        in.operands[1] = any(kScale);
        in.operands[2] = static_cast<int32_t>(memory + chance.below(scalars));
      }
      if (in.operands[0] < 0 || in.operands[1] < 0) return std::nullopt;
      emit(in);
      continue;
    }
    const char* const names[] = {"", "", "", "", "", "copy_bf16", "copy_f16", "copy", "copy"};
    Instruction in{op_named(names[stored[o]]), stored[o] == kF64, 0, static_cast<int32_t>(o), {0, 0, 0, 0}};
    const auto from = std::find(stored.begin(), stored.begin() + c.inputs, stored[o]) - stored.begin();
    in.operands[0] = static_cast<int32_t>(from);
    for (int64_t other = c.inputs; other < arrays; ++other)
      if (in_place[other] == from && first_write[other] < c.instructions()) return std::nullopt;  // it is gone
    emit(in);
  }

  Buffer table;
  table.code = chance.one_in(3) ? XLA_FFI_DataType_F64 : XLA_FFI_DataType_F32;
  table.dims = {rows, columns};
  c.args.push_back(table);
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    sizes.push_back(leaves > 4           ? chance.below(40)
                    : chance.one_in(800) ? chance.between(30000, 80000)
                                         : chance.of(kSizes));
    total += sizes.back();
  }
  const auto size_of = [&](int64_t i, int64_t leaf) {
    return stored[i] == kScale ? (sizes[leaf] + kBlocked - 1) / kBlocked : sizes[leaf];
  };
  const auto shape = [&](int64_t size) {
    return chance.one_in(4) && size % 2 == 0 ? std::vector<int64_t>{2, size / 2} : std::vector<int64_t>{size};
  };
  std::vector<std::vector<int>> arg_of(leaves, std::vector<int>(c.inputs, -1));
  for (int64_t leaf = 0; leaf < leaves; ++leaf) {
    for (int64_t i = 0; i < c.inputs; ++i) {
      if (contains(c.flat_inputs, i)) continue;
      arg_of[leaf][i] = static_cast<int>(c.args.size());
      c.args.push_back({code_of(stored[i]), shape(size_of(i, leaf))});
    }
  }
  std::map<int64_t, int> flat_arg;
  for (int64_t i : c.flat_inputs) {
    flat_arg[i] = static_cast<int>(c.args.size());
    c.args.push_back({code_of(stored[i]), {total}});
  }
  const auto result = [&](int64_t o, const std::vector<int64_t>& dims, int shares) {
    Buffer ret{code_of(stored[o]), dims};
    if (in_place[o] >= 0) ret.shares = shares;
    c.rets.push_back(ret);
  };
  for (int64_t leaf = 0; leaf < leaves; ++leaf)
    for (int64_t o = c.inputs; o < arrays; ++o)
      if (!contains(c.flat_outputs, o - c.inputs))
        result(o, {size_of(o, leaf)}, in_place[o] < 0 ? -1 : arg_of[leaf][in_place[o]]);
  for (int64_t o : c.flat_outputs) {
    const int64_t i = in_place[o + c.inputs];
    result(o + c.inputs, {total}, i < 0 ? -1 : flat_arg[i]);
  }
  for (int64_t i = 0; i < c.reductions; ++i) c.rets.push_back({code_of(chance.one_in(3) ? kF64 : kF32), {leaves}});
  c.args.push_back({XLA_FFI_DataType_PRED, {}});
  return c;
}

// ---- Hostile cases -------------------------------------------------------------------------------------------------

int64_t odd_number(Chance& chance) {
  return chance.of<int64_t>(
      {-1, 0, 1, 2, 3, 5, 7, 8, 100, 4097, 1 << 20, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, INT64_MAX / 2048});
}

void change(Case& c, Chance& chance) {
  std::vector<Buffer*> buffers;
  for (Buffer& x : c.args) buffers.push_back(&x);
  for (Buffer& x : c.rets) buffers.push_back(&x);
  Buffer* const buffer = buffers.empty() ? nullptr : chance.of(buffers);
  auto& flat = chance.one_in(2) ? c.flat_inputs : c.flat_outputs;
  switch (chance.below(19)) {
    case 0: c.inputs = odd_number(chance); break;
    case 1: c.outputs = odd_number(chance); break;
    case 2: c.temporaries = odd_number(chance); break;
    case 3: c.reductions = chance.one_in(2) ? c.reductions + 1 : odd_number(chance); break;
    case 4:
    case 5:
    case 6:  // a word of the program: mostly a small number, as a wrong slot would be
      if (!c.code.empty())
        c.code[chance.below(c.code.size())] =
            static_cast<int32_t>(chance.one_in(4) ? odd_number(chance) : chance.between(-1, ops().size()));
      break;
    case 7: c.code.resize(chance.below(c.code.size() + 1)); break;
    case 8:
      for (int64_t i = chance.between(1, 20); i > 0; --i) c.code.push_back(static_cast<int32_t>(chance.below(12)));
      break;
    case 9: flat.push_back(chance.one_in(2) ? odd_number(chance) : chance.below(5)); break;
    case 10:
      if (!flat.empty()) flat[chance.below(flat.size())] = chance.one_in(2) ? odd_number(chance) : chance.below(5);
      break;
    case 11:
      if (!flat.empty()) flat.pop_back();
      break;
    case 12: {
      auto& list = chance.one_in(2) ? c.args : c.rets;
      if (!list.empty()) {
        if (chance.one_in(2)) list.erase(list.begin() + chance.below(list.size()));
        else list.push_back(chance.of(list));
        for (Buffer& ret : c.rets)
          if (ret.shares >= static_cast<int>(c.args.size())) ret.shares = -1;
      }
      break;
    }
    case 13:
      if (buffer && !buffer->dims.empty()) {
        int64_t& dim = buffer->dims[chance.below(buffer->dims.size())];
        dim = chance.of<int64_t>({dim - 1, dim + 1, dim / 2, 2 * dim, 0, 1, -1, -dim});
      }
      break;
    case 14:
      if (buffer)
        buffer->dims = chance.of<std::vector<int64_t>>({{},
                                                        {1},
                                                        {3, 0},
                                                        {2, 2},
                                                        {1, 2, 3},
                                                        {1, 5},
                                                        {5, 1},
                                                        {700},
                                                        {INT64_MAX, INT64_MAX, 0},
                                                        {0, INT64_MIN},
                                                        {INT64_MAX, -2}});
      break;
    case 15:
      if (buffer)
        buffer->code = chance.of<XLA_FFI_DataType>({XLA_FFI_DataType_F32, XLA_FFI_DataType_F64, XLA_FFI_DataType_BF16,
                                                    XLA_FFI_DataType_F16, XLA_FFI_DataType_S32, XLA_FFI_DataType_PRED,
                                                    XLA_FFI_DataType_S8, XLA_FFI_DataType_U8, XLA_FFI_DataType_S16,
                                                    XLA_FFI_DataType_C64, XLA_FFI_DataType_C128,
                                                    XLA_FFI_DataType_F8E5M2, XLA_FFI_DataType_TOKEN});
      break;
    case 16:  // two in one memory, or a little apart in it
      if (!c.rets.empty() && !c.args.empty()) {
        Buffer& ret = c.rets[chance.below(c.rets.size())];
        ret.shares = static_cast<int>(chance.below(c.args.size()));
        ret.shift = chance.of<int64_t>({0, 0, 1, 2, 4, 8, 64});
      }
      break;
    case 17:
      if (buffer && chance.one_in(2)) buffer->nowhere = true;
      else c.constants.resize(chance.below(4));
      break;
    case 18: {  // scales of something else
      const int64_t position = chance.one_in(3) ? odd_number(chance) : chance.below(c.args.size() + c.rets.size());
      if (c.scales.empty() || chance.one_in(3)) c.scales.push_back(position);
      else if (chance.one_in(2)) chance.of<int64_t*>({&c.scales.front(), &c.scales.back()})[0] = position;
      else c.scales.pop_back();
      break;
    }
  }
}

// ---- XLA's side ----------------------------------------------------------------------------------------------------

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  void schedule(XLA_FFI_Task* task, void* data) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back({task, data});
    }
    wake_.notify_one();
  }
  int64_t size() const { return threads_.size(); }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return over_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const auto [task, data] = tasks_.front();
      tasks_.pop_front();
      lock.unlock();
      task(data);
      lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::pair<XLA_FFI_Task*, void*>> tasks_;
  std::vector<std::thread> threads_;
  bool over_ = false;
};

Pool& pool() {
  static Pool pool(3);
  return pool;
}

const XLA_FFI_Api& api() {
  static const XLA_FFI_Api api = [] {
    XLA_FFI_Api api{};
    api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    api.XLA_FFI_Error_Create = +[](XLA_FFI_Error_Create_Args* args) { return new XLA_FFI_Error{args->message}; };
    api.XLA_FFI_Error_GetMessage =
        +[](XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->message.c_str(); };
    api.XLA_FFI_Error_Destroy = +[](XLA_FFI_Error_Destroy_Args* args) { delete args->error; };
    api.XLA_FFI_ThreadPool_Schedule = +[](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
      pool().schedule(args->task, args->data);
      return nullptr;
    };
    api.XLA_FFI_ThreadPool_NumThreads = +[](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
      *args->num_threads = pool().size();
      return nullptr;
    };
    return api;
  }();
  return api;
}

void fill(char* data, const Buffer& buffer, Chance& chance) {
  static const std::vector<double> special = {0,     -0.0,     1,         -1,  0.5,   2.5,    -3.5,  1e-30, -1e30, 3e38,
                                              1e-37, INFINITY, -INFINITY, NAN, 1e-39, -1e-40, 65504, 65520, 1e-310};
  const bool specials = chance.one_in(2);
  int64_t odds = 0;  // of a special number, or 0 for zeros
  const auto number = [&] {
    if (odds == 0) return 0.0;
    if (specials && chance.one_in(odds)) return chance.of(special);
    const double x = static_cast<double>(chance.between(-4000, 4000)) / 64;
    return odds > 3 && chance.one_in(2) ? std::ldexp(x, -static_cast<int>(chance.below(30))) : x;
  };
  for (int64_t i = 0; i < buffer.size(); ++i) {
    if (i % kBlocked == 0) odds = chance.of<int64_t>({0, 3, 3, 3, 400, 400, 1 << 30, 1 << 30});
    const double x = number();
    const float f32 = static_cast<float>(x);
    if (bytes_of(buffer.code) == 1) data[i] = static_cast<char>(chance.next());
    if (buffer.code == XLA_FFI_DataType_PRED && chance.one_in(4)) data[i] = 0;
    const auto code = static_cast<int16_t>(chance.next());
    if (type_of(buffer.code) == kI16) std::memcpy(data + 2 * i, &code, 2);
    if (type_of(buffer.code) == kF64) std::memcpy(data + 8 * i, &x, 8);
    if (type_of(buffer.code) == kF32) std::memcpy(data + 4 * i, &f32, 4);
    if (type_of(buffer.code) == kBf16 || type_of(buffer.code) == kF16) {
      const uint16_t half = to_half(x, half_of(type_of(buffer.code)));
      std::memcpy(data + 2 * i, &half, 2);
    }
  }
}

class Run {
 public:
  Run(const Case& c, Chance& chance) : case_(c) {
    std::vector<int64_t> bytes;
    for (const Buffer& arg : c.args) bytes.push_back(arg.bytes());
    for (const Buffer& ret : c.rets)
      if (ret.shares >= 0) bytes[ret.shares] = std::max(bytes[ret.shares], ret.shift + ret.bytes());
    for (size_t i = 0; i < c.args.size(); ++i) {
      memory_.emplace_back(std::malloc(std::max<int64_t>(bytes[i], 1)), std::free);
      std::memset(memory_[i].get(), 0x7f, bytes[i]);
      fill(arg(i), c.args[i], chance);
      before_.emplace_back(arg(i), arg(i) + bytes[i]);
    }
    for (const Buffer& ret : c.rets) {
      memory_.emplace_back(ret.shares >= 0 ? nullptr : std::malloc(std::max<int64_t>(ret.bytes(), 1)), std::free);
      if (ret.shares < 0) std::memset(memory_.back().get(), 0x7f, ret.bytes());
    }
  }

  char* arg(size_t i) const { return static_cast<char*>(memory_[i].get()); }
  char* ret(size_t i) const {
    const Buffer& ret = case_.rets[i];
    return ret.shares >= 0 ? arg(ret.shares) + ret.shift : static_cast<char*>(memory_[case_.args.size() + i].get());
  }

  // What the kernel refuses the call with, or nothing.
  std::optional<std::string> call() {
    const Case& c = case_;
    std::vector<XLA_FFI_Buffer> buffers;
    for (size_t i = 0; i < c.args.size() + c.rets.size(); ++i) {
      const bool in = i < c.args.size();
      const Buffer& x = in ? c.args[i] : c.rets[i - c.args.size()];
      void* data = x.nowhere ? nullptr : in ? arg(i) : ret(i - c.args.size());
      buffers.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, x.code, data, static_cast<int64_t>(x.dims.size()),
                         const_cast<int64_t*>(x.dims.data())});
    }
    std::vector<XLA_FFI_ArgType> arg_types(c.args.size(), XLA_FFI_ArgType_BUFFER);
    std::vector<XLA_FFI_RetType> ret_types(c.rets.size(), XLA_FFI_RetType_BUFFER);
    std::vector<void*> args, rets;
    for (size_t i = 0; i < buffers.size(); ++i) (i < c.args.size() ? args : rets).push_back(&buffers[i]);

    struct Attribute {
      std::string name;
      XLA_FFI_AttrType type;
      XLA_FFI_Scalar scalar;
      XLA_FFI_Array array;
    };
    std::vector<Attribute> attributes;
    const auto array = [&](const char* name, XLA_FFI_DataType type, const auto& values) {
      void* data = const_cast<void*>(static_cast<const void*>(values.data()));
      attributes.push_back({name, XLA_FFI_AttrType_ARRAY, {}, {type, values.size(), data}});
    };
    const auto number = [&](const char* name, const int64_t& value) {
      attributes.push_back({name, XLA_FFI_AttrType_SCALAR, {XLA_FFI_DataType_S64, const_cast<int64_t*>(&value)}, {}});
    };
    array("code", XLA_FFI_DataType_S32, c.code);  // by name, as XLA has them
    array("constants", XLA_FFI_DataType_F64, c.constants);
    array("flat_inputs", XLA_FFI_DataType_S64, c.flat_inputs);
    array("flat_outputs", XLA_FFI_DataType_S64, c.flat_outputs);
    number("inputs", c.inputs);
    number("outputs", c.outputs);
    number("reductions", c.reductions);
    array("scales", XLA_FFI_DataType_S64, c.scales);
    number("temporaries", c.temporaries);
    std::vector<XLA_FFI_AttrType> types;
    std::vector<XLA_FFI_ByteSpan> spans;
    for (const Attribute& x : attributes) spans.push_back({x.name.data(), x.name.size()}), types.push_back(x.type);
    std::vector<XLA_FFI_ByteSpan*> names;
    std::vector<void*> values;
    for (size_t i = 0; i < attributes.size(); ++i) {
      Attribute& x = attributes[i];
      names.push_back(&spans[i]);
      values.push_back(x.type == XLA_FFI_AttrType_ARRAY ? static_cast<void*>(&x.array) : &x.scalar);
    }

    XLA_FFI_CallFrame frame{};
    frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.api = &api();
    frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
    frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(args.size()), arg_types.data(), args.data()};
    frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(rets.size()), ret_types.data(), rets.data()};
    frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE,
                   nullptr,
                   static_cast<int64_t>(names.size()),
                   types.data(),
                   names.data(),
                   values.data()};
    XLA_FFI_Error* const error = gradtx_native_map(&frame);
    if (error == nullptr) return std::nullopt;
    const std::string message = error->message;
    delete error;
    return message;
  }

  // Where the results are not what they should be, or an array is changed that should not be; empty if all is right.
  std::string wrong() const {
    const Expected expected = interpret(case_, before_);
    for (size_t i = 0; i < case_.args.size(); ++i) {
      bool written = false;
      for (const Buffer& ret : case_.rets) written = written || ret.shares == static_cast<int>(i);
      if (!written && !std::equal(before_[i].begin(), before_[i].end(), arg(i)))
        return "operand " + std::to_string(i) + " is changed";
    }
    for (size_t r = 0; r < case_.rets.size(); ++r) {
      const std::vector<char> found(ret(r), ret(r) + case_.rets[r].bytes());
      for (int64_t at = 0; at < case_.rets[r].size(); ++at) {
        const std::string where = "result " + std::to_string(r) + " at " + std::to_string(at);
        if (const int64_t k = r - (case_.rets.size() - case_.reductions); k >= 0) {
          const Number& number = expected.numbers[at][k];
          const Type type = type_of(case_.rets[r].code);
          const Value x = load(found, type, at);
          const double y = type == kF64 ? x.f64 : x.f32;
          if (number.is(y, type)) continue;
          return where + ": " + std::to_string(y) + " for " + std::to_string(number.value());
        }
        const Value& y = expected.results[r][at];
        const Value x = load(found, y.type, at);
        if (y.type == kI8 || y.type == kU8 || y.type == kI16) {
          if (x.code >= y.code && x.code <= y.last) continue;
          return where + ": code " + std::to_string(x.code) + " for " + std::to_string(y.code);
        }
        if (y.vague) continue;
        const auto number = [&](const Value& v) {
          if (y.type == kF64) return v.f64;
          return y.type == kF32 || y.type == kScale ? double{v.f32} : from_half(v.half, half_of(y.type));
        };
        const double p = number(x), q = number(y);
        if (std::isnan(p) && std::isnan(q)) continue;
        if (p != q || std::signbit(p) != std::signbit(q))
          return where + ": " + std::to_string(p) + " for " + std::to_string(q);
      }
    }
    return {};
  }

 private:
  const Case& case_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> memory_;
  Memory before_;
};

void show(const Case& c) {
  std::fprintf(stderr, "%lld inputs, %lld outputs, %lld reductions, %lld temporaries, %zu operands, %zu results\n",
               static_cast<long long>(c.inputs), static_cast<long long>(c.outputs),
               static_cast<long long>(c.reductions), static_cast<long long>(c.temporaries), c.args.size(),
               c.rets.size());
  for (const int64_t i : c.scales) std::fprintf(stderr, "  scales at %lld\n", static_cast<long long>(i));
  for (int64_t k = 0; k < c.instructions(); ++k) {
    const Instruction in = c.instruction(k);
    const bool known = in.op >= 0 && in.op < static_cast<int64_t>(ops().size());
    std::fprintf(stderr, "  %s.%s scalars %d: %d <- %d %d %d %d\n", known ? ops()[in.op].name.c_str() : "?",
                 in.is_f64 ? "f64" : "f32", in.scalars, in.to, in.operands[0], in.operands[1], in.operands[2],
                 in.operands[3]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t first = argc > 1 ? std::atoll(argv[1]) : 0, count = argc > 2 ? std::atoll(argv[2]) : 1000;
  int64_t valid_ones = 0, refused = 0, taken = 0, instructions = 0;
  std::map<std::string, int64_t> reasons;
  for (int64_t number = first; number < first + count; ++number) {
    Chance chance(number);
    std::optional<Case> made;
    const bool hostile = number % 2 == 1, careless = hostile && chance.one_in(4);
    while (!(made = valid(chance, careless))) continue;
    for (int64_t k = hostile && !careless ? chance.between(1, 3) : 0; k > 0; --k) change(*made, chance);
    Run run(*made, chance);
    std::string wrong;
    const std::optional<std::string> words = run.call();
    if (words && !hostile) wrong = "a valid program is refused: " + *words;
    if (words && words->rfind("gradtx: ", 0) != 0) wrong = "refused by another: " + *words;
    if (!words) {
      try {
        wrong = run.wrong();
      } catch (const Invalid& invalid) {
        wrong = std::string("a call that is none is taken: ") + invalid.what();
      }
      instructions += made->instructions();
    }
    if (!wrong.empty()) {
      std::fprintf(stderr, "case %lld: %s\n", static_cast<long long>(number), wrong.c_str());
      show(*made);
      return 1;
    }
    (hostile ? words ? refused : taken : valid_ones) += 1;
    if (words) reasons[words->substr(0, words->find_first_of("0123456789"))] += 1;
  }
  std::printf(
      "%lld valid programs right to the bit, %lld instructions in all; of the hostile calls %lld refused, %lld "
      "still valid and right\n",
      static_cast<long long>(valid_ones), static_cast<long long>(instructions), static_cast<long long>(refused),
      static_cast<long long>(taken));
  if (std::getenv("GRADTX_FUZZ_REASONS"))
    for (const auto& [reason, times] : reasons)
      std::printf("%8lld %s\n", static_cast<long long>(times), reason.c_str());
  return 0;
}
