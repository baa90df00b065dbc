//! What of a dataset's folder is not read, and why: nothing is passed over without a word.

use std::collections::HashSet;
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
        // A folder may have a file for each of a million documents.
        let taken: HashSet<&str> = chosen.iter().copied().collect();
        let others = names.iter().filter(|name| !taken.contains(**name));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_files_some_are_named() {
        let names: Vec<String> = (0..300_000).map(|n| format!("{n:06}.txt")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut left_out = LeftOut::default();
        let chosen: Result<Vec<&str>, ()> = left_out.others("of others", names, |names| {
            Ok(names[..names.len() / 2].to_vec())
        });
        assert_eq!(chosen.unwrap().len(), 150_000);
        assert_eq!(
            left_out.to_string(),
            "150000 of others (150000.txt, 150001.txt, 150002.txt, ...)"
        );
    }
}
