//! Where workers run is left to the system.

/// Where a worker runs.
pub(super) struct Place;

impl Place {
    pub(super) fn of_this_thread() -> Self {
        Self
    }

    pub(super) fn was_here(&self) {}
}

/// Workers that are bound to a CPU: none.
pub(super) struct Bound;

pub(super) fn spread<'a>(_workers: impl Iterator<Item = &'a Place>) -> Bound {
    Bound
}
