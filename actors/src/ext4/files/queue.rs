//! Who is next at which disk: one job at a time for each, in the order of their coming. Pure.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

/// Jobs that wait. A disk is here while a job of its is under way.
#[derive(Debug)]
pub(super) struct Queue<J> {
    disks: HashMap<PathBuf, VecDeque<J>>,
    waiting: usize,
    limit: usize,
}

/// What becomes of a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<J> {
    /// It is to be started.
    Now(J),
    /// It waits for those before it.
    Later,
    /// As many wait as may.
    Refused,
}

impl<J> Queue<J> {
    /// At most `limit` jobs wait, all disks together.
    pub(super) fn new(limit: usize) -> Self {
        Self { disks: HashMap::new(), waiting: 0, limit }
    }

    pub(super) fn arrive(&mut self, disk: &Path, job: J) -> Turn<J> {
        match self.disks.get_mut(disk) {
            None => {
                self.disks.insert(disk.to_owned(), VecDeque::new());
                Turn::Now(job)
            }
            Some(_) if self.waiting >= self.limit => Turn::Refused,
            Some(line) => {
                line.push_back(job);
                self.waiting += 1;
                Turn::Later
            }
        }
    }

    /// The disk's job has ended: the next one, which is to be started.
    pub(super) fn leave(&mut self, disk: &Path) -> Option<J> {
        let next = self.disks.get_mut(disk)?.pop_front();
        match next {
            Some(_) => self.waiting -= 1,
            None => drop(self.disks.remove(disk)),
        }
        next
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_has_its_own_line() {
        let mut queue = Queue::new(2);
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        assert_eq!(queue.arrive(a, 1), Turn::Now(1));
        assert_eq!(queue.arrive(a, 2), Turn::Later);
        assert_eq!(queue.arrive(b, 3), Turn::Now(3));
        assert_eq!(queue.arrive(a, 4), Turn::Later);
        assert_eq!((queue.arrive(b, 5), queue.waiting()), (Turn::Refused, 2));
        assert_eq!((queue.leave(b), queue.leave(b)), (None, None));
        assert_eq!((queue.leave(a), queue.leave(a), queue.leave(a)), (Some(2), Some(4), None));
        assert_eq!((queue.arrive(a, 6), queue.waiting()), (Turn::Now(6), 0));
    }
}
