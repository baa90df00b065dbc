//! The text column of a file of JSON objects, or the objects.

mod values;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::de::StrRead;

use self::values::Values;
use super::error::SourceError;
use super::wanted::Wanted;

/// Reads one column and skips the others without keeping them; or takes the objects as they are.
pub(super) struct JsonRows {
    path: PathBuf,
    values: Values,
    /// The column with the text; `None` takes the objects.
    column: Option<String>,
    has_failed: bool,
}

impl JsonRows {
    pub(super) fn open(path: &Path, wanted: Wanted<'_>) -> Result<Self, SourceError> {
        Ok(Self {
            path: path.into(),
            values: Values::open(path)?,
            column: match wanted {
                Wanted::Text(column) => Some(column.into()),
                Wanted::Row(_) => None,
            },
            has_failed: false,
        })
    }

    /// Objects of a file, none of which is parsed.
    pub(super) fn count(path: &Path) -> Result<u64, SourceError> {
        let mut count = 0;
        for value in Values::open(path)? {
            value?;
            count += 1;
        }
        Ok(count)
    }

    /// The names in the first object of a file; none where there is no object, which reading it says.
    pub(super) fn columns(path: &Path) -> Result<Vec<String>, SourceError> {
        let Some(first) = Values::open(path)?.next() else {
            return Ok(Vec::new());
        };
        let names = parse(&first?.0, names_of);
        Ok(names.unwrap_or_default())
    }

    /// Bytes of the file read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.values.bytes()
    }

    fn document(&self, object: String, line: u64) -> Result<String, SourceError> {
        let json = |error: serde_json::Error| SourceError::Json {
            path: self.path.clone(),
            line: line + (error.line() as u64).saturating_sub(1),
            reason: reason(&error),
        };
        let Some(column) = &self.column else {
            parse(&object, names_of).map_err(json)?;
            return Ok(match without_nan(&object) {
                Cow::Owned(object) => object,
                Cow::Borrowed(_) => object,
            });
        };
        let object = object.as_str();
        let value = parse(object, |parser| Column(column).deserialize(parser)).map_err(json)?;
        match value {
            Some(Ok(text)) => Ok(text),
            Some(Err(found)) => Err(SourceError::NotText {
                path: self.path.clone(),
                line: Some(line),
                column: column.clone(),
                found: found.into(),
            }),
            None => {
                let mut available = parse(object, names_of).map_err(json)?;
                available.sort();
                Err(SourceError::NoColumn {
                    path: self.path.clone(),
                    line: Some(line),
                    column: column.clone(),
                    available,
                })
            }
        }
    }
}

impl Iterator for JsonRows {
    type Item = Result<String, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        let text = match self.values.next()? {
            Ok((object, line)) => self.document(object, line),
            Err(error) => Err(error),
        };
        self.has_failed = text.is_err();
        Some(text)
    }
}

/// Parses one whole value. NaN and Infinity, which JSON does not have and Python's `json` writes, count as 0: nobody looks
/// at numbers here.
fn parse<T>(
    text: &str,
    read: impl Fn(&mut serde_json::Deserializer<StrRead<'_>>) -> serde_json::Result<T>,
) -> serde_json::Result<T> {
    let whole = |text: &str| {
        let mut parser = serde_json::Deserializer::from_str(text);
        let value = read(&mut parser)?;
        parser.end().map(|()| value)
    };
    whole(text).or_else(|error| match without_nan(text) {
        Cow::Owned(text) => whole(&text),
        Cow::Borrowed(_) => Err(error),
    })
}

/// The same text with numbers as long as the words in their place, so that columns stay.
fn without_nan(text: &str) -> Cow<'_, str> {
    let mut out: Option<String> = None;
    let (mut in_string, mut is_escaped) = (false, false);
    let mut copied = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            // Not the end of a word that was just replaced.
            b'N' | b'I' if !in_string && at >= copied => {
                let words = [("NaN", "0.0"), ("Infinity", "0.000000")];
                for (word, number) in words {
                    if text[at..].starts_with(word) {
                        let out = out.get_or_insert_with(String::new);
                        out.push_str(&text[copied..at]);
                        out.push_str(number);
                        copied = at + word.len();
                    }
                }
            }
            _ => {}
        }
    }
    match out {
        Some(mut out) => {
            out.push_str(&text[copied..]);
            Cow::Owned(out)
        }
        None => Cow::Borrowed(text),
    }
}

/// Names that are kept of an object: more than any dataset has.
const MAX_NAMES: usize = 10_000;

/// The names of an object's values, which are skipped.
fn names_of(parser: &mut serde_json::Deserializer<StrRead<'_>>) -> serde_json::Result<Vec<String>> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
            let mut names = Vec::new();
            while let Some((name, IgnoredAny)) = object.next_entry()? {
                if names.len() < MAX_NAMES {
                    names.push(name);
                }
            }
            Ok(names)
        }
    }
    parser.deserialize_map(Names)
}

/// Takes one value out of an object.
struct Column<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Option<Text>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = Option<Text>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = object.next_key::<String>()? {
            if key == self.0 {
                found = Some(object.next_value::<Found>()?.0);
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

/// The text of a value, where null is an empty one; or what it is instead.
type Text = Result<String, &'static str>;

/// Takes a value that should be text. Of any other nothing is kept, however large it is.
struct Found(Text);

impl<'de> Deserialize<'de> for Found {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOnly).map(Self)
    }
}

struct TextOnly;

impl<'de> Visitor<'de> for TextOnly {
    type Value = Text;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Ok(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Text, E> {
        Ok(Ok(text))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Ok(String::new()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Err("a boolean"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Err("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
        Ok(Err("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Err("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Text, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Text, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Err("an object"))
    }
}
