//! At most one live stream per phone call.
//!
//! A webhook delivered twice, or a redial that Twilio joins to the same call, opens a second stream while the
//! first still looks alive. The newest stream owns the call; its predecessor is told to go, and a predecessor
//! that goes late cannot take its successor's place away. Pure: the driver and the in-memory backend share it.

use std::collections::BTreeMap;

/// Names a call within one server, in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallKey(pub u64);

/// Which stream owns which call.
#[derive(Debug, Default)]
pub struct Registry {
    owners: BTreeMap<String, CallKey>,
}

impl Registry {
    /// `key` takes the call over. Returns the predecessor, which has to go.
    pub fn claim(&mut self, call_sid: &str, key: CallKey) -> Option<CallKey> {
        self.owners.insert(call_sid.to_owned(), key).filter(|&old| old != key)
    }

    /// `key` is over. Changes nothing if another key owns the call by now.
    pub fn release(&mut self, call_sid: &str, key: CallKey) {
        if self.owners.get(call_sid) == Some(&key) {
            self.owners.remove(call_sid);
        }
    }

    /// Calls with an owner.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// No call has an owner.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stream_owns_the_call() {
        let mut t = Registry::default();
        assert_eq!(t.claim("CA1", CallKey(1)), None);
        assert_eq!(t.claim("CA1", CallKey(2)), Some(CallKey(1)));
        assert_eq!(t.claim("CA2", CallKey(3)), None);
    }

    #[test]
    fn a_predecessors_late_end_leaves_its_successor_alone() {
        let mut t = Registry::default();
        t.claim("CA1", CallKey(1));
        t.claim("CA1", CallKey(2));
        t.release("CA1", CallKey(1));
        assert_eq!(t.len(), 1);
        t.release("CA1", CallKey(2));
        assert!(t.is_empty());
    }
}
