//! Which instruction set runs, and in which floating-point environment ([`Environment`]).
//!
//! Kernels are generic over a token `S: fearless_simd::Simd`; holding a token proves that the CPU has the
//! instructions, so what is `unsafe` in a kernel is the caller's memory, never an instruction. One wheel holds every
//! level, compiled side by side, and picks one at run time. `XENT_RS_SIMD` or [`set_level`] forces a level, for tests
//! and benchmarks.
//!
//! # Why `fearless_simd`, and not `std::arch` behind a trait of our own
//!
//! Measured on an AMD Zen 5 (EPYC 9005, 2 cores), float32, with the same algorithm written twice: AVX-512
//! intrinsics against `fearless_simd` 1.2, medians of 25 interleaved runs, one thread, in a spike that was thrown away
//! (`benches/row.rs` measures what came of it).
//!
//! | kernel | intrinsics | `fearless_simd` |
//! |---|---|---|
//! | loss, 64 × 1024, rows in L2 | 12 µs | 12 µs |
//! | loss, 512 × 128256, rows in memory | 9.99 ms | 10.11 ms |
//! | loss + gradient with streaming stores, 512 × 128256 | 18.4 ms | 19.0 ms |
//! | loss + gradient with streaming stores, 64 × 1024 | 18 µs | 20 µs |
//!
//! That is 1 to 3 % at the roof, and up to 11 % with rows in L2, for instructions that are safe to use, a NEON level
//! that others test, and operators that read like the formula. AVX2 took 20 µs in L2 and the SSE2 baseline 47 µs. What
//! it cost and what helped:
//!
//! * A rarely taken branch must stay inlined: moving the rescaling of [`crate::row::log_sum_exp`] into a
//!   `#[cold]` function spilled the accumulators and took 17 µs instead of 12.
//! * Blocks of 128 to 256 elements, maximum first and exponentials second, keep the next block's loads in flight;
//!   blocks of 512 and 1024 took twice as long from memory (18.5 and 19.8 ms) though not in L2.
//! * Reading 8 KiB ahead with prefetch instructions took the loss from 10.1 to 9.1 ms on one thread and from 8.0
//!   to 7.2 ms on two; 512 and 1024 bytes ahead made it slower (11.7 ms). Kernels that copy
//!   their blocks first need it as much: with probabilities as targets the loss took 69 ms on one thread without, and
//!   33 ms with it.
//! * Four vectors at a time, the same step of each, keep the scheduler from filling with operations that wait for
//!   each other: 2.9 → 1.9 ns a vector in L2, in the spike ([`crate::math::vectors_at_a_time`]). Not subtracting the reference, with the
//!   difference in the power of two instead, would be worth 7 % more, and cost the exact zero of equal logits.
//! * Tails are copied into a padded block in L1 a vector at a time, as they are read again: bytes copied otherwise
//!   are not yet there when they are read (64 rows of 1000 in L2: 4.0 → 3.0 ns for 16 logits). Masked loads
//!   serve the parts of vectors where a level has them.
//!
//! 16-bit loads are one conversion per vector (`operations.rs`): bfloat16 took 14 µs in L2, and at 512 × 128256
//! the same time as the arithmetic, for half the bytes.
//!
//! The AVX-512 level is that of Ice Lake, Zen 4 and later; older AVX-512 machines run AVX2. Every level sees the
//! same virtual lanes (16 of float32, 8 of float64) and the same fused multiply-adds, so AVX-512 and AVX2 give
//! the same bits; the portable level (the target's baseline, SSE2 on x86-64) has no fused multiply-add, and takes
//! exponentials without a table.

mod environment;
mod operations;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use fearless_simd::Simd;

use crate::error::{Error, Result};
pub use environment::Environment;
pub(crate) use operations::{
    Table64, f16_from_f32, f16_to_f32, load_part, look_up_u32, look_up_u64, prefetch_ahead, store_fence, store_part,
    stream,
};

/// The token of the instructions that every CPU of the target has.
#[cfg(target_arch = "x86_64")]
type Baseline = fearless_simd::x86::Sse2;
#[cfg(target_arch = "aarch64")]
type Baseline = fearless_simd::aarch64::Neon;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("xent_rs runs on x86-64 and AArch64: the maximum of other targets' vectors drops NaN, which must pass");

/// An instruction set that this CPU has; the value is the proof.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// AVX-512 as of Ice Lake and Zen 4.
    #[cfg(target_arch = "x86_64")]
    Avx512(fearless_simd::x86::Avx512),
    /// AVX2 with FMA and F16C (x86-64-v3).
    #[cfg(target_arch = "x86_64")]
    Avx2(fearless_simd::x86::Avx2),
    /// What every CPU of the target has.
    Portable(Baseline),
}

/// Work that can run at any level.
pub trait Kernel {
    /// What the work returns.
    type Output;
    /// Do the work with the instructions that `simd` stands for. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Level {
    /// The levels that this CPU has, best first; never empty.
    pub fn available() -> &'static [Self] {
        static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
        LEVELS.get_or_init(|| {
            let cpu = fearless_simd::Level::new();
            let mut levels = Vec::with_capacity(3);
            #[cfg(target_arch = "x86_64")]
            {
                levels.extend(cpu.as_avx512().map(Self::Avx512));
                levels.extend(cpu.as_avx2().map(Self::Avx2));
                levels.extend(cpu.as_sse2().map(Self::Portable));
            }
            #[cfg(target_arch = "aarch64")]
            levels.extend(cpu.as_neon().map(Self::Portable));
            levels
        })
    }

    /// The name under which users ask for the level.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            Self::Portable(_) => "portable",
        }
    }

    /// Run `kernel`, compiled for this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            Self::Portable(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
        }
    }
}

/// Index into [`Level::available`] of the level in use.
static CURRENT: AtomicU8 = AtomicU8::new(0);

/// The level in use: the best one, unless [`set_level`] chose another.
pub fn level() -> Level {
    Level::available()[usize::from(CURRENT.load(Ordering::Relaxed))]
}

/// Use the level called `name` from now on, in all threads.
///
/// # Errors
/// [`Error::Value`] if this CPU or this build has no such level.
pub fn set_level(name: &str) -> Result<()> {
    let levels = Level::available();
    let Some(index) = levels.iter().position(|level| level.name() == name) else {
        let names: Vec<_> = levels.iter().map(|level| level.name()).collect();
        return Err(Error::Value(format!(
            "SIMD level is '{name}'; expected one that this CPU has: {}",
            names.join(", ")
        )));
    };
    CURRENT.store(index as u8, Ordering::Relaxed);
    Ok(())
}

/// The name that the CPU gives itself, for reports.
pub fn cpu_name() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::__cpuid;
        const BRAND: u32 = 0x8000_0002;
        if __cpuid(0x8000_0000).eax >= BRAND + 2 {
            let registers =
                (BRAND..BRAND + 3).map(__cpuid).flat_map(|found| [found.eax, found.ebx, found.ecx, found.edx]);
            let bytes: Vec<u8> = registers.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
            return String::from_utf8_lossy(&bytes).trim().to_owned();
        }
    }
    std::env::consts::ARCH.to_owned()
}
