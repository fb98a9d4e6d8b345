//! Kernels whose exponentials are relative to an integer ([`crate::math::Reference`]): one pass, without a maximum.
//!
//! For a target class the integer is the one next to its own logit. With R the sum of the other exponentials over the own one
//! the loss is `log(1 + R)`, accurate for confident rows by itself, and the gradient is `e/own / (1 + R)`, and `−R / (1 + R)`
//! for the target.
//!
//! Rows that this does not suit are found on the way: those with NaN or +∞, with a target 38 nats below the maximum, masked, or
//! of a size at which the integer is not exact. They take the careful path, the kernels of [`crate::row`].
//!
//! Expected from prototypes: a third of the time with few classes on AVX2, a fifth on an inner axis of a thousand. Found: half
//! with few classes (1.4 to 2.3 times as fast in cache, float64 1.1 to 1.5), and a third to a quarter on inner axes of 150 to
//! 10,000 classes; docs/performance.md ("Decisions") has the figures.

pub mod stage;
pub mod vertical;
