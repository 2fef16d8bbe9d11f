// Who runs next. A fiber runs until it waits (barrier, collective) or ends; the next one is drawn from those that are
// ready. When none is ready and some have not ended, they wait for threads that will never come: a deadlock.

#include <algorithm>

namespace td {
namespace {

std::string deadlock() {
    std::vector<std::pair<std::string, std::vector<Fiber*>>> groups;  // by what they wait for
    for (unsigned i = 0; i < threads; i++) {
        const Fiber& fiber = *fibers[i];
        const std::string what =
            fiber.done ? "ended" : format("waits at %s (%s)", fiber.waits, show(fiber.place).c_str());
        auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == what; });
        if (group == groups.end()) group = groups.insert(groups.end(), {what, {}});
        group->second.push_back(fibers[i]);
    }
    std::string text = "deadlock: ";
    for (const auto& [what, members] : groups) {
        if (&what != &groups[0].first) text += "; ";
        const unsigned number = members[0]->number;
        text += format("thread %s of warp %u", show(members[0]->index).c_str(), number / 32);
        if (members.size() > 1) text += format(" and %zu more", members.size() - 1);
        text += members.size() == 1 ? " " + what : what == "ended" ? " ended" : " wait" + what.substr(5);
    }
    return text;
}

// Half of the time, one warp shall be slow until the next barrier: what others must not do before it, they then do.
void draw_slow_warp() { slow_warp = draw_below(2) ? draw_below(warps.size()) : warps.size(); }

void resume_next(Context& from) {
    size_t i = draw_below(ready.size());
    for (int again = 0; again < 3 && ready[i]->number / 32 == slow_warp; again++) i = draw_below(ready.size());
    current = ready[i];
    ready[i] = ready.back();
    ready.pop_back();
    thread_index = current->index;
    if (&from != &current->context) change(from, current->context);  // or it drew itself
}

void wait(const char* what, Place place) {
    Fiber* self = current;
    self->waits = what;
    self->place = place;
    if (ready.empty()) {
        in_fiber = false;
        fail(deadlock());
    }
    resume_next(self->context);
}

void enter() {
    kernel_call(values.data());
    Fiber* self = current;
    self->done = true;
    finished++;
    if (ready.empty()) {
        if (finished < threads) {
            in_fiber = false;
            report(deadlock());
        }
        change(self->context, scheduler);
    }
    resume_next(self->context);
    abort();  // a fiber that ended is not resumed
}

// The pool grows to the largest block. A stack with its protected page takes two mappings, of which Linux gives a process 65,530:
// a pool for each source used them up, and then malloc failed.
bool grow(Stacks& stacks, size_t stride) {
    char** first = static_cast<char**>(realloc(stacks.first, threads * sizeof(char*)));
    if (!first) return false;
    stacks.first = first;
    while (stacks.count < threads) {
        void* map = mmap(nullptr, stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) return false;
        if (mprotect(map, page_size(), PROT_NONE) != 0) {
            munmap(map, stride);
            return false;
        }
        stacks.first[stacks.count++] = static_cast<char*>(map);
    }
    return true;
}

bool start_fibers() {
    const size_t stride = STACK + page_size();
    if (launch->stacks->count < threads && !grow(*launch->stacks, stride)) return false;
    while (fibers.size() < threads) fibers.push_back(new Fiber);
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = *fibers[i];
        fiber.stack = launch->stacks->first[i];
        fiber.number = i;
        fiber.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
        fiber.done = false;
        fiber.copies.clear();
        fiber.groups = 0;
        fiber.fenced = false;
        // Stacks that all ended at the same place of their pages would compete for the same lines of the cache.
        char* top = fiber.stack + stride - i % 16 * 192;
        prepare(fiber.context, fiber.stack + page_size(), top, enter);
        ready.push_back(&fiber);
    }
    return true;
}

}  // namespace

void barrier(Place place) {
    if (at_barrier == 0) {
        first_at_barrier = current;
    } else if (place.line != first_at_barrier->place.line || strcmp(place.file, first_at_barrier->place.file) != 0) {
        fail(format("diverged barriers: it is at __syncthreads (%s), thread %s at that of %s", show(place).c_str(),
                    show(first_at_barrier->index).c_str(), show(first_at_barrier->place).c_str()));
    }
    if (++at_barrier == threads) {
        at_barrier = 0;
        draw_slow_warp();
        for (unsigned i = 0; i < threads; i++)
            ready.push_back(fibers[i]);  // itself too: any of them may go first
    }
    wait("__syncthreads", place);
}

static const char* const COLLECTIVES[] = {"a shuffle", "ldmatrix", "ldmatrix_trans",
                                         "mma_bf16",  "mma_fp16", "mma_tf32"};

static void check_row(const uint32_t* operands) {
    const char* row = reinterpret_cast<const char*>(static_cast<uintptr_t>(operands[0] | uint64_t{operands[1]} << 32));
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix needs rows at multiples of 16 bytes");
    if (!in_shared_memory(row, 16)) fail("ldmatrix reads a row outside of shared memory");
}

void collective(Collective kind, Place place, const uint32_t* operands, int count, uint32_t* results, int out) {
    Fiber* self = current;
    const unsigned number = self->number / 32, lane = self->number % 32;
    if (32 * number + 32 > threads)
        fail(format("%s in warp %u, which has only %u lanes", COLLECTIVES[kind], number, threads % 32));
    if (kind == LDMATRIX || kind == LDMATRIX_TRANS) check_row(operands);
    Warp& warp = warps[number];
    memcpy(warp.operands[lane], operands, 4 * count);
    if (warp.arrived == 0) {
        warp.kind = kind;
        warp.place = place;
    } else if (kind != warp.kind || place.line != warp.place.line || strcmp(place.file, warp.place.file) != 0) {
        fail(format("warp %u diverged: it is at %s (%s), other lanes are at %s (%s)", number, COLLECTIVES[kind],
                    show(place).c_str(), COLLECTIVES[warp.kind], show(warp.place).c_str()));
    }
    if (++warp.arrived < 32) {
        wait(COLLECTIVES[kind], place);
    } else {
        compute(warp);
        warp.arrived = 0;
        for (unsigned i = 0; i < 32; i++)
            if (i != lane) ready.push_back(fibers[32 * number + i]);
    }
    memcpy(results, warp.results[lane], 4 * out);
}

}  // namespace td
