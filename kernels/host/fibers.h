// Fibers: stacks of their own, between which one operating system thread changes by hand. A change saves the registers
// that a called function must preserve, on the stack that it leaves, and takes them from the other: a few nanoseconds.

#include <stddef.h>
#include <stdint.h>

#ifndef TD_OWN_SWITCH  // 0 where nobody wrote one for the processor: the C library's (ucontext), slower
#if defined(__x86_64__) || defined(__aarch64__)
#define TD_OWN_SWITCH 1
#else
#define TD_OWN_SWITCH 0
#endif
#endif
#if !TD_OWN_SWITCH
#include <ucontext.h>
#endif

#if TD_OWN_SWITCH
// td_switch(from, to): *from = this stack's pointer; go on with the stack `to`. `asm` in the declaration gives the
// symbol the same name on systems that put an underscore before names of C.
extern "C" void td_switch(void** from, void* to) __asm__("td_switch") __attribute__((visibility("hidden")));
#if defined(__APPLE__)
#define TD_HIDDEN ".private_extern td_switch\n"
#else
#define TD_HIDDEN ".hidden td_switch\n"
#endif
#if defined(__x86_64__)
__asm__(
    ".text\n.globl td_switch\n" TD_HIDDEN
    "td_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");
#else
__asm__(
    ".text\n.align 2\n.globl td_switch\n" TD_HIDDEN
    "td_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#endif
#endif

namespace td {

#if TD_OWN_SWITCH
struct Context { void* stack_pointer; };

inline void change(Context& from, const Context& to) { td_switch(&from.stack_pointer, to.stack_pointer); }

// A context that starts `entry`, which must not return, on the stack that ends at `top`.
inline void prepare(Context& context, char*, char* top, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
#if defined(__x86_64__)
    *--sp = nullptr;                          // where the entry would return to: it finds its stack as after a call
    *--sp = reinterpret_cast<void*>(entry);  // where td_switch returns to
    for (int i = 0; i < 6; i++) *--sp = nullptr;
#else
    for (int i = 0; i < 20; i++) *--sp = nullptr;
    sp[11] = reinterpret_cast<void*>(entry);  // x30, the return address
#endif
    context.stack_pointer = sp;
}
#else
struct Context { ucontext_t registers; };

inline void change(Context& from, const Context& to) { swapcontext(&from.registers, &to.registers); }

inline void prepare(Context& context, char* bottom, char* top, void (*entry)()) {
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = bottom;
    context.registers.uc_stack.ss_size = static_cast<size_t>(top - bottom);
    context.registers.uc_link = nullptr;
    makecontext(&context.registers, entry, 0);
}
#endif

}  // namespace td
