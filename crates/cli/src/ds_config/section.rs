//! A part of the file, with values of a kind.

use serde_json::{Map, Value};

/// A value, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting<T> {
    /// The key with those around it, `optimizer.params.lr` for example.
    pub key: String,
    /// What it says.
    pub value: Said<T>,
}

/// What a key says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Said<T> {
    /// It is not there.
    Nothing,
    /// The flag says it.
    Auto,
    /// This.
    Value(T),
}

impl<T> Setting<T> {
    /// The value, where there is one.
    pub fn known(self) -> Option<T> {
        match self.value {
            Said::Value(value) => Some(value),
            Said::Nothing | Said::Auto => None,
        }
    }
}

impl<T: Into<Value>> Setting<T> {
    /// The same as JSON.
    pub fn json(self) -> Setting<Value> {
        let value = match self.value {
            Said::Nothing => Said::Nothing,
            Said::Auto => Said::Auto,
            Said::Value(value) => Said::Value(value.into()),
        };
        Setting {
            key: self.key,
            value,
        }
    }
}

/// An object in the file.
#[derive(Debug)]
pub struct Section<'a> {
    path: String,
    keys: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    /// The object that stands at `path`; the file itself is at the empty one.
    pub fn new(path: &str, keys: &'a Map<String, Value>) -> Self {
        Self {
            path: path.to_owned(),
            keys: Some(keys),
        }
    }

    /// Where a key of it stands.
    pub fn at(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// Whether it says something of a key.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys?.get(key).filter(|value| !value.is_null())
    }

    /// An object in it; one that is absent has nothing.
    pub fn section(&self, key: &str) -> Result<Section<'a>, String> {
        let keys = match self.get(key) {
            None => None,
            Some(Value::Object(keys)) => Some(keys),
            Some(other) => {
                return Err(format!("{} is {other}; it must be an object", self.at(key)));
            }
        };
        Ok(Section {
            path: self.at(key),
            keys,
        })
    }

    /// A list in it; one that is absent has nothing.
    pub fn list(&self, key: &str) -> Result<&'a [Value], String> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Value::Array(values)) => Ok(values),
            Some(other) => Err(format!("{} is {other}; it must be a list", self.at(key))),
        }
    }

    /// Some value.
    pub fn setting(&self, key: &str) -> Setting<Value> {
        let value = match self.get(key) {
            None => Said::Nothing,
            Some(Value::String(text)) if text == "auto" => Said::Auto,
            Some(value) => Said::Value(value.clone()),
        };
        Setting {
            key: self.at(key),
            value,
        }
    }

    fn of_kind<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Setting<T>, String> {
        let Setting { key, value } = self.setting(key);
        let value = match value {
            Said::Nothing => Said::Nothing,
            Said::Auto => Said::Auto,
            Said::Value(value) => match read(&value) {
                Some(read) => Said::Value(read),
                None => return Err(format!("{key} is {value}; it must be {what} or \"auto\"")),
            },
        };
        Ok(Setting { key, value })
    }

    /// A whole number, which may be written as a float (`1e3`, as many files have it).
    pub fn whole(&self, key: &str) -> Result<Setting<u64>, String> {
        self.of_kind(key, "a whole number", |value| {
            let whole = |number: &f64| number.fract() == 0.0 && (0.0..9e15).contains(number);
            let float = || value.as_f64().filter(whole).map(|number| number as u64);
            value.as_u64().or_else(float)
        })
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Setting<f64>, String> {
        self.of_kind(key, "a number", Value::as_f64)
    }

    /// `true` or `false`.
    pub fn truth(&self, key: &str) -> Result<Setting<bool>, String> {
        self.of_kind(key, "true or false", Value::as_bool)
    }

    /// Text.
    pub fn text(&self, key: &str) -> Result<Setting<String>, String> {
        self.of_kind(key, "text", |value| value.as_str().map(str::to_owned))
    }
}
