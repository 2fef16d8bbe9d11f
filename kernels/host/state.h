// What the stand-in knows while a kernel runs, and how it reports a mistake: the first one is written into the launch's
// error text, and control goes back to run(), leaving the fibers where they are. A kernel owns nothing that would have to
// be freed.

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <vector>

namespace td {

uint3 thread_index, block_index, block_size, grid_size;
void* dynamic_shared;

enum Kind { VALUE, CONST_ARRAY, ARRAY };

struct Argument {
    const char* name;
    void* data;  // of the array (null: absent), or of the value
    size_t bytes, element_bytes;
    int kind;
};

struct Stacks {  // one pool for all compiled sources of the process, which run one at a time
    char** first;
    size_t count;
};

struct Launch {  // as tinydiff/cuda/host.py fills it in
    const char* kernel;
    unsigned grid[3], block[3];
    size_t shared;
    uint64_t seed;
    int count;
    const Argument* arguments;
    Stacks* stacks;
    char* error;
    size_t error_bytes;
};

namespace {

constexpr size_t STACK = 64 << 10;  // bytes of local memory that a thread may use

struct Copy {
    char* to;
    const char* from;  // null: zeros
    unsigned bytes;
    long group;
};

struct Fiber {
    Context context;
    char* stack = nullptr;
    uint3 index;
    unsigned number = 0;
    bool done = false;
    const char* waits = nullptr;  // for what, and where
    Place place = {nullptr, 0};
    std::vector<Copy> copies;
    long groups = 0;  // of copies, committed so far
    bool fenced = false;  // since it began or the block last counted
};

const Launch* launch;
void (*kernel_call)(void* const*);
std::vector<void*> values;
std::vector<Fiber*> fibers;  // a pool: grows to the largest block
std::vector<Region> shared, buffers;  // shared memory, the arguments' arrays
Region dynamic;                       // shared memory of the launch's own choice
std::vector<Warp> warps;
std::vector<Fiber*> ready;
Fiber* current;
Context scheduler;
unsigned threads, finished, at_barrier;
Fiber* first_at_barrier;
bool failed, in_fiber;
uint64_t random_state;
size_t slow_warp;  // no warp's number for none

uint64_t draw() {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}
size_t draw_below(size_t n) { return static_cast<size_t>(((draw() >> 32) * n) >> 32); }

std::string format(const char* text, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(line, sizeof line, text, arguments);
    va_end(arguments);
    return line;
}
std::string show(uint3 index) { return format("(%u, %u, %u)", index.x, index.y, index.z); }
std::string show(Place place) {
    const char* name = strrchr(place.file, '/');
    return format("%s:%d", name ? name + 1 : place.file, place.line);
}

void report(const std::string& what) {
    if (failed) return;
    failed = true;
    const std::string thread = in_fiber ? ", thread " + show(thread_index) : "";
    snprintf(launch->error, launch->error_bytes, "kernel %s, block %s%s: %s", launch->kernel, show(block_index).c_str(),
             thread.c_str(), what.c_str());
}

[[noreturn]] void fail(const std::string& what) {
    report(what);
    change(current->context, scheduler);
    abort();  // a failed fiber is not resumed
}

// What lies `offset` bytes from the start of an array.
std::string show_element(const Region& region, ptrdiff_t offset) {
    const ptrdiff_t size = static_cast<ptrdiff_t>(region.element_bytes);
    const ptrdiff_t index = offset < 0 ? (offset - size + 1) / size : offset / size;
    return format("%s[%td], and it has %zu elements", region.name, index, region.bytes / region.element_bytes);
}

std::vector<Region> shared_memory() {
    std::vector<Region> all = shared;
    if (dynamic.map) all.push_back(dynamic);
    return all;
}

bool in_shared_memory(const void* p, size_t n) {
    for (const Region& region : shared)
        if (region.holds(p, n)) return true;
    return dynamic.map && dynamic.holds(p, n);
}

}  // namespace
}  // namespace td
