//! The text column of a file of JSON objects, one a line.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::error::SourceError;
use super::lines::Lines;

/// Reads one column and skips the others without keeping them. Empty lines are no documents.
pub(super) struct JsonLines {
    lines: Lines,
    column: String,
}

impl JsonLines {
    pub(super) fn open(path: &Path, column: &str) -> Result<Self, SourceError> {
        Ok(Self {
            lines: Lines::open(path)?,
            column: column.into(),
        })
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.lines.bytes
    }

    fn text_of(&self, line: &str) -> Result<String, SourceError> {
        let path = || self.lines.path().to_owned();
        let number = self.lines.number;
        let json = |error: serde_json::Error| SourceError::Json {
            path: path(),
            line: number,
            reason: reason(&error),
        };
        let mut parser = serde_json::Deserializer::from_str(line);
        let value = Column(&self.column)
            .deserialize(&mut parser)
            .and_then(|value| parser.end().map(|()| value))
            .map_err(json)?;
        match value {
            Some(Value::String(text)) => Ok(text),
            Some(Value::Null) => Ok(String::new()),
            Some(other) => Err(SourceError::NotText {
                path: path(),
                line: Some(number),
                column: self.column.clone(),
                found: kind_of(&other).into(),
            }),
            None => {
                let object: serde_json::Map<String, Value> =
                    serde_json::from_str(line).map_err(json)?;
                Err(SourceError::NoColumn {
                    path: path(),
                    line: Some(number),
                    column: self.column.clone(),
                    available: object.keys().cloned().collect(),
                })
            }
        }
    }
}

impl Iterator for JsonLines {
    type Item = Result<String, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.lines.next()? {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => return Some(self.text_of(&line)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Takes one value out of an object.
struct Column<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = Option<Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = object.next_key::<String>()? {
            if key == self.0 {
                found = Some(object.next_value()?);
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// What the parser says, without its own count of lines, which sees only one.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    format!("{what} (column {})", error.column())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
