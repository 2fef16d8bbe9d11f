// What the compiler's checks of undefined behaviour (-fsanitize=...) call. The sanitizer's own library would print and go
// on or end the process; here the kernel fails like in any other mistake. All handlers get a record that starts with the
// place in the source.

#include <stdint.h>

namespace td {

[[noreturn]] void fail_at(Place place, const char* what);

struct CheckedPlace {  // as the compilers lay it out
    const char* file;
    uint32_t line, column;
};

[[noreturn]] inline void fail_check(const CheckedPlace* place, const char* what) {
    fail_at({place->file, static_cast<int>(place->line)}, what);
}

}  // namespace td

#define TD_CHECK(name, what, ...) \
    extern "C" void __ubsan_handle_##name(const td::CheckedPlace* place, ##__VA_ARGS__) { td::fail_check(place, what); }

TD_CHECK(out_of_bounds, "an index is outside of its array", void*)
TD_CHECK(type_mismatch_v1, "an address is not a multiple of what its type needs (float4: 16 bytes)", void*)
TD_CHECK(shift_out_of_bounds, "a shift is by less than 0 or by all bits and more", void*, void*)
TD_CHECK(divrem_overflow, "an integer is divided by zero", void*, void*)
TD_CHECK(add_overflow, "a signed sum overflows", void*, void*)
TD_CHECK(sub_overflow, "a signed difference overflows", void*, void*)
TD_CHECK(mul_overflow, "a signed product overflows", void*, void*)
TD_CHECK(negate_overflow, "a negation overflows", void*)
#undef TD_CHECK
