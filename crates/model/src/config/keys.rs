//! Typed access to the keys of a config: what is there has the right type and a possible value, or is refused.

use serde_json::{Map, Value};

use super::ConfigError;

/// The largest size of one dimension: kernels count elements of a row in 32 bits.
const MAX_SIZE: u64 = i32::MAX as u64;

/// A JSON object. `null` is as good as nothing.
pub(super) struct Keys<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// The value, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A whole number of at least 1.
    pub(super) fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        let value = self.get(key).ok_or(ConfigError::Missing { key })?;
        match value.as_u64() {
            Some(number @ 1..=MAX_SIZE) => Ok(number as usize),
            Some(number) if number > MAX_SIZE => Err(wrong(
                key,
                value,
                &format!("more than {MAX_SIZE} is not supported"),
            )),
            _ => Err(wrong(key, value, "it must be a whole number of at least 1")),
        }
    }

    pub(super) fn size_or(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(_) => self.size(key),
        }
    }

    /// A whole number that nothing is multiplied with, so that it may be as large as it likes.
    pub(super) fn any_size_or(
        &self,
        key: &'static str,
        default: usize,
    ) -> Result<usize, ConfigError> {
        match self.get(key) {
            Some(value) if value.as_u64().is_some_and(|number| number > MAX_SIZE) => {
                Ok(MAX_SIZE as usize)
            }
            _ => self.size_or(key, default),
        }
    }

    /// A whole number of at least 0.
    pub(super) fn count_or(&self, key: &'static str, default: u64) -> Result<u64, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .ok_or_else(|| wrong(key, value, "it must be a whole number of at least 0")),
        }
    }

    pub(super) fn number_or(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| wrong(key, value, "it must be a number")),
        }
    }

    /// A number above 0 that is finite, also in fp32, in which it is used.
    pub(super) fn positive_or(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        let number = self.number_or(key, default)?;
        let used = number as f32;
        if used > 0.0 && used.is_finite() {
            return Ok(number);
        }
        Err(ConfigError::Value {
            key,
            value: Value::from(number).to_string(),
            expected: "it must be positive and finite".to_owned(),
        })
    }

    /// As [`Keys::positive_or`], where there is no default.
    pub(super) fn positive(&self, key: &'static str) -> Result<f64, ConfigError> {
        if self.get(key).is_none() {
            return Err(ConfigError::Missing { key });
        }
        self.positive_or(key, 1.0)
    }

    /// As [`Keys::positive_or`], where null is none, which is not what an absent key need be.
    pub(super) fn positive_or_none(
        &self,
        key: &'static str,
        default: Option<f64>,
    ) -> Result<Option<f64>, ConfigError> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.positive(key).map(Some),
        }
    }

    /// A list of numbers that are positive and finite.
    pub(super) fn positive_list(&self, key: &'static str) -> Result<Vec<f64>, ConfigError> {
        let list = self.list(key)?.ok_or(ConfigError::Missing { key })?;
        let numbers = list.iter().map(|value| {
            let number = value.as_f64().filter(|number| {
                let used = *number as f32;
                used > 0.0 && used.is_finite()
            });
            number.ok_or_else(|| wrong(key, value, "it must be positive and finite"))
        });
        numbers.collect()
    }

    /// As [`Keys::positive_or`], where Python's `or` takes 0 for nothing.
    pub(super) fn positive_unless_0(
        &self,
        key: &'static str,
        default: f64,
    ) -> Result<f64, ConfigError> {
        match self.number_or(key, 0.0)? {
            0.0 => Ok(default),
            _ => self.positive_or(key, default),
        }
    }

    pub(super) fn initializer_range(&self) -> Result<f64, ConfigError> {
        let key = "initializer_range";
        let number = self.number_or(key, 0.02)?;
        if (0.0..=1.0).contains(&number) {
            return Ok(number);
        }
        Err(ConfigError::Value {
            key,
            value: number.to_string(),
            expected: "it must be between 0 and 1".to_owned(),
        })
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| wrong(key, value, "it must be true or false")),
        }
    }

    pub(super) fn list(&self, key: &'static str) -> Result<Option<&'a [Value]>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(value) => Err(wrong(key, value, "it must be a list")),
        }
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(wrong(key, value, "it must be a string")),
        }
    }

    pub(super) fn object(
        &self,
        key: &'static str,
    ) -> Result<Option<&'a Map<String, Value>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(value) => Err(wrong(key, value, "it must be an object")),
        }
    }

    pub(super) fn must_be_number(
        &self,
        key: &'static str,
        wanted: f64,
        expected: &str,
    ) -> Result<(), ConfigError> {
        let found = self.number_or(key, wanted)?;
        if found == wanted {
            Ok(())
        } else {
            Err(ConfigError::Value {
                key,
                value: found.to_string(),
                expected: expected.to_owned(),
            })
        }
    }
}

/// What the file says, in one line, and what would be right.
pub(super) fn wrong(key: &'static str, value: &Value, expected: &str) -> ConfigError {
    let mut value = value.to_string();
    if value.chars().count() > 100 {
        value = value.chars().take(100).collect::<String>() + "...";
    }
    ConfigError::Value {
        key,
        value,
        expected: expected.to_owned(),
    }
}

/// Refuses a `value` of `key` beyond what is written down one by one.
pub(super) fn at_most(limit: usize, key: &'static str, value: usize) -> Result<(), ConfigError> {
    match value > limit {
        false => Ok(()),
        true => Err(ConfigError::Value {
            key,
            value: value.to_string(),
            expected: format!("more than {limit} are not supported"),
        }),
    }
}
