//! The floating-point environment: how a thread rounds, whether it flushes subnormal numbers to 0, and what traps.
//!
//! A caller may have changed its own: `torch.set_flush_denormal`, libraries that were built with `-ffast-math` and XLA's
//! threads flush, `fesetround` rounds otherwise; and a new thread inherits that of the thread that makes it. Here every
//! thread computes in the default environment, the only one in which results are those of the formulas, and in which
//! Rust code may run: the compiler assumes it.
//!
//! x87 instructions, which have an environment of their own, are none of the baseline of x86-64.

use std::hint::black_box;

/// The floating-point environment of a thread, with the exceptions that it has signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment(Registers);

/// MXCSR.
#[cfg(target_arch = "x86_64")]
type Registers = u32;
/// FPCR and FPSR.
#[cfg(target_arch = "aarch64")]
type Registers = [u64; 2];
/// WebAssembly rounds to nearest and keeps subnormal numbers; nobody can change that.
#[cfg(target_arch = "wasm32")]
type Registers = ();

impl Environment {
    /// Round to nearest, ties to even; keep subnormal numbers; trap nothing. No exception has been signalled.
    #[cfg(target_arch = "x86_64")]
    pub const DEFAULT: Self = Self(0x1f80);
    /// Round to nearest, ties to even; keep subnormal numbers; trap nothing. No exception has been signalled.
    #[cfg(target_arch = "aarch64")]
    pub const DEFAULT: Self = Self([0, 0]);
    /// Round to nearest, ties to even; keep subnormal numbers; trap nothing.
    #[cfg(target_arch = "wasm32")]
    pub const DEFAULT: Self = Self(());

    /// That of the calling thread.
    pub fn current() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let mut register = 0;
            // SAFETY: the instruction stores 4 bytes at the address, which is that of a `u32`.
            unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) };
            Self(register)
        }
        #[cfg(target_arch = "aarch64")]
        {
            let (control, status);
            // SAFETY: the instructions read two registers that every thread may read.
            unsafe {
                std::arch::asm!("mrs {}, fpcr", "mrs {}, fpsr", out(reg) control, out(reg) status, options(nostack));
            }
            Self([control, status])
        }
        #[cfg(target_arch = "wasm32")]
        Self::DEFAULT
    }

    /// Make it that of the calling thread.
    fn set(self) {
        #[cfg(target_arch = "x86_64")]
        {
            let register = self.0;
            // SAFETY: the instruction loads 4 bytes from the address, which is that of a `u32`, and faults if a reserved
            // bit is set: none is, as `self` is `DEFAULT` or came from `current`.
            unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack)) };
        }
        #[cfg(target_arch = "aarch64")]
        {
            let [control, status] = self.0;
            // SAFETY: the instructions write two registers that every thread may write.
            unsafe {
                std::arch::asm!("msr fpcr, {}", "msr fpsr, {}", in(reg) control, in(reg) status, options(nostack));
            }
        }
    }

    /// Call `work` in this environment. Afterwards, also after a panic, the thread has its own back, signalled exceptions
    /// included.
    ///
    /// The compiler does not know that operations depend on the registers: it may move them across instructions that
    /// set these, but neither into nor out of a function that it cannot see.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        struct Restore(Environment);
        impl Drop for Restore {
            fn drop(&mut self) {
                self.0.set();
            }
        }
        let (mut work, mut result) = (Some(work), None);
        let mut call = || result = work.take().map(|work| work());
        let call: &mut dyn FnMut() = black_box(&mut call);
        let own = Restore(Self::current());
        self.set();
        call();
        drop(own);
        result.expect("the call has set it")
    }
}

// Where there is an environment that can be set.
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    /// Half of the smallest normal number, computed where nobody sees it: 0 if the thread flushes. As bits, since a
    /// comparison would take it for 0 there, too.
    fn half() -> u32 {
        (black_box(f32::MIN_POSITIVE) * black_box(0.5)).to_bits()
    }

    /// An environment that flushes.
    #[cfg(target_arch = "x86_64")]
    const FLUSHES: Environment = Environment(0x1f80 | 1 << 15 | 1 << 6);
    #[cfg(target_arch = "aarch64")]
    const FLUSHES: Environment = Environment([1 << 24, 0]);

    #[test]
    fn the_default_is_what_a_new_program_has() {
        let controls = |Environment(registers)| {
            #[cfg(target_arch = "x86_64")]
            return registers & !0x3f;
            #[cfg(target_arch = "aarch64")]
            return registers[0];
        };
        assert_eq!(controls(Environment::current()), controls(Environment::DEFAULT));
    }

    #[test]
    fn work_runs_in_the_environment_and_the_own_comes_back() {
        FLUSHES.run(|| {
            assert_eq!(half(), 0);
            assert_eq!(Environment::DEFAULT.run(half), 1 << 22);
            assert_eq!(Environment::DEFAULT.run(|| FLUSHES.run(half)), 0);
            let before = Environment::current();
            // An exception is signalled, but not to this environment.
            Environment::DEFAULT.run(|| black_box(1.0) / black_box(0.0));
            assert_eq!(Environment::current(), before);
            assert!(catch_unwind(|| Environment::DEFAULT.run(|| assert!(half() == 0, "on purpose"))).is_err());
            assert_eq!(Environment::current(), before);
        });
        assert_eq!(half(), 1 << 22);
    }
}
