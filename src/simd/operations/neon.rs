//! What NEON has for the operations.

use core::arch::aarch64 as arch;
use core::arch::asm;

use fearless_simd::aarch64::Neon;

#[cfg(target_endian = "big")]
compile_error!("xent_rs runs on little-endian AArch64: bytes are looked up by their places in numbers");

// These two stand in every hot loop: functions of `kernel!` are inlined if the compiler thinks so, these are always.

#[inline(always)]
pub(super) fn look_up_u32(_: Neon, table: &[u32; 8], index: [u32; 16]) -> [u32; 16] {
    let mut out = [0; 16];
    // SAFETY: the token proves that there is NEON; the table is read whole, as bytes, and the arrays in quarters of 4.
    unsafe {
        let [low, high] = registers(table.as_ptr().cast());
        let table = arch::uint8x16x2_t(low, high);
        // Number j is bytes 4·j to 4·j + 3 of the table.
        let (mask, four) = (arch::vdupq_n_u32(7), arch::vdupq_n_u32(0x0404_0404));
        let bytes = arch::vdupq_n_u32(0x0302_0100);
        for quarter in [0, 4, 8, 12] {
            let index = arch::vandq_u32(arch::vld1q_u32(index.as_ptr().add(quarter)), mask);
            let bytes = arch::vreinterpretq_u8_u32(arch::vmlaq_u32(bytes, index, four));
            let numbers = arch::vreinterpretq_u32_u8(arch::vqtbl2q_u8(table, bytes));
            arch::vst1q_u32(out.as_mut_ptr().add(quarter), numbers);
        }
    }
    out
}

#[inline(always)]
pub(super) fn look_up_u64(_: Neon, table: &[u64; 8], index: [u64; 8]) -> [u64; 8] {
    let mut out = [0; 8];
    // SAFETY: as above, and the arrays in pairs.
    unsafe {
        let [a, b, c, d] = registers(table.as_ptr().cast());
        let table = arch::uint8x16x4_t(a, b, c, d);
        // Number j is bytes 8·j to 8·j + 7 of the table.
        let (mask, eight) = (arch::vdupq_n_u32(7), arch::vdupq_n_u32(0x0808_0808));
        let bytes = arch::vreinterpretq_u32_u64(arch::vdupq_n_u64(0x0706_0504_0302_0100));
        for pair in [0, 2, 4, 6] {
            let index = arch::vreinterpretq_u32_u64(arch::vld1q_u64(index.as_ptr().add(pair)));
            // The lower half of each number, twice.
            let index = arch::vandq_u32(arch::vtrn1q_u32(index, index), mask);
            let bytes = arch::vreinterpretq_u8_u32(arch::vmlaq_u32(bytes, index, eight));
            let numbers = arch::vreinterpretq_u64_u8(arch::vqtbl4q_u8(table, bytes));
            arch::vst1q_u64(out.as_mut_ptr().add(pair), numbers);
        }
    }
    out
}

// Intrinsics that convert half-precision floats are newer than the oldest Rust that this crate is built with.

fearless_simd::kernel!(
    #[inline(always)]
    pub(super) fn f16_to_f32(neon: Neon, bits: [u16; 16]) -> [f32; 16] {
        let mut out = [0.0; 16];
        for half in [0, 8] {
            let (low, high): (arch::float32x4_t, arch::float32x4_t);
            // SAFETY: halves of arrays of 16; the instructions, which every AArch64 CPU has, touch these registers alone.
            unsafe {
                let bits = arch::vld1q_u16(bits.as_ptr().add(half));
                asm!("fcvtl {low:v}.4s, {bits:v}.4h", "fcvtl2 {high:v}.4s, {bits:v}.8h", low = out(vreg) low,
                    high = lateout(vreg) high, bits = in(vreg) bits, options(pure, nomem, nostack, preserves_flags));
                arch::vst1q_f32(out.as_mut_ptr().add(half), low);
                arch::vst1q_f32(out.as_mut_ptr().add(half + 4), high);
            }
        }
        out
    }
);
fearless_simd::kernel!(
    #[inline(always)]
    pub(super) fn f16_from_f32(neon: Neon, values: [f32; 16]) -> [u16; 16] {
        let mut out = [0; 16];
        for half in [0, 8] {
            let bits: arch::uint16x8_t;
            // SAFETY: as above.
            unsafe {
                let low = arch::vld1q_f32(values.as_ptr().add(half));
                let high = arch::vld1q_f32(values.as_ptr().add(half + 4));
                asm!("fcvtn {bits:v}.4h, {low:v}.4s", "fcvtn2 {bits:v}.8h, {high:v}.4s", bits = out(vreg) bits,
                    low = in(vreg) low, high = in(vreg) high, options(pure, nomem, nostack, preserves_flags));
                arch::vst1q_u16(out.as_mut_ptr().add(half), bits);
            }
        }
        out
    }
);

/// The numbers of the bytes of two registers. From some number on they move bytes along by as many; of a table of one register
/// the second half are no bytes.
const PLACES: [u8; 32] = {
    let mut places = [0; 32];
    let mut byte = 0;
    while byte < 32 {
        places[byte] = byte as u8;
        byte += 1;
    }
    places
};

macro_rules! parts {
    ($load:ident, $store:ident, $registers:literal) => {
        fearless_simd::kernel!(
            #[inline(always)]
            pub(super) fn $load(
                neon: Neon,
                source: *const u8,
                count: usize,
                rest: [u8; 16 * $registers],
            ) -> [u8; 16 * $registers] {
                let mut out = rest;
                let (whole, left) = (count / 16, count % 16);
                // SAFETY: the caller of `load_part` promised that `count` bytes are readable; no other is read: neither in
                // front of them, where there are fewer than 16. The rest are registers of these arrays.
                unsafe {
                    // Those that fill no register, at the end of one.
                    let last = if count >= 16 { arch::vld1q_u8(source.add(count - 16)) } else { few(source, count) };
                    let forward = arch::vld1q_u8(PLACES.as_ptr().add(16 - left));
                    for register in 0..$registers {
                        let place = out.as_mut_ptr().add(16 * register);
                        if register < whole {
                            arch::vst1q_u8(place, arch::vld1q_u8(source.add(16 * register)));
                        } else if register == whole {
                            arch::vst1q_u8(place, arch::vqtbx1q_u8(arch::vld1q_u8(place), last, forward));
                        }
                    }
                }
                out
            }
        );
        fearless_simd::kernel!(
            #[inline(always)]
            pub(super) fn $store(neon: Neon, destination: *mut u8, count: usize, lanes: [u8; 16 * $registers]) {
                let (whole, left) = (count / 16, count % 16);
                // SAFETY: the caller of `store_part` promised that `count` bytes are writeable; no other is written. The
                // rest are registers of this array.
                unsafe {
                    let lanes = registers::<$registers>(lanes.as_ptr());
                    let onward = arch::vld1q_u8(PLACES.as_ptr().add(left));
                    for register in 0..$registers {
                        if register < whole {
                            arch::vst1q_u8(destination.add(16 * register), lanes[register]);
                        } else if register == whole && left > 0 {
                            if register == 0 {
                                store_few(destination, left, lanes[0]);
                            } else {
                                // The 16 bytes that end with the last.
                                let both = arch::uint8x16x2_t(lanes[register - 1], lanes[register]);
                                arch::vst1q_u8(destination.add(count - 16), arch::vqtbl2q_u8(both, onward));
                            }
                        }
                    }
                }
            }
        );
    };
}
parts!(load_32, store_32, 2);
parts!(load_64, store_64, 4);

/// So many registers.
///
/// # Safety
/// Their bytes are readable at `source`.
#[inline(always)]
unsafe fn registers<const COUNT: usize>(source: *const u8) -> [arch::uint8x16_t; COUNT] {
    std::array::from_fn(
        #[inline(always)]
        // SAFETY: the caller's promise.
        |register| unsafe { arch::vld1q_u8(source.add(16 * register)) },
    )
}

/// Bytes, fewer than 16, as the last of a register: in two pieces that overlap.
///
/// # Safety
/// `count` bytes are readable at `source`.
#[inline(always)]
unsafe fn few(source: *const u8, count: usize) -> arch::uint8x16_t {
    macro_rules! pieces {
        ($piece:ty) => {{
            let last = count - size_of::<$piece>();
            // SAFETY: the first and the last bytes of those, by the caller's promise.
            let (first, last) = unsafe {
                (source.cast::<$piece>().read_unaligned(), source.add(last).cast::<$piece>().read_unaligned())
            };
            u128::from(first) << (8 * (16 - count)) | u128::from(last) << (128 - <$piece>::BITS)
        }};
    }
    let bytes = match count {
        0 => 0,
        1 => pieces!(u8),
        2..4 => pieces!(u16),
        4..8 => pieces!(u32),
        _ => pieces!(u64),
    };
    // SAFETY: any bits are a register.
    unsafe { std::mem::transmute(bytes) }
}

/// Write the first bytes of a register, fewer than 16, in two pieces that overlap.
///
/// # Safety
/// `count` bytes, at least one, are writeable at `destination`.
#[inline(always)]
unsafe fn store_few(destination: *mut u8, count: usize, lanes: arch::uint8x16_t) {
    // SAFETY: any register is a number.
    let bytes: u128 = unsafe { std::mem::transmute(lanes) };
    macro_rules! pieces {
        ($piece:ty) => {{
            let last = count - size_of::<$piece>();
            // SAFETY: the first and the last bytes of those, by the caller's promise.
            unsafe {
                destination.cast::<$piece>().write_unaligned(bytes as $piece);
                destination.add(last).cast::<$piece>().write_unaligned((bytes >> (8 * last)) as $piece);
            }
        }};
    }
    match count {
        1 => pieces!(u8),
        2..4 => pieces!(u16),
        4..8 => pieces!(u32),
        _ => pieces!(u64),
    }
}
