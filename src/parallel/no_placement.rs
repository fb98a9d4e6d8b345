//! Where threads run is left to the system.

/// A job that runs.
pub(super) struct Job;

impl Job {
    pub(super) fn begin() -> Self {
        Self
    }
}

/// Where the workers of a pool run.
pub(super) struct Places;

impl Places {
    pub(super) fn new(_workers: usize) -> Self {
        Self
    }

    pub(super) fn enter(&self, _worker: usize) {}

    pub(super) fn end(&self, _worker: usize) {}

    pub(super) fn spread(&self, _job: &Job, _others: usize) {}
}
