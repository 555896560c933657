//! What real time grants, and why: the one place where it is defined.
//!
//! A rule is the same on every backend. What differs is how exactly its moment can be known: a simulated clock stands
//! still while anybody works, a real one does not. So wherever a rule allows for the backend, it allows for this much
//! on each leg, in one number. It is made of three parts, and nothing else is ever added:
//!
//! * what a system that is awake takes to move a message between two processes and to wake who waits for it;
//! * for a bridge in a process of its own, what a runtime with a garbage collector takes from it now and then;
//! * how late this machine's own timers really were during the play: nobody can be faster than his machine. Beyond
//!   [`LAG_MAX_US`] the machine was too busy to judge anybody, and nobody is;
//!   nor is anybody when more than one thread had to wait for a processor all the time.

use crate::model::backend::Backend;

/// From one end's socket to the other's reader and back to a timer: both ends live in one thread.
pub const IN_PROCESS_US: u64 = 15_000;
/// The same with a process between them, in whatever language: its scheduler, its collector, and frames of 20 ms that
/// are read two at a time.
pub const FOREIGN_US: u64 = 40_000;
/// A play in which this machine's timers were later than this is played again, and judges nobody.
pub const LAG_MAX_US: u64 = 60_000;

/// What a play on this backend is granted when its timers were `lag_us` late at the worst, microseconds.
pub const fn real_time_us(backend: Backend, lag_us: u64) -> u64 {
    match backend {
        Backend::Memory | Backend::Simulated | Backend::Pipes => 0,
        Backend::Loopback => IN_PROCESS_US + lag_us,
        Backend::Attach => FOREIGN_US + lag_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_time_is_granted_anything() {
        for backend in Backend::ALL {
            assert_eq!(real_time_us(backend, 5_000), 0);
        }
        assert_eq!(real_time_us(Backend::Loopback, 5_000), 20_000);
        assert_eq!(real_time_us(Backend::Attach, 0), FOREIGN_US);
    }
}
