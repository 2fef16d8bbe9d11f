// Runs a grid of blocks, one after another in random order, each block's threads as fibers; arrays are copied into
// guarded memory and back. Compiled once, and linked to the kernels of each source.

#include "../host.h"
#include "checks.h"
#include "fibers.h"
#include "memory.h"
#include "warp.h"
#include "state.h"
#include "scheduler.h"
#include "faults.h"

namespace td {
namespace {

constexpr size_t MOST_SHARED = 227 << 10;  // bytes of dynamic shared memory that the largest GPUs give (sm_90)

// Fills in `values`: pointers to the values, and to pointers into the buffers. An array given twice has one buffer.
bool bind_arguments(std::vector<void*>& pointers) {
    const int count = launch->count;
    std::vector<int> buffer_of(count, -1);
    pointers.assign(count, nullptr);
    values.assign(count, nullptr);
    buffers.clear();
    for (int i = 0; i < count; i++) {
        const Argument& a = launch->arguments[i];
        values[i] = a.kind == VALUE ? a.data : &pointers[i];
        if (a.kind == VALUE || !a.data) continue;
        for (int j = 0; j < i && buffer_of[i] < 0; j++)
            if (buffer_of[j] >= 0 && launch->arguments[j].data == a.data && launch->arguments[j].bytes == a.bytes)
                buffer_of[i] = buffer_of[j];
        if (buffer_of[i] < 0) {
            Region region;
            region.element_bytes = a.element_bytes;
            if (!region.open(a.name, a.bytes, 16, reinterpret_cast<uintptr_t>(a.data) % 16)) return false;
            memcpy(region.data, a.data, a.bytes);
            buffer_of[i] = static_cast<int>(buffers.size());
            buffers.push_back(region);
        }
        pointers[i] = buffers[buffer_of[i]].data;
    }
    for (size_t b = 0; b < buffers.size(); b++) {  // what is const everywhere is read-only
        bool writable = false;
        for (int i = 0; i < count; i++)
            writable |= buffer_of[i] == static_cast<int>(b) && launch->arguments[i].kind == ARRAY;
        if (!writable) mprotect(buffers[b].pages, buffers[b].page_bytes, PROT_READ);
    }
    return true;
}

void copy_back(const std::vector<void*>& pointers) {
    for (int i = 0; i < launch->count; i++) {
        const Argument& a = launch->arguments[i];
        if (a.kind == ARRAY && a.data) memcpy(a.data, pointers[i], a.bytes);
    }
}

void check_region(const Region& region, const char* kind) {
    const ptrdiff_t offset = region.damage();
    if (offset) report(std::string("writes to ") + kind + show_element(region, offset));
}

bool overlap(const Argument& a, const Argument& b) {
    const char *x = static_cast<const char*>(a.data), *y = static_cast<const char*>(b.data);
    return x && y && x < y + b.bytes && y < x + a.bytes && (x != y || a.bytes != b.bytes);
}

void check_overlaps() {  // which the copies would hide
    for (int i = 0; i < launch->count; i++)
        for (int j = 0; j < i; j++) {
            const Argument &a = launch->arguments[j], &b = launch->arguments[i];
            if (a.kind == VALUE || b.kind == VALUE || (a.kind == CONST_ARRAY && b.kind == CONST_ARRAY)) continue;
            if (overlap(a, b)) report(format("its arrays %s and %s overlap in part", a.name, b.name));
        }
}

void run_block() {
    for (const Region& region : shared) memset(region.data, POISON, region.bytes);
    if (dynamic.map) memset(dynamic.data, POISON, dynamic.bytes);
    warps.assign((threads + 31) / 32, Warp());
    ready.clear();
    finished = at_barrier = 0;
    draw_slow_warp();
    if (!start_fibers()) return report("there is no memory for its threads");
    in_fiber = true;
    resume_next(scheduler);
    in_fiber = false;
    for (const Region& region : buffers) check_region(region, "");
    for (const Region& region : shared_memory()) check_region(region, "shared memory ");
}

}  // namespace
}  // namespace td

namespace td {

Array::Array(const char* name, size_t bytes, size_t element_bytes) {
    Region region;
    if (!region.open(name, bytes, 16)) fail("there is no memory for its shared memory");
    region.element_bytes = element_bytes;
    memset(region.data, POISON, bytes);
    data = region.data;
    shared.push_back(region);
}

void copy_async(void* to, const void* from, unsigned bytes, bool valid, Place place) {
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(to) | (valid ? reinterpret_cast<uintptr_t>(from) : 0);
    const auto fail_copy = [&](const std::string& why) {
        fail(format("cp_async%u at %s ", bytes, show(place).c_str()) + why);
    };
    if (addresses % bytes) fail_copy(format("needs addresses that are multiples of %u", bytes));
    if (!in_shared_memory(to, bytes)) fail_copy("writes outside of shared memory");
    if (valid) {
        const volatile char* bytes_there = static_cast<const volatile char*>(from);
        (void)bytes_there[0], (void)bytes_there[bytes - 1];  // faults here, if at all
    }
    // On a GPU the copy may land at any time from now to the wait. Here the old content is gone at once and the new one
    // comes last, so that both reading it too early and overwriting too early are seen.
    memset(to, POISON, bytes);
    const char* source = valid ? static_cast<const char*>(from) : nullptr;
    current->copies.push_back({static_cast<char*>(to), source, bytes, current->groups});
}

void copy_commit() { current->groups++; }

void copy_wait(int groups) {
    auto& copies = current->copies;
    size_t landed = 0;
    for (; landed < copies.size() && copies[landed].group < current->groups - groups; landed++) {
        const Copy& copy = copies[landed];
        if (copy.from) memcpy(copy.to, copy.from, copy.bytes);
        else memset(copy.to, 0, copy.bytes);
    }
    copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(landed));
}

void fence() { current->fenced = true; }

unsigned count(unsigned* counter, Place place) {
    for (unsigned i = 0; i < threads; i++) {
        if (!fibers[i]->fenced)
            fail(format("count at %s, and thread %s has not called fence: what it wrote may come later than the count",
                        show(place).c_str(), show(fibers[i]->index).c_str()));
        fibers[i]->fenced = false;
    }
    return (*counter)++;
}

void fail_at(Place place, const char* what) { fail(std::string(what) + " (" + show(place) + ")"); }

// Draws the order of the blocks.
static std::vector<size_t> block_order() {
    std::vector<size_t> order(size_t{grid_size.x} * grid_size.y * grid_size.z);
    for (size_t i = 0; i < order.size(); i++) {
        order[i] = i;
        std::swap(order[i], order[draw_below(i + 1)]);
    }
    return order;
}

int run(const Launch* its_launch, unsigned most_threads, void (*kernel)(void* const*)) {
    launch = its_launch;
    kernel_call = kernel;
    failed = in_fiber = false;
    random_state = (launch->seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    block_index = {0, 0, 0};
    grid_size = {launch->grid[0], launch->grid[1], launch->grid[2]};
    block_size = {launch->block[0], launch->block[1], launch->block[2]};
    threads = block_size.x * block_size.y * block_size.z;
    if (threads > most_threads)
        report(format("blocks of %u threads, and it is declared for at most %u", threads, most_threads));
    if (launch->shared > MOST_SHARED)
        report(format("%zu bytes of shared memory, and there are at most %zu", launch->shared, MOST_SHARED));
    check_overlaps();
    for (const Region& region : shared) region.poison_edges();  // a launch that failed may have left its marks

    std::vector<void*> pointers;
    bool memory = failed || bind_arguments(pointers);
    if (launch->shared && !failed) memory &= dynamic.open("(dynamic)", launch->shared, 1024);
    dynamic_shared = dynamic.map ? dynamic.data : nullptr;
    if (!memory) report("there is no memory for its arrays");
    if (!failed) {
        Signals caught;
        for (const size_t block : block_order()) {
            const size_t x = block % grid_size.x, rest = block / grid_size.x;
            const size_t y = rest % grid_size.y, z = rest / grid_size.y;
            block_index = {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)};
            run_block();
            if (failed) break;
        }
    }
    if (!failed) copy_back(pointers);
    for (Region& region : buffers) region.close();
    buffers.clear();
    dynamic.close();
    return failed;
}

}  // namespace td
