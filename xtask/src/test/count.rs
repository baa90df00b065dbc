//! Counting tests by reading what cargo and pytest print.

use std::fmt;
use std::ops::AddAssign;

/// How many tests ran, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
    /// Marked as taking long; `--long` runs them.
    pub ignored: usize,
}

impl Count {
    /// Takes account of a line if it is the closing line of a test binary or of pytest.
    pub fn read_line(&mut self, line: &str) {
        let closing_of_pytest = line.starts_with('=') && line.contains(" in ");
        let numbers = match line.strip_prefix("test result: ") {
            Some(result) => result,
            None if closing_of_pytest => line.trim_matches(['=', ' ']),
            None => return,
        };
        let mut words = numbers
            .split([' ', ';', ',', '.'])
            .filter(|word| !word.is_empty());
        let mut previous = "";
        for word in &mut words {
            let number = previous.parse().unwrap_or(0);
            match word {
                "passed" => self.passed += number,
                "failed" | "error" | "errors" => self.failed += number,
                "ignored" | "skipped" => self.ignored += number,
                _ => {}
            }
            previous = word;
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(f, ", {} not run (they need --long)", self.ignored)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted_and_others_are_not() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test it_works ... ok",
            "test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 5 filtered out; finished in 0.10s",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.60s",
            "============ 1 failed, 4 passed, 1 error in 0.12s ============",
            "a program printed: 7 passed",
        ] {
            count.read_line(line);
        }
        assert_eq!(
            count,
            Count {
                passed: 19,
                failed: 3,
                ignored: 2
            }
        );
        assert_eq!(
            count.to_string(),
            "19 passed, 3 failed, 2 not run (they need --long)"
        );
    }
}
