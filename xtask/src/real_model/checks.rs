//! What must hold, as it turns out.

use anyhow::{Result, bail};

/// Each with a name, whether it holds, and the numbers.
#[derive(Debug, Default)]
pub struct Checks {
    all: Vec<(String, bool, String)>,
}

impl Checks {
    pub fn add(&mut self, name: &str, holds: bool, numbers: String) {
        self.all.push((name.to_owned(), holds, numbers));
    }

    /// Whether all do, and there are any.
    pub fn hold(&self) -> bool {
        !self.all.is_empty() && self.all.iter().all(|(_, holds, _)| *holds)
    }

    /// Prints them as cargo prints tests, so that `cargo xtask test` counts them. Errors unless all hold.
    pub fn conclude(&self) -> Result<()> {
        println!();
        for (name, holds, numbers) in &self.all {
            let word = if *holds { "ok" } else { "FAILED" };
            println!("test {name} ... {word} ({numbers})");
        }
        let passed = self.all.iter().filter(|(_, holds, _)| *holds).count();
        let failed = self.all.len() - passed;
        let word = if self.hold() { "ok" } else { "FAILED" };
        println!("\ntest result: {word}. {passed} passed; {failed} failed");
        if !self.hold() {
            bail!("{failed} of {} checks do not hold", self.all.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_does_not_hold_and_none_at_all_are_failures() {
        let mut checks = Checks::default();
        checks.conclude().expect_err("nothing was checked");
        checks.add("one", true, "1 to 2".to_owned());
        checks.conclude().expect("it holds");
        checks.add("other", false, "2 to 1".to_owned());
        let error = checks.conclude().expect_err("one does not");
        assert_eq!(error.to_string(), "1 of 2 checks do not hold");
    }
}
