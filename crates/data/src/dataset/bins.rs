//! Best-fit decreasing bin packing: items, the longest first, each into the fullest bin that has room for it.
//!
//! Of equal lengths the first item comes first, of bins with equal room the one that got it last is taken: the result depends on
//! the lengths alone. `O(n log capacity)` time; 16 bytes an item while it is computed, 4 an item and 4 a bin afterwards.

use std::collections::BTreeSet;

/// No bin.
const NONE: u32 = u32::MAX;

/// Items in bins.
#[derive(Debug, Clone)]
pub(super) struct Bins {
    /// The items of all bins, one bin after the other; in a bin, the longest first.
    items: Vec<u32>,
    /// Where the items of each bin end.
    ends: Vec<u32>,
}

impl Bins {
    /// Packs items of these lengths, of which none is above `capacity`; those of length 0 are in no bin.
    ///
    /// # Panics
    /// When there are more than `u32::MAX - 1` items, or one is too long.
    pub(super) fn pack(lengths: &[u32], capacity: usize) -> Self {
        assert!(lengths.len() < NONE as usize);
        let order = longest_first(lengths, capacity);
        let mut open = Open::new(capacity);
        let bin_of: Vec<u32> = order
            .iter()
            .map(|&item| open.put(lengths[item as usize]))
            .collect();
        let bins = open.next.len();
        drop(open);

        let mut ends = vec![0u32; bins];
        for &bin in &bin_of {
            ends[bin as usize] += 1;
        }
        let mut end = 0;
        for count in &mut ends {
            end += *count;
            *count = end;
        }
        let mut items = vec![0; order.len()];
        let mut places: Vec<u32> = [0].iter().chain(&ends).copied().take(bins).collect();
        for (&item, &bin) in order.iter().zip(&bin_of) {
            let place = &mut places[bin as usize];
            items[*place as usize] = item;
            *place += 1;
        }
        Self { items, ends }
    }

    /// Bins.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The items of a bin.
    pub(super) fn items(&self, bin: usize) -> &[u32] {
        let start = bin.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.items[start as usize..self.ends[bin] as usize]
    }
}

/// All items but those of length 0, by counting.
fn longest_first(lengths: &[u32], capacity: usize) -> Vec<u32> {
    let mut places = vec![0u32; capacity + 1];
    for &length in lengths {
        places[length as usize] += 1;
    }
    places[0] = 0;
    let mut next = 0;
    for place in places.iter_mut().rev() {
        let count = *place;
        *place = next;
        next += count;
    }
    let mut order = vec![0; next as usize];
    for (item, &length) in lengths
        .iter()
        .enumerate()
        .filter(|(_, length)| **length > 0)
    {
        let place = &mut places[length as usize];
        order[*place as usize] = item as u32;
        *place += 1;
    }
    order
}

/// Bins that are being filled, by the room that they have.
struct Open {
    capacity: usize,
    /// For each room, the bin that got it last.
    last: Vec<u32>,
    /// For each bin, the one that has as much room and got it before.
    next: Vec<u32>,
    /// Rooms that a bin has.
    rooms: BTreeSet<u32>,
}

impl Open {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            last: vec![NONE; capacity + 1],
            next: Vec::new(),
            rooms: BTreeSet::new(),
        }
    }

    /// The bin that an item of this length goes into.
    fn put(&mut self, length: u32) -> u32 {
        let fitting = self.rooms.range(length..).next().copied();
        let (bin, room) = match fitting {
            Some(room) => (self.take(room), room),
            None => {
                self.next.push(NONE);
                (self.next.len() as u32 - 1, self.capacity as u32)
            }
        };
        let left = room - length;
        if left > 0 {
            let last = &mut self.last[left as usize];
            self.next[bin as usize] = std::mem::replace(last, bin);
            self.rooms.insert(left);
        }
        bin
    }

    fn take(&mut self, room: u32) -> u32 {
        let last = &mut self.last[room as usize];
        let bin = *last;
        *last = self.next[bin as usize];
        if *last == NONE {
            self.rooms.remove(&room);
        }
        bin
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule itself, bin by bin.
    fn rooms_by_the_rule(lengths: &[u32], capacity: u32) -> Vec<u32> {
        let mut sorted: Vec<u32> = lengths.iter().copied().filter(|&len| len > 0).collect();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let mut rooms: Vec<u32> = Vec::new();
        for length in sorted {
            let fitting = rooms.iter_mut().filter(|room| **room >= length);
            match fitting.min() {
                Some(room) => *room -= length,
                None => rooms.push(capacity - length),
            }
        }
        rooms.sort_unstable();
        rooms
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_bin_and_the_rule_is_kept(
            lengths in prop::collection::vec(0u32..=40, 0..300),
        ) {
            let bins = Bins::pack(&lengths, 40);
            let mut seen = Vec::new();
            let mut rooms = Vec::new();
            for bin in 0..bins.len() {
                let items = bins.items(bin);
                prop_assert!(!items.is_empty());
                let filled: u32 = items.iter().map(|&item| lengths[item as usize]).sum();
                prop_assert!(filled <= 40);
                let of = |item: u32| lengths[item as usize];
                let falls = items.windows(2).all(|pair| of(pair[0]) >= of(pair[1]));
                prop_assert!(falls);
                seen.extend_from_slice(items);
                rooms.push(40 - filled);
            }
            seen.sort_unstable();
            let all: Vec<u32> = (0..lengths.len() as u32)
                .filter(|&item| lengths[item as usize] > 0)
                .collect();
            prop_assert_eq!(seen, all);
            rooms.sort_unstable();
            prop_assert_eq!(rooms, rooms_by_the_rule(&lengths, 40));
        }
    }

    #[test]
    fn the_fullest_bin_that_has_room_is_taken() {
        let bins = Bins::pack(&[3, 8, 0, 6, 2, 2], 10);
        let items: Vec<&[u32]> = (0..bins.len()).map(|bin| bins.items(bin)).collect();
        assert_eq!(items, [&[1u32, 4][..], &[3, 0][..], &[5]]);
    }
}
