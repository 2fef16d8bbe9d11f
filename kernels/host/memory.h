// Memory in which a kernel cannot stray unseen. An array ends where a protected page begins, so that reading or writing
// past its end stops the kernel. Before it (and after it, where its alignment leaves up to 15 bytes) lie bytes of NaN,
// which spoil results that read them and are compared afterwards to find writes; before those, protected pages again.

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace td {

constexpr unsigned char POISON = 0xff;      // a NaN in every floating-point format
constexpr size_t FENCE = size_t{16} << 20;  // protected bytes on either side; they cost addresses, not memory

inline size_t page_size() {
    static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

struct Region {
    const char* name = nullptr;
    char *map = nullptr, *pages = nullptr, *data = nullptr;  // the whole mapping, the open pages, the array
    size_t map_bytes = 0, page_bytes = 0, bytes = 0, element_bytes = 1;

    // Makes room for `its_bytes` at an address that is `offset` modulo `alignment`; false if there is no memory.
    bool open(const char* its_name, size_t its_bytes, size_t alignment, size_t offset = 0) {
        name = its_name;
        bytes = its_bytes;
        page_bytes = (bytes + alignment + page_size() - 1) / page_size() * page_size();
        map_bytes = page_bytes + 2 * FENCE;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
        flags |= MAP_NORESERVE;
#endif
        void* address = mmap(nullptr, map_bytes, PROT_NONE, flags, -1, 0);
        if (address == MAP_FAILED) return false;
        map = static_cast<char*>(address);
        pages = map + FENCE;
        if (mprotect(pages, page_bytes, PROT_READ | PROT_WRITE) != 0) return false;
        const uintptr_t last = reinterpret_cast<uintptr_t>(pages) + page_bytes - bytes;
        data = reinterpret_cast<char*>(last - (last - offset) % alignment);
        poison_edges();
        return true;
    }

    void poison_edges() const {
        memset(pages, POISON, front());
        memset(data + bytes, POISON, back());
    }

    void close() {
        if (map) munmap(map, map_bytes);
        map = nullptr;
    }

    size_t front() const { return static_cast<size_t>(data - pages); }
    size_t back() const { return static_cast<size_t>(pages + page_bytes - data) - bytes; }
    bool holds(const void* p, size_t n) const {
        const char* first = static_cast<const char*>(p);
        return first >= data && first + n <= data + bytes;
    }
    bool is_near(const void* p) const { return p >= map && p < map + map_bytes; }

    // Where something was written beside the array: the offset from its start, or 0.
    ptrdiff_t damage() const {
        const ptrdiff_t end = static_cast<ptrdiff_t>(bytes + back());
        for (ptrdiff_t i = -1; i >= -static_cast<ptrdiff_t>(front()); i--)
            if (static_cast<unsigned char>(data[i]) != POISON) return i;
        for (ptrdiff_t i = static_cast<ptrdiff_t>(bytes); i < end; i++)
            if (static_cast<unsigned char>(data[i]) != POISON) return i;
        return 0;
    }
};

}  // namespace td
