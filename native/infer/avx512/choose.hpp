// Which templates a weight needs.
#pragma once

#include "product.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

template <class T>
struct Type {
    using type = T;
};

// Calls body with the source of indices and the table of levels.
template <class Body>
inline auto with_form(const Weight& w, Body body) {
    const int total = w.bits + w.id_bits;
    if (w.bits > 4) {
        if (total <= 6) return body(Type<AnyBits<false>>{}, Type<Words64>{});
        if (total == 7) return body(Type<AnyBits<false>>{}, Type<Bytes<128>>{});
        return body(Type<AnyBits<false>>{}, Type<Bytes<256>>{});
    }
    if (w.bits < 4) {
        if (total <= 5) return body(Type<AnyBits<true>>{}, Type<Words32>{});
        return body(Type<AnyBits<true>>{}, Type<Words64>{});
    }
    if (w.id_bits == 0) return body(Type<Nibbles<false>>{}, Type<Words32>{});
    if (total <= 6) return body(Type<Nibbles<true>>{}, Type<Words64>{});
    return body(Type<Nibbles<true>>{}, Type<Bytes<128>>{});
}

// Calls body with the type by which inputs of a kind are multiplied.
template <class Body>
inline auto with_dot(Kind kind, Body body) {
#ifdef __AVX512BF16__
    if (kind == Kind::bf16) return body(Type<ByPairs>{});
#endif
    (void)kind;
    return body(Type<ByFloat>{});
}

inline bool has_groups(const Weight& w) { return w.groups > 1; }

inline size fast_packed_bytes(const Product& p) {
    return with_dot(p.kind, [&](auto dot) {
        return Layout<typename decltype(dot)::type>{p.weight.blocks(), false}.token_bytes();
    });
}

inline size fast_scratch_bytes(const Product& p) {
    return with_dot(p.kind, [&](auto dot) {
        return Scratch::bytes(p.weight, sizeof(typename decltype(dot)::type::Input));
    });
}

inline void fast_pack(const Product& p, u8* packed, size from, size to) {
    with_dot(p.kind, [&](auto dot) {
        pack_tokens<typename decltype(dot)::type>(p, p.weight.bits <= 4, by_blocks(p), packed, from, to);
    });
}

inline void fast_multiply(const Product& p, const u8* packed, size from, size to, u8* scratch) {
    with_dot(p.kind, [&](auto dot) {
        with_form(p.weight, [&](auto source, auto table) {
            using Source = typename decltype(source)::type;
            using Table = typename decltype(table)::type;
            using Dot = typename decltype(dot)::type;
            if (!has_groups(p.weight)) {
                Multiply<Source, Table, Dot, BY_ROW>(p, packed, scratch).units(from, to);
            } else if (!p.weight.zero) {
                Multiply<Source, Table, Dot, BY_GROUP>(p, packed, scratch).units(from, to);
            } else {
                Multiply<Source, Table, Dot, BY_GROUP_WITH_ZEROS>(p, packed, scratch).units(from, to);
            }
        });
    });
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
