//! Why an operation does not end: NCCL neither compares what the members ask for nor notices that one has left. So who waits for
//! long raises an alarm, upon which every member says what it did last, and compares.
//!
//! Alarms are numbered. Each member asks the store for the next one and goes on; the answer comes when somebody raises it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::collective::Signature;
use crate::error::Result;
use crate::group::context::GroupContext;
use crate::meet::board::Board;
use crate::meet::store::Question;

/// How many of its last operations a member tells the others.
const REMEMBERED: usize = 8;

/// Alarms of a group. Each takes some of what a rank may leave in the store; whatever comes after the last of them ends with its
/// timeout only.
const MOST_ALARMS: u64 = 1000;

const ALARM: &str = "alarm";
const HISTORY: &str = "history";
const LEAVING: &str = "leaving";

/// One member's part in the inquiries of its group.
pub(super) struct Inquiry {
    context: Arc<GroupContext>,
    board: Board,
    /// The number of the next alarm.
    next: u64,
    /// Whether it was raised; `None` when the store cannot be asked any more, which others notice.
    alarm: Option<Question>,
    /// The last operations that this rank has enqueued.
    history: VecDeque<Signature>,
    /// What was asked after the last alarm.
    asked: Vec<Asked>,
    /// Members that were asked how many operations they had done when they left the group, which is asked once.
    leaving: Vec<(usize, Option<Question>)>,
}

/// What was asked of one member.
struct Asked {
    member: usize,
    /// Its last operations.
    history: Option<Question>,
    /// The number of the last of them, once it is known.
    came_to: Option<u64>,
}

impl Inquiry {
    pub(super) fn new(context: Arc<GroupContext>, board: Board) -> Self {
        Self {
            alarm: board.ask_all(&numbered(ALARM, 1)).ok(),
            context,
            board,
            next: 1,
            history: VecDeque::new(),
            asked: Vec::new(),
            leaving: Vec::new(),
        }
    }

    /// Notes an operation that this rank has enqueued.
    pub(super) fn remember(&mut self, signature: &Signature) {
        let is_new = |last: &Signature| last.sequence < signature.sequence;
        if self.history.back().is_none_or(is_new) {
            self.history.push_back(*signature);
        }
        if self.history.len() > REMEMBERED {
            self.history.pop_front();
        }
    }

    /// How many operations this rank has enqueued.
    pub(super) fn done(&self) -> u64 {
        self.history.back().map_or(0, |last| last.sequence)
    }

    /// Makes every member say what it did last.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(super) fn raise(&mut self) -> Result<()> {
        if self.next > MOST_ALARMS {
            return Ok(());
        }
        self.board.post_for_all(&numbered(ALARM, self.next), "")?;
        self.tell()
    }

    /// When somebody has raised the alarm: says what this rank did last, and asks `count` others.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(super) fn respond(&mut self, count: usize) -> Result<()> {
        let is_raised = |alarm: &Question| self.board.answer_to(alarm).is_some();
        if self.alarm.as_ref().is_some_and(is_raised) {
            self.tell()?;
            self.ask(count)?;
        }
        Ok(())
    }

    fn tell(&mut self) -> Result<()> {
        let text: Vec<String> = self.history.iter().map(encode).collect();
        self.board
            .post(&numbered(HISTORY, self.next), &text.join(","))?;
        self.next += 1;
        self.asked.clear();
        self.alarm = Some(self.board.ask_all(&numbered(ALARM, self.next))?);
        Ok(())
    }

    /// Asks as many others, those behind this rank first, what they said upon the last alarm, unless that was done.
    ///
    /// # Errors
    /// When the connection to the store is broken.
    pub(super) fn ask(&mut self, count: usize) -> Result<()> {
        let (own, size) = (self.context.rank, self.context.size());
        let last = numbered(HISTORY, self.next - 1);
        for member in (1..size).map(|step| (own + step) % size).take(count) {
            if self.asked.iter().any(|asked| asked.member == member) {
                continue;
            }
            self.asked.push(Asked {
                member,
                history: Some(self.board.ask(member, &last)?),
                came_to: None,
            });
            if self.leaving.iter().all(|(known, _)| *known != member) {
                let question = self.board.ask(member, LEAVING)?;
                self.leaving.push((member, Some(question)));
            }
        }
        Ok(())
    }

    /// Compares what the others have said with what this rank did.
    ///
    /// # Errors
    /// [`Mismatch`](crate::CommError::Mismatch) where a member did something else.
    pub(super) fn compare(&mut self) -> Result<()> {
        for asked in &mut self.asked {
            let Some(text) = taken(&self.board, &mut asked.history) else {
                continue;
            };
            let theirs: Vec<_> = text.split(',').filter_map(decode).collect();
            asked.came_to = theirs.last().map(|last| last[SEQUENCE]);
            for own in &self.history {
                let is_same = |words: &&[u64; Signature::WORDS]| words[SEQUENCE] == own.sequence;
                if let Some(words) = theirs.iter().find(is_same) {
                    self.context.check_agreement(own, asked.member, *words)?;
                }
            }
        }
        Ok(())
    }

    /// Looks whether a member has left the group that would be needed for `signature`.
    ///
    /// # Errors
    /// [`PeerLeft`](crate::CommError::PeerLeft).
    pub(super) fn look_for_leavers(&mut self, signature: &Signature) -> Result<()> {
        for (member, question) in &mut self.leaving {
            if let Some(text) = taken(&self.board, question)
                && text
                    .parse()
                    .is_ok_and(|done: u64| done < signature.sequence)
            {
                return Err(self.context.peer_left(*member, signature));
            }
        }
        Ok(())
    }

    /// World ranks of those who had not come to `signature` when they were asked.
    pub(super) fn missing(&self, signature: &Signature) -> Vec<usize> {
        let is_missing =
            |asked: &&Asked| asked.came_to.is_none_or(|last| last < signature.sequence);
        let missing = self.asked.iter().filter(is_missing);
        missing
            .map(|asked| self.context.ranks[asked.member])
            .collect()
    }

    /// Says that this rank leaves the group after so many operations.
    pub(super) fn leave(&self, done: u64) {
        // Who cannot be told so any more sees the connection end.
        let _told = self.board.post(LEAVING, &done.to_string());
    }
}

/// The place of the sequence number among a signature's words.
const SEQUENCE: usize = Signature::WORDS - 1;

fn numbered(what: &str, number: u64) -> String {
    format!("{what} {number}")
}

fn taken(board: &Board, question: &mut Option<Question>) -> Option<String> {
    let answer = board.answer_to(question.as_ref()?)?;
    *question = None;
    Some(answer)
}

fn encode(signature: &Signature) -> String {
    signature.encode().map(|word| format!("{word:x}")).join(" ")
}

fn decode(text: &str) -> Option<[u64; Signature::WORDS]> {
    let words: Option<Vec<u64>> = text
        .split(' ')
        .map(|word| u64::from_str_radix(word, 16).ok())
        .collect();
    words?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_told_whole_or_not_at_all() {
        assert_eq!(decode("1 0 ff 2"), Some([1, 0, 255, 2]));
        for text in ["1 0 ff", "1 0 ff 2 3", "", "1 0 xx 2"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
