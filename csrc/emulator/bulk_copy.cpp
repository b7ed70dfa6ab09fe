#include "emulator/bulk_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <atomic>
#endif

namespace emu {
namespace {

// Below that the caches serve better than memory does.
[[maybe_unused]] constexpr size_t kLeastBytes = 16 << 10;
[[maybe_unused]] constexpr size_t kLine = 64;
[[maybe_unused]] constexpr size_t kPage = 4096;
[[maybe_unused]] constexpr size_t kPages = 4;  // side by side: each has a row of memory open

// A way to move a line of kLine bytes past the caches, to an address that is aligned to it, and kPages pages
// side by side. Behind `fence`, what was moved comes before whatever is stored next.
#if defined(__x86_64__)

struct Avx512 {
  static void fence() { _mm_sfence(); }  // such stores are in no order with others
  __attribute__((target("avx512f"))) static void line(char* dst, const char* src) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(dst), _mm512_loadu_si512(src));
  }
  __attribute__((target("avx512f"))) static void pages(char* dst, const char* src) {
    for (size_t at = 0; at < kPage; at += kLine) {
      for (size_t page = 0; page < kPages; ++page) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(dst + page * kPage + at),
                            _mm512_loadu_si512(src + page * kPage + at));
      }
    }
  }
};

struct Sse2 {
  static void fence() { _mm_sfence(); }
  static void line(char* dst, const char* src) {
    for (size_t at = 0; at < kLine; at += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(dst + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + at)));
    }
  }
  static void pages(char* dst, const char* src) {
    for (size_t at = 0; at < kPage; at += kLine) {
      for (size_t page = 0; page < kPages; ++page) line(dst + page * kPage + at, src + page * kPage + at);
    }
  }
};

#elif defined(__aarch64__)

struct Neon {
  // A hint to the caches only: these stores keep the order that others have.
  static void fence() { std::atomic_thread_fence(std::memory_order_release); }
  static void line(char* dst, const char* src) {
    __asm__ volatile(
        "ldp q0, q1, [%1]\n"
        "ldp q2, q3, [%1, #32]\n"
        "stnp q0, q1, [%0]\n"
        "stnp q2, q3, [%0, #32]\n"
        :
        : "r"(dst), "r"(src)
        : "memory", "v0", "v1", "v2", "v3");
  }
  static void pages(char* dst, const char* src) {
    for (size_t at = 0; at < kPage; at += kLine) {
      for (size_t page = 0; page < kPages; ++page) line(dst + page * kPage + at, src + page * kPage + at);
    }
  }
};

#endif

#if defined(__x86_64__) || defined(__aarch64__)

template <class Way>
void copy_past_caches(char* dst, const char* src, size_t length) {
  const size_t head = (kLine - reinterpret_cast<uintptr_t>(dst) % kLine) % kLine;
  std::memcpy(dst, src, head);
  dst += head, src += head, length -= head;
  for (; length >= kPages * kPage; length -= kPages * kPage) {
    Way::pages(dst, src);
    dst += kPages * kPage, src += kPages * kPage;
  }
  for (; length >= kLine; length -= kLine) {
    Way::line(dst, src);
    dst += kLine, src += kLine;
  }
  Way::fence();
  std::memcpy(dst, src, length);
}

#endif

}  // namespace

void bulk_copy(void* dst, const void* src, size_t length) {
  [[maybe_unused]] auto* const to = static_cast<char*>(dst);
  [[maybe_unused]] const auto* const from = static_cast<const char*>(src);
#if defined(__x86_64__)
  if (length >= kLeastBytes && (to + length <= from || from + length <= to)) {
    static const bool has_avx512 = __builtin_cpu_supports("avx512f");
    has_avx512 ? copy_past_caches<Avx512>(to, from, length) : copy_past_caches<Sse2>(to, from, length);
    return;
  }
#elif defined(__aarch64__)
  if (length >= kLeastBytes && (to + length <= from || from + length <= to)) {
    copy_past_caches<Neon>(to, from, length);
    return;
  }
#endif
  std::memmove(dst, src, length);
}

void bulk_copy_into_caches(void* dst, const void* src, size_t length) { std::memmove(dst, src, length); }

}  // namespace emu
