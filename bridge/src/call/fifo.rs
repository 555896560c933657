//! Bytes in, bytes out, in runs rather than one by one.

use std::collections::VecDeque;

/// Takes the first `n` bytes of a queue (fewer when it holds fewer).
pub(crate) fn take_front(queue: &mut VecDeque<u8>, n: usize) -> Vec<u8> {
    let n = n.min(queue.len());
    let (front, back) = queue.as_slices();
    let mut taken = Vec::with_capacity(n);
    taken.extend_from_slice(&front[..n.min(front.len())]);
    taken.extend_from_slice(&back[..n - taken.len()]);
    queue.drain(..n);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_across_the_seam_of_the_ring() {
        let mut queue: VecDeque<u8> = VecDeque::with_capacity(16);
        let mut next_in = 0u8;
        let mut next_out = 0u8;
        for round in 0..50 {
            for _ in 0..round % 7 {
                queue.push_back(next_in);
                next_in = next_in.wrapping_add(1);
            }
            for byte in take_front(&mut queue, round % 5) {
                assert_eq!(byte, next_out);
                next_out = next_out.wrapping_add(1);
            }
        }
        assert_eq!(take_front(&mut queue, 1_000).len(), usize::from(next_in.wrapping_sub(next_out)));
        assert!(queue.is_empty());
    }
}
