//! What of a dataset's folder is not read, and why: nothing is passed over without a word.

use std::fmt;

/// Files that are named for each reason; the others are counted.
const NAMED: usize = 3;

/// Names by reason, in the order in which reasons came up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LeftOut(Vec<(&'static str, Vec<String>)>);

impl LeftOut {
    pub(super) fn add(&mut self, why: &'static str, name: &str) {
        let name = name.to_owned();
        match self.0.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => self.0.push((why, vec![name])),
        }
    }

    /// What `choose` takes of `names`; the others are left out for the reason `why`.
    pub(super) fn others<'a, E>(
        &mut self,
        why: &'static str,
        names: Vec<&'a str>,
        choose: impl FnOnce(&[&'a str]) -> Result<Vec<&'a str>, E>,
    ) -> Result<Vec<&'a str>, E> {
        let chosen = choose(&names)?;
        let others = names.iter().filter(|name| !chosen.contains(name));
        others.for_each(|name| self.add(why, name));
        Ok(chosen)
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (why, names)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let named = names[..names.len().min(NAMED)].join(", ");
            let more = if names.len() > NAMED { ", ..." } else { "" };
            write!(out, "{comma}{} {why} ({named}{more})", names.len())?;
        }
        Ok(())
    }
}
