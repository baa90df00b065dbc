//! Typed reading of single variables, with errors that name them.

use super::{EnvError, Lookup};

/// A view of the environment.
pub(super) struct Variables<'a> {
    lookup: &'a Lookup<'a>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(lookup: &'a Lookup<'a>) -> Self {
        Self { lookup }
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        (self.lookup)(name).is_some()
    }

    pub(super) fn text(&self, name: &'static str) -> Result<Option<String>, EnvError> {
        match (self.lookup)(name) {
            Some(value) if value.trim().is_empty() => Err(invalid(name, &value, "not empty")),
            found => Ok(found),
        }
    }

    pub(super) fn number(&self, name: &'static str) -> Result<Option<usize>, EnvError> {
        self.parsed(name, "a whole number")
    }

    /// A number of ranks or processes: zero of them makes no sense.
    pub(super) fn size(&self, name: &'static str) -> Result<Option<usize>, EnvError> {
        match self.number(name)? {
            Some(0) => Err(invalid(name, "0", "at least 1")),
            found => Ok(found),
        }
    }

    pub(super) fn port(&self, name: &'static str) -> Result<Option<u16>, EnvError> {
        let expected = "a port from 1 to 65535";
        match self.parsed::<u16>(name, expected)? {
            Some(0) => Err(invalid(name, "0", expected)),
            found => Ok(found),
        }
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
        expected: &str,
    ) -> Result<Option<T>, EnvError> {
        let Some(value) = self.text(name)? else {
            return Ok(None);
        };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(invalid(name, &value, expected)),
        }
    }
}

/// `value`, or an error that says which other variable made it necessary.
pub(super) fn require<T>(
    value: Option<T>,
    variable: &'static str,
    present: &'static str,
    remedy: &'static str,
) -> Result<T, EnvError> {
    value.ok_or(EnvError::Missing {
        variable,
        present,
        remedy,
    })
}

pub(super) fn invalid(variable: &'static str, value: &str, expected: &str) -> EnvError {
    EnvError::Invalid {
        variable,
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}
