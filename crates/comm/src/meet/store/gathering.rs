//! What all members of a group tell all others, gathered on rank 0.

use std::collections::BTreeMap;
use std::io;

use crate::meet::store::parts::pack;

/// One value of every member, some of which may not have come yet.
#[derive(Debug)]
pub(super) struct Gathering {
    members: u64,
    /// By the member's place in the group. Memory is that of what has come, whatever `members` claims.
    parts: BTreeMap<u64, Vec<u8>>,
    /// Who is owed an answer: rank and request.
    waiting: Vec<(usize, u64)>,
}

impl Gathering {
    /// Of so many members.
    pub(super) fn new(members: u64) -> Self {
        Self {
            members,
            parts: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    /// Takes the part of the member at `place` of `members`. `asker` will be owed an answer. The error says what cannot be.
    pub(super) fn add(
        &mut self,
        (place, members): (u64, u64),
        part: &[u8],
        asker: (usize, u64),
    ) -> Result<(), String> {
        if members != self.members {
            return Err(format!(
                "it gathers {members} values where another rank gathers {}",
                self.members
            ));
        }
        if place >= members {
            return Err(format!("it is number {place} of {members}"));
        }
        if self.parts.insert(place, part.to_vec()).is_some() {
            return Err(format!("the value number {place} is there already"));
        }
        self.waiting.push(asker);
        Ok(())
    }

    pub(super) fn is_complete(&self) -> bool {
        self.parts.len() as u64 == self.members
    }

    /// Who waited. They are owed nothing any more.
    pub(super) fn take_waiting(&mut self) -> Vec<(usize, u64)> {
        std::mem::take(&mut self.waiting)
    }

    /// Owes `asker` nothing any more. Whether it waited.
    pub(super) fn forget(&mut self, asker: (usize, u64)) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| *waiting != asker);
        self.waiting.len() < before
    }

    /// What is there, for messages: see [`pack`].
    ///
    /// # Errors
    /// When memory cannot be had.
    pub(super) fn packed(&self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        pack((0..self.members).map(|place| self.parts.get(&place).map(Vec::as_slice)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meet::store::parts::unpack;

    #[test]
    fn a_gathering_is_complete_with_its_last_part_whatever_the_order() {
        let mut gathering = Gathering::new(3);
        for (place, rank) in [(2, 7), (0, 5)] {
            gathering.add((place, 3), b"p", (rank, place)).unwrap();
            assert!(!gathering.is_complete());
        }
        let (_, piece) = gathering.packed().unwrap().remove(0);
        let there: Vec<bool> = unpack(&piece).map(|part| part.is_some()).collect();
        assert_eq!(there, [true, false, true]);
        assert!(gathering.forget((7, 2)) && !gathering.forget((7, 2)));
        gathering.add((1, 3), b"p", (6, 1)).unwrap();
        assert!(gathering.is_complete());
        assert_eq!(gathering.take_waiting(), [(5, 0), (6, 1)]);
    }

    #[test]
    fn members_that_cannot_be_are_refused() {
        let mut gathering = Gathering::new(2);
        gathering.add((0, 2), b"", (0, 1)).unwrap();
        for (place, members, reason) in [
            (1, 3, "another rank gathers 2"),
            (2, 2, "number 2 of 2"),
            (0, 2, "is there already"),
        ] {
            let refused = gathering.add((place, members), b"", (1, 1)).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
        assert!(!gathering.is_complete());
    }
}
