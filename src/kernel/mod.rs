//! Kernels whose exponentials are relative to an integer ([`crate::math::Reference`]): one pass over the logits, which needs no
//! maximum where the target's own logit will do.
//!
//! # One class apart
//!
//! Each row has an **own** class. With R the sum of the other exponentials over the own one, `lse = z(own) + log(1 + R)`: accurate
//! for confident rows by itself, since nothing is a difference of larger numbers. For class targets the own class is the target: the
//! loss is `log(1 + R)`, and the gradient `e/own / (1 + R)`, and `−R / (1 + R)` for the target. Where there is no target class, under
//! a cap, and for options of float64, it is the class with the largest logit, which takes a look at the row before. A log-sum-exp or
//! softmax of float32 is relative to one of the first classes, or to none of its own: nothing of theirs is a small difference.
//!
//! # Shares of all classes
//!
//! With t the shares (probabilities, label smoothing, class weights) the loss is `Σ t·log(1 + R) − Σ t·(z − z(own))`. In f32 the
//! products are summed in f64, where it does not matter what they are relative to. A share of nothing of a masked class makes the
//! sum NaN; such rows are summed once more, with a question at each class. Shares that are the same for all rows are not summed at
//! all. A teacher is shares that are its softmax: its exponentials are summed beside the pupil's logits, in one pass over both.
//!
//! # What they are not for
//!
//! Rows with logits more than 22 nats above the own one are found on the way; their sums are taken once more, relative to the
//! largest. Those that this does not suit either take the careful path, the kernels of [`crate::row`], one by one: rows with NaN or
//! +∞, a masked target, one 620 nats below the largest, or of a size at which the integer is not exact; with a class weight or a loss
//! that is not finite; and gradients whose factor is no normal number.
//!
//! | where | what lives there |
//! |---|---|
//! | [`finish`] | what is once a row: losses and what gradients need, in lanes |
//! | [`vertical`] | rows in lanes: as many rows as there are lanes, or a strip of such tiles |
//! | [`horizontal`] | one row: the same lanes, all of them of that row |
//! | [`shares`] | shares and teachers |
//! | [`shape`] | entropies and ranks |
//! | [`moment`] | Hessians times vectors |
//! | [`log_softmax`] | log-probabilities of all classes |
//! | [`cap`] | the softcap |
//! | [`stage`] | rows on their way to and from lanes |
//! | [`binary`] | binary losses of targets alone, and of two classes |
//! | [`divergence`] | how far two rows are apart |
//! | [`kinds`] | the other divergences from a teacher, and their derivatives |
//! | [`focus`] | focal and poly losses |
//! | [`listed`] | targets that list some classes |

pub mod binary;
pub mod cap;
pub mod divergence;
pub mod finish;
pub mod focus;
pub mod horizontal;
pub mod kinds;
pub mod listed;
pub mod log_softmax;
pub mod moment;
pub mod shape;
pub mod shares;
pub mod stage;
pub mod vertical;
