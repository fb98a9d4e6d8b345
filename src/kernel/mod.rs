//! Kernels whose exponentials are relative to an integer ([`crate::math::Reference`]): one pass, without a maximum.
//!
//! For a target class the integer is the one next to its own logit. With R the sum of the other exponentials over the own one
//! the loss is `log(1 + R)`, accurate for confident rows by itself, and the gradient is `e/own / (1 + R)`, and `−R / (1 + R)`
//! for the target.
//!
//! Rows with logits more than 22 nats above the own one are found on the way; their sums are taken once more, relative to the
//! largest. Those that this does not suit either take the careful path, the kernels of [`crate::row`]: rows with NaN or +∞, a
//! masked target, one 620 nats below the largest, or of a size at which the integer is not exact; with a class weight that is not
//! finite; and gradients whose factor is no normal number.
//!
//! | where | what lives there |
//! |---|---|
//! | [`finish`] | what is once a row: losses and what gradients need, in lanes |
//! | [`horizontal`] | one row, its classes across lanes |
//! | [`vertical`] | as many rows as there are lanes, or a strip of such tiles |
//! | [`stage`] | rows of few classes on their way to and from lanes |

pub mod cap;
pub mod finish;
pub mod horizontal;
pub mod shares;
pub mod stage;
pub mod vertical;
