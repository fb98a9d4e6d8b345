//! Which instruction set runs, and in which floating-point environment ([`Environment`]).
//!
//! Kernels are generic over a token `S: fearless_simd::Simd`; holding a token proves that the CPU has the
//! instructions, so what is `unsafe` in a kernel is the caller's memory, never an instruction. One wheel holds every
//! level, compiled side by side, and picks one at run time. `XENT_RS_SIMD` or [`set_level`] forces a level, for tests
//! and benchmarks.
//!
//! # Why `fearless_simd`, and not `std::arch` behind a trait of our own
//!
//! Its vectors are as fast as intrinsics where memory is read, and nearly so in cache, for instructions that are safe to
//! use, a NEON level that others test, and operators that read like the formula. The figures of this and of the rules
//! below are in docs/performance.md ("Decisions").
//!
//! * A rarely taken branch of a hot loop stays inlined: a `#[cold]` function spills the accumulators.
//! * Blocks of 256 elements, the maximum first and the exponentials second, keep the next block's loads in flight.
//! * Lines are asked for 8 KiB ahead, also by kernels that copy their blocks first.
//! * Several vectors at a time, the same step of each, keep the scheduler from filling with operations that wait for each
//!   other ([`crate::math::vectors_at_a_time`]).
//! * Tails are loaded in part, by masked loads where a level has them; what is copied to be read as whole vectors is copied a
//!   vector at a time, as it is read again: bytes copied otherwise are not yet there when they are read.
//! * 16-bit loads are one conversion per vector (`operations.rs`).
//!
//! The AVX-512 level is that of Ice Lake, Zen 4 and later; older AVX-512 machines run AVX2. Every level sees the
//! same virtual lanes (16 of float32, 8 of float64) and the same fused multiply-adds, so AVX-512, AVX2 and NEON give
//! the same bits (`loss/bits.rs` checks that); the portable level (SSE2, the baseline of x86-64) has no fused multiply-add, and
//! takes exponentials without a table; so has WebAssembly's, with the same bits.

mod environment;
mod operations;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use fearless_simd::Simd;

use crate::error::{Error, Result};
pub use environment::Environment;
pub use operations::Parts;
pub(crate) use operations::{
    Table64, f16_from_f32, f16_to_f32, load_columns, load_part, look_up_u32, look_up_u64, prefetch, prefetch_ahead,
    store_columns, store_fence, store_part, stream, turned,
};

// Relaxed instructions of WebAssembly may give other bits on another machine, and their maximum may drop NaN, which must pass.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    all(target_arch = "wasm32", target_feature = "simd128", not(target_feature = "relaxed-simd"))
)))]
compile_error!("xent_rs runs on x86-64, on AArch64, and on wasm32 with simd128 and without relaxed-simd");

/// An instruction set that this CPU has; the value is the proof.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// AVX-512 as of Ice Lake and Zen 4.
    #[cfg(target_arch = "x86_64")]
    Avx512(fearless_simd::x86::Avx512),
    /// AVX2 with FMA and F16C (x86-64-v3).
    #[cfg(target_arch = "x86_64")]
    Avx2(fearless_simd::x86::Avx2),
    /// NEON, which every AArch64 CPU has.
    #[cfg(target_arch = "aarch64")]
    Neon(fearless_simd::aarch64::Neon),
    /// WebAssembly's vectors of 128 bits.
    #[cfg(target_arch = "wasm32")]
    Simd128(fearless_simd::wasm32::WasmSimd128),
    /// SSE2, which every x86-64 CPU has.
    #[cfg(target_arch = "x86_64")]
    Portable(fearless_simd::x86::Sse2),
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
            levels.extend(cpu.as_neon().map(Self::Neon));
            #[cfg(target_arch = "wasm32")]
            levels.extend(cpu.as_wasm_simd128().map(Self::Simd128));
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
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "wasm32")]
            Self::Simd128(_) => "simd128",
            #[cfg(target_arch = "x86_64")]
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
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            #[cfg(target_arch = "wasm32")]
            Self::Simd128(simd) => simd.vectorize(
                #[inline(always)]
                || kernel.run(simd),
            ),
            #[cfg(target_arch = "x86_64")]
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
