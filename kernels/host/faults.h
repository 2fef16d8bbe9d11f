// Signals that a kernel raises by reaching a protected page (or dividing by zero, where the compiler could not check it)
// become reports that name the array.

#include <pthread.h>
#include <signal.h>

namespace td {
namespace {

const char* const STRAY = "accesses memory that belongs to none of its arrays";

std::string describe_fault(const char* p) {
    for (const Region& region : buffers)
        if (region.is_near(p))
            return region.holds(p, 1) ? format("writes to %s, which is const", region.name)
                                      : "reads or writes " + show_element(region, p - region.data);
    for (const Region& region : shared_memory())
        if (region.is_near(p)) return "reads or writes shared memory " + show_element(region, p - region.data);
    if (p >= current->stack && p < current->stack + page_size())
        return format("uses more than %zu KiB of local memory", STACK >> 10);
    if (reinterpret_cast<uintptr_t>(p) < (size_t{1} << 30)) {
        std::string absent;
        for (int i = 0; i < launch->count; i++)
            if (launch->arguments[i].kind != VALUE && !launch->arguments[i].data)
                absent += (absent.empty() ? "" : ", ") + std::string(launch->arguments[i].name);
        return "follows a null pointer" + (absent.empty() ? "" : " (absent: " + absent + ")");
    }
    return STRAY;
}

struct sigaction former[3];
const int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGFPE};
pthread_t launcher;  // other threads of the process have their own faults

void on_signal(int number, siginfo_t* info, void*) {
    if (in_fiber && pthread_equal(pthread_self(), launcher)) {
        if (number == SIGFPE) fail("divides an integer by zero");
#ifdef SI_KERNEL  // Linux on x86-64: an address outside of what the processor can address, and it does not tell which
        if (info->si_code == SI_KERNEL) fail(STRAY);
#endif
        fail(describe_fault(static_cast<const char*>(info->si_addr)));
    }
    for (int i = 0; i < 3; i++)  // not ours: it happens again, and whose it is catches it
        if (SIGNALS[i] == number) sigaction(number, &former[i], nullptr);
}

class Signals {  // caught while this lives, on a stack of their own (a fiber's may be full)
  public:
    Signals() {
        launcher = pthread_self();
        stack.ss_sp = memory;
        stack.ss_size = sizeof memory;
        stack.ss_flags = 0;
        sigaltstack(&stack, &former_stack);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &former[i]);
    }
    ~Signals() {
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &former[i], nullptr);
        sigaltstack(&former_stack, nullptr);
    }

  private:
    static char memory[64 << 10];
    stack_t stack = {}, former_stack = {};
};
char Signals::memory[64 << 10];

}  // namespace
}  // namespace td
